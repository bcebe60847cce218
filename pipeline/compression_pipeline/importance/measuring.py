"""What matters on every axis: one pass over the calibration samples for all estimators, then each measurement's own."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch

from compression_pipeline.config import AggregationConfig, Architecture
from compression_pipeline.text.isolation import bias_for, mask_of

from .aggregation import PUBLISHED
from .base import Batches, Estimator, Measurement, Samples, Scores

Scorer: TypeAlias = type[Estimator] | type[Measurement]


def measure(
    model: Any,
    architecture: Architecture,
    samples: Samples,
    axes: Mapping[str, Scorer],
    aggregation: AggregationConfig = PUBLISHED,
) -> Scores:
    """Score the parts of a GPTModel on `samples`, by axis. Every rank gives its own and gets the scores over all.

    Estimators share one forward pass. The model runs it without its output layer, whose logits none of them needs and
    which are the largest tensor of a forward pass.
    """
    measurements = {axis: kind(architecture) for axis, kind in axes.items() if issubclass(kind, Measurement)}
    hooked = {axis: kind for axis, kind in axes.items() if issubclass(kind, Estimator)}
    with torch.no_grad(), _in_eval_mode(model):
        found = dict(_estimated(model, architecture, samples.batches, hooked, aggregation)) if hooked else {}
        for axis, measurement in measurements.items():
            found[axis] = measurement.scores(model, samples)
            found |= {f"{axis}.{name}": table for name, table in measurement.tables().items()}
    return found


def _estimated(
    model: Any,
    architecture: Architecture,
    batches: Batches,
    axes: Mapping[str, type[Estimator]],
    aggregation: AggregationConfig,
) -> Scores:
    estimators = {axis: kind(model, architecture, aggregation) for axis, kind in axes.items()}
    try:
        with _without_logits(model):
            for tokens, positions in batches:
                model(tokens, positions, bias_for(model, mask_of(positions)))
        return {axis: estimator.scores() for axis, estimator in estimators.items()}
    finally:
        for estimator in estimators.values():
            estimator.close()


@contextlib.contextmanager
def _in_eval_mode(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextlib.contextmanager
def _without_logits(model: Any) -> Iterator[None]:
    """The model returning hidden states."""
    post_process = model.post_process
    model.post_process = False
    try:
        yield
    finally:
        model.post_process = post_process
