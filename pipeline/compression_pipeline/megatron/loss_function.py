"""What a training minimizes: a teacher correction the loss of the next token (here), a distillation its own."""

from typing import Protocol, TypeAlias

import torch

from compression_pipeline.text.batches import Batch
from compression_pipeline.text.isolation import bias_for

Shapes: TypeAlias = list[tuple[int, ...]]


class LossFunction(Protocol):
    """What is minimized, in the two halves that Megatron's schedules know."""

    def shapes(self, received: Shapes, sent: Shapes) -> tuple[Shapes, Shapes]:
        """Of what a pipeline stage receives and sends, given those of the model's hidden states."""
        ...

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The model's output for a batch (`model` may be wrapped: call it, don't look inside)."""
        ...

    def reduce(self, output: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The scalar loss of that output: the mean over the batch's tokens, by their weights (`Batch.weights`)."""
        ...


class LanguageModelLoss:
    """Mean cross entropy of the next token, in nats."""

    def shapes(self, received: Shapes, sent: Shapes) -> tuple[Shapes, Shapes]:
        """Hidden states alone."""
        return received, sent

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Losses of all tokens, [sequences, sequence length]."""
        return model(batch.tokens, batch.positions, bias_for(model, batch.mask), labels=batch.labels)

    def reduce(self, output: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Their mean, over the tokens that are learned."""
        losses = output.float()
        return losses.mean() if batch.weights is None else (losses * batch.weights).mean()
