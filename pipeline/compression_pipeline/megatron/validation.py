"""Validation loss: the same tokens and the same mean in every phase, so that all figures compare."""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import one_hot

from compression_pipeline.context import Context
from compression_pipeline.errors import Interrupted
from compression_pipeline.text.batches import ValidationData, ValidationLoss

from . import stages
from .runtime import Runtime

STOPS = 4
"""Passes of each stage between two questions whether any rank was told to stop: the stages idle before each."""


def validation_loss(
    model: Any, data: ValidationData, runtime: Runtime, context: Context, *, batch_size: int
) -> ValidationLoss:
    """Mean loss per token in nats over all sequences of each source of `data`, shared among the ranks; of the tokens
    that are learned, where not all are. Every rank gets it.

    Sums are taken in float64. The model is put into eval mode meanwhile.

    Args:
        model: a GPTModel (unwrapped), or this rank's stage of one, that returns losses [sequences, sequence length]
            where it is given labels.
        batch_size: sequences in one forward pass.

    Raises:
        Interrupted: any rank was told to stop; all ranks raise it before the same batch.
    """
    training = model.training
    model.eval()
    between = STOPS * runtime.layout.pipeline if runtime.layout.pipeline > 1 else 1
    totals = torch.zeros(2, len(data.sources), dtype=torch.float64, device=runtime.device)
    try:
        for number, start in enumerate(range(0, len(data), runtime.data_size * batch_size)):
            if number % between == 0:
                _stop_together(runtime, context)
            first = start + runtime.data_rank * batch_size
            if first >= len(data):
                continue
            indices = range(first, min(first + batch_size, len(data)))
            batch = data.batch(indices, runtime.device)
            found = stages.forward(model, batch, runtime, labels=batch.labels)
            if found is None:
                continue
            losses = found.double()
            counted = torch.ones_like(losses) if batch.weights is None else batch.weights.double()
            # [sequences, sources]; not index_add_, whose order of additions on a GPU is not always the same.
            texts = torch.tensor(data.texts_of(indices), device=runtime.device)
            of_source = one_hot(texts, len(data.sources)).double()
            totals[0] += (losses if batch.weights is None else losses * counted).sum(dim=1) @ of_source
            totals[1] += counted.sum(dim=1) @ of_source
    finally:
        model.train(training)
    dist.all_reduce(totals)  # the ranks of a last stage alone have any
    return data.loss((totals[0] / totals[1]).tolist())


def _stop_together(runtime: Runtime, context: Context) -> None:
    stops = torch.tensor(float(context.stop_requested()), device=runtime.device)
    dist.all_reduce(stops)
    if stops.item() > 0:
        raise Interrupted("was told to stop (SIGTERM) while it measured the validation loss")
