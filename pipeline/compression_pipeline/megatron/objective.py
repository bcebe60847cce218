"""The sum of the losses that a student is trained to lower, and what it captures of the two models for them."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compression_pipeline.config import Architecture, LossConfig, Needs
from compression_pipeline.losses import Loss, Signals, build_loss, weighted_sum

from .private import Criterion
from .runtime import Runtime


class Objective(Criterion):
    """The criterion of a distillation in ModelOpt's sense: given both models' logits, the loss as a scalar.

    What else its losses need it captures by hooks, and only while a training step's forward pass runs (`captured`).
    """

    def __init__(self, settings: Sequence[LossConfig], losses: Sequence[Loss], needs: Sequence[Needs]) -> None:
        """Use `of`."""
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self._settings, self._needs = list(settings), list(needs)
        self._student, self._teacher = _Taps(), _Taps()
        self._weights: Tensor | None = None

    @classmethod
    def of(
        cls, losses: Sequence[LossConfig], teacher: Architecture, student: Architecture, runtime: Runtime, *, seed: int
    ) -> "Objective":
        """The losses of a manifest, rules resolved. Their parameters are drawn from `seed`, the same on all ranks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = [build_loss(loss, teacher, student) for loss in losses]
        made = cls(losses, built, [loss.needs(teacher, student) for loss in losses])
        return made.to(device=runtime.device, dtype=runtime.dtype)

    def attach(self, student: Any, teacher: Any) -> None:
        """Hang hooks into two GPTModels for what is compared beside the logits.

        Raises NotImplementedError where a loss would be wrong on the part of the vocabulary that a rank has.
        """
        parts = student.config.tensor_model_parallel_size
        for loss, needs in zip(self.losses, self._needs, strict=True):
            if (needs.logits or needs.labels) and parts > 1 and not loss.splits_vocabulary:
                raise NotImplementedError(
                    f"{type(loss).__name__} is wrong on a part of the vocabulary; use tensor parallel 1, not {parts}"
                )
        pairs = [pair for needs in self._needs for pair in needs.hidden]
        embeddings = any(needs.embeddings for needs in self._needs)
        self._student.attach(student, {mine for mine, _ in pairs}, embeddings=embeddings)
        self._teacher.attach(teacher, {theirs for _, theirs in pairs}, embeddings=embeddings)

    @contextlib.contextmanager
    def captured(self, labels: Tensor, weights: Tensor | None = None) -> Iterator[None]:
        """Capture what both models compute inside this block. `labels`: the batch's next tokens, [batch, sequence];
        `weights`: what the losses of each count (`Batch.weights`).
        """
        self._student.open, self._teacher.open = True, True
        self._weights = weights
        self._student.labels = labels.transpose(0, 1)
        try:
            yield
        finally:
            self._student.open, self._teacher.open = False, False

    def forward(self, student: tuple[Tensor, Any], teacher: tuple[Tensor, Any]) -> Tensor:
        """The sum of the losses (`weighted_sum`).

        Args:
            student: what its output layer gave: logits [sequence, batch, vocabulary], and a bias.
            teacher: what its output layer gave.
        """
        signals = self._student.taken(student[0]), self._teacher.taken(teacher[0].detach())
        return weighted_sum(self._settings, [loss(*signals) for loss in self.losses], self._weights)


class _Taps:
    """Hooks in one model, and what they saw last."""

    def __init__(self) -> None:
        self.open = False
        self._hidden: dict[int, Tensor] = {}
        self._embeddings: Tensor | None = None
        self.labels: Tensor | None = None

    def attach(self, model: Any, layers: set[int], *, embeddings: bool) -> None:
        """Hang hooks into the layers of these numbers, counted from 1, that this rank has."""
        for layer in model.decoder.layers:
            if layer.layer_number in layers:
                layer.register_forward_hook(self._see_layer)
        if embeddings:
            model.embedding.register_forward_hook(self._see_embeddings)

    def taken(self, logits: Tensor) -> Signals:
        """What was seen, with the logits; it is forgotten here."""
        signals = Signals(logits, self._hidden, self._embeddings, self.labels)
        self._hidden, self._embeddings, self.labels = {}, None, None
        return signals

    def _see_layer(self, layer: Any, inputs: Any, output: tuple[Tensor, Any]) -> None:
        if self.open:
            self._hidden[layer.layer_number] = output[0]

    def _see_embeddings(self, embedding: Any, inputs: Any, output: Tensor) -> None:
        if self.open:
            self._embeddings = output
