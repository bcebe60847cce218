"""The learning rate of a step: linear warm-up, then half a cosine. A function of the step, so nothing is saved."""

import math

from compression_pipeline.config import TrainingConfig


def learning_rate(step: int, settings: TrainingConfig) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    It rises linearly, reaches the peak in the last warm-up step and the minimum in the last step, where it stays.
    """
    done = step + 1
    if done <= settings.warmup_steps:
        return settings.learning_rate * done / settings.warmup_steps
    if done >= settings.steps:
        return settings.min_learning_rate
    progress = (done - settings.warmup_steps) / (settings.steps - settings.warmup_steps)
    span = settings.learning_rate - settings.min_learning_rate
    return settings.min_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2
