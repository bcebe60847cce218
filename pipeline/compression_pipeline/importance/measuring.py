"""One pass over the calibration samples for every axis."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from compression_pipeline.config import Architecture

from .base import Estimator, Scores


def measure(
    model: Any,
    architecture: Architecture,
    batches: Iterable[tuple[Tensor, Tensor]],
    axes: Mapping[str, type[Estimator]],
) -> Scores:
    """Score the parts of a GPTModel on `batches` of (tokens, positions), each [sequences, sequence length].

    The model runs without its output layer, whose logits nobody needs and which are the largest tensor of a forward
    pass. Every rank gives its own batches and gets the scores over all.
    """
    estimators = {name: estimator(model, architecture) for name, estimator in axes.items()}
    try:
        with torch.no_grad(), _without_logits(model):
            for tokens, positions in batches:
                model(tokens, positions, None)
        return {name: estimator.scores() for name, estimator in estimators.items()}
    finally:
        for estimator in estimators.values():
            estimator.close()


@contextlib.contextmanager
def _without_logits(model: Any) -> Iterator[None]:
    """The model in eval mode, returning hidden states."""
    training, post_process = model.training, model.post_process
    model.eval()
    model.post_process = False
    try:
        yield
    finally:
        model.post_process = post_process
        model.train(training)
