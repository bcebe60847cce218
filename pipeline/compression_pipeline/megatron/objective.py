"""The sum of the losses that a student is trained to lower, and what it captures of the two models for them."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from compression_pipeline.config import Architecture, Balance, LossConfig, Needs
from compression_pipeline.losses import Loss, Signals, build_loss

from .private import Criterion
from .runtime import Runtime


class Objective(Criterion):
    """The criterion of a distillation in ModelOpt's sense: given both models' logits, the loss as a scalar.

    What else its losses need it captures by hooks, and only while a training step's forward pass runs (`captured`).
    """

    def __init__(
        self, losses: Sequence[Loss], weights: Sequence[float], needs: Sequence[Needs], dynamic: Sequence[bool]
    ) -> None:
        """Use `of`; this is for losses that no manifest can name."""
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self._weights, self._needs, self._dynamic = list(weights), list(needs), list(dynamic)
        self._student, self._teacher = _Taps(), _Taps()

    @classmethod
    def of(
        cls, losses: Sequence[LossConfig], teacher: Architecture, student: Architecture, runtime: Runtime, *, seed: int
    ) -> "Objective":
        """The losses of a manifest, rules resolved. Their parameters are drawn from `seed`, the same on all ranks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = [build_loss(loss, teacher, student) for loss in losses]
        needs = [loss.needs(teacher, student) for loss in losses]
        dynamic = [loss.balance is Balance.DYNAMIC for loss in losses]
        made = cls(built, [loss.weight for loss in losses], needs, dynamic)
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
    def captured(self, labels: Tensor) -> Iterator[None]:
        """Capture what both models compute inside this block. `labels`: the batch's next tokens, [batch, sequence]."""
        self._student.open, self._teacher.open = True, True
        self._student.labels = labels.transpose(0, 1)
        try:
            yield
        finally:
            self._student.open, self._teacher.open = False, False

    def forward(self, student: tuple[Tensor, Any], teacher: tuple[Tensor, Any]) -> Tensor:
        """The sum of the losses' means over all tokens of the batch (there is no padding, so none is masked).

        Args:
            student: what its output layer gave: logits [sequence, batch, vocabulary], and a bias.
            teacher: what its output layer gave.
        """
        signals = self._student.taken(student[0]), self._teacher.taken(teacher[0].detach())
        means = [loss(*signals).transpose(0, 1).contiguous().mean() for loss in self.losses]
        return reduce(torch.add, self._weighted(means))

    def _weighted(self, means: list[Tensor]) -> Iterator[Tensor]:
        """The terms of the sum. The dynamic ones have one factor together: with one of its own a term that is nearly 0
        (a student's embeddings that are still the teacher's) would have a gradient without bounds.
        """
        terms = list(zip(means, self._weights, self._needs, self._dynamic, strict=True))
        on_logits = sum(mean.detach() for mean, _, needs, dynamic in terms if needs.logits and not dynamic)
        others = sum(mean.detach() for mean, _, _, dynamic in terms if dynamic)
        for mean, weight, _, dynamic in terms:
            scaled = mean * (on_logits / others) if dynamic and others > 0 else mean
            yield scaled if weight == 1 else weight * scaled


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
