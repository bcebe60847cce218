"""The sum of the losses that a student is trained to lower, and what it captures of the two models for them."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from compression_pipeline.config import Architecture, Chunks, LossConfig, Needs
from compression_pipeline.huggingface.conversion import stage_of
from compression_pipeline.losses import (
    Head,
    Heads,
    Loss,
    Signals,
    Words,
    build_loss,
    dynamic_factor,
    is_dynamic,
    token_share,
    token_weights,
    weighted_sum,
)
from compression_pipeline.teacher_logits import Likeliest

from .private import Criterion, all_tokens, replace_output_layer, to_words_of_rank
from .runtime import Runtime

_EMBEDDINGS = 0
"""The embedding among the layers, which are counted from 1."""


class Objective(Criterion):
    """The criterion of a distillation in ModelOpt's sense, which gives the loss as a scalar.

    What its losses need it captures by hooks, and only while a training step's forward pass runs (`captured`).
    Meanwhile the output layers compute nothing: they and the losses are computed together, chunk by chunk (`Heads`).

    Of several pipeline stages the last one computes it. What is captured on the others travels along with the hidden
    states of both models, and the gradients travel back (`packed`, `unpacked`).
    """

    def __init__(
        self,
        settings: Sequence[LossConfig],
        losses: Sequence[Loss],
        needs: Sequence[Needs],
        chunks: Chunks,
        words: Words,
    ) -> None:
        """Use `of`."""
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self._settings, self._needs, self._chunks, self._words = list(settings), list(needs), chunks, words
        self._student, self._teacher = _Taps(), _Taps()
        self._labels: Tensor | None = None
        self._weights: Tensor | None = None
        self._known: Likeliest | None = None

    @classmethod
    def of(
        cls, losses: Sequence[LossConfig], teacher: Architecture, student: Architecture, runtime: Runtime, *, seed: int
    ) -> "Objective":
        """The losses of a manifest, rules resolved. Their parameters are drawn from `seed`, the same on all ranks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = [build_loss(loss, teacher, student) for loss in losses]
        words = Words.of_rank(student.vocabulary_size, runtime.tensor_group)
        chunks = Chunks.of(student.vocabulary_size // runtime.share.ranks, on_gpu=runtime.on_gpu)
        made = cls(losses, built, [loss.needs(teacher, student) for loss in losses], chunks, words)
        return made.to(device=runtime.device, dtype=runtime.dtype) if runtime.last_stage else made

    def attach(self, student: Any, teacher: Any | None) -> None:
        """Hang hooks into two GPTModels for what is compared; into one, where batches tell of the other."""
        pairs = [pair for needs in self._needs for pair in needs.hidden]
        embeddings = any(needs.embeddings for needs in self._needs)
        self._student.attach(student, {mine for mine, _ in pairs}, embeddings=embeddings)
        if teacher is not None:
            self._teacher.attach(teacher, {theirs for _, theirs in pairs}, embeddings=embeddings)

    @property
    def widths(self) -> tuple[int, int]:
        """Channels of what a pipeline stage receives, and of what it sends."""
        received, sent = zip(self._student.widths, self._teacher.widths, strict=True)
        return sum(received), sum(sent)

    def packed(self, student: Tensor, teacher: Tensor) -> Tensor:
        """What a stage sends, [sequence, batch, width]: what both models gave, and all that was captured so far."""
        return torch.cat([*self._student.sent(student), *self._teacher.sent(teacher)], dim=-1)

    def unpacked(self, received: Tensor) -> tuple[Tensor, Tensor]:
        """What goes into both models, of what a stage received; the rest of it counts as captured here."""
        mine, theirs = received.split([self._student.widths[0], self._teacher.widths[0]], dim=-1)
        return self._student.received(mine), self._teacher.received(theirs.detach())  # nothing learns of its gradient

    @contextlib.contextmanager
    def captured(self, labels: Tensor, weights: Tensor | None = None, known: Likeliest | None = None) -> Iterator[None]:
        """Capture what both models compute inside this block. `labels`: the batch's next tokens, [batch, sequence];
        `weights`: what the losses of each count (`Batch.weights`); `known`: of a teacher that is not there
        (`Batch.teacher`).
        """
        self._student.open, self._teacher.open = True, True
        self._labels, self._weights = labels.transpose(0, 1), weights
        self._known = known.by_time() if known is not None else None
        try:
            yield
        finally:
            self._student.open, self._teacher.open = False, False

    def forward(self, student: object, teacher: object) -> Tensor:
        """The sum of the losses (`weighted_sum`), of what was captured. What the output layers gave is no logits."""
        mine, theirs, labels = self._student.taken(), self._teacher.taken(), cast("Tensor", self._labels)
        of_tokens, known = self._weights, self._known
        self._labels = self._weights = self._known = None
        beside = self._beside(mine, theirs, labels)
        per_token = [n for n in range(len(self._settings)) if n not in beside]
        if not per_token:
            return weighted_sum(self._settings, list(beside.values()), of_tokens)
        losses = [cast("Loss", self.losses[n]) for n in per_token]
        heads = Heads(losses, mine.head, known or theirs.head, labels, self._chunks, self._words)
        return self._sum(heads, per_token, beside, token_share(labels.numel(), of_tokens))

    def _beside(self, student: "_Seen", teacher: "_Seen", labels: Tensor) -> dict[int, Tensor]:
        """What losses that compare more than logits and labels give for every token, by their places in the sum."""
        places = [n for n, needs in enumerate(self._needs) if not needs.per_token]
        if not places:
            return {}
        whole = any(self._needs[n].logits or self._needs[n].labels for n in places)
        signals = (
            student.signals(labels, self._words, whole=whole),
            teacher.signals(None, self._words, whole=whole),
        )
        return {n: self.losses[n](*signals) for n in places}

    def _sum(self, heads: Heads, places: Sequence[int], beside: Mapping[int, Tensor], share: Tensor | float) -> Tensor:
        """The sum of the losses in these places, which `heads` computes, and of those beside."""

        def factor(values: Tensor) -> Tensor | float:
            of = {**dict(zip(places, values, strict=True)), **beside}
            return dynamic_factor(self._settings, [of[n] for n in range(len(of))], share)

        settings = [self._settings[n] for n in places]
        if any(map(is_dynamic, settings)):  # what they count depends on all values, and their gradients on that
            scale = factor(heads.values())
            total, _ = heads.weighted(token_weights(settings, share, scale))
        else:
            total, values = heads.weighted(token_weights(settings, share))
            scale = factor(values)
        others = token_weights([self._settings[n] for n in beside], share, scale)
        return reduce(torch.add, [(v * w).sum() for v, w in zip(beside.values(), others, strict=True)], total)


@dataclass(frozen=True)
class _Seen:
    """What one model computed of a batch."""

    head: Head
    hidden: Mapping[int, Tensor]
    embeddings: Tensor | None

    def signals(self, labels: Tensor | None, words: Words, *, whole: bool) -> Signals:
        """For losses that take the batch as a whole; with all logits of these words where one needs them."""
        logits = self.head.logits() if whole else self.head.hidden[..., :0]
        return Signals(logits, self.hidden, self.embeddings, labels, words)


class _Taps:
    """Hooks in one model, or in this rank's stage of it, and what they saw last. While they are open it makes no
    logits.
    """

    def __init__(self) -> None:
        self.open = False
        self._head: Head | None = None
        self._states: dict[int, Tensor] = {}

    def attach(self, model: Any, layers: set[int], *, embeddings: bool) -> None:
        """Hang hooks into the output layer, and those layers of these numbers, counted from 1, that this rank has."""
        self._stage, self._config = stage_of(model), model.config
        self._wanted = sorted(layers | {_EMBEDDINGS} if embeddings else layers)
        if self._stage.last:
            replace_output_layer(model, self._see_head)
        for layer in model.decoder.layers:
            if layer.layer_number in layers:
                layer.register_forward_hook(self._see_layer)
        if embeddings and self._stage.first:
            model.embedding.register_forward_hook(self._see_embeddings)

    def taken(self) -> _Seen:
        """What was seen; it is forgotten here."""
        states = {layer: all_tokens(state, self._config) for layer, state in self._states.items()}
        self._states = {}
        head, self._head = cast("Head", self._head), None
        return _Seen(head, states, states.pop(_EMBEDDINGS, None))

    @property
    def widths(self) -> tuple[int, int]:
        """Channels of what the stage receives, and of what it sends."""
        layers = self._stage.layers
        received, sent = (1 + len(self._before(layer)) for layer in (layers.start, layers.stop))
        return received * self._config.hidden_size, sent * self._config.hidden_size

    def received(self, tensor: Tensor) -> Tensor:
        """Split what the stage before has `sent` into the states that it counts, which are seen now, and its output."""
        hidden, *states = tensor.split(self._config.hidden_size, dim=-1)
        layer = self._stage.layers.start
        self._states = dict(zip(self._before(layer), states, strict=True))
        if layer in self._wanted:
            self._states[layer] = hidden
        return hidden

    def sent(self, output: Tensor) -> list[Tensor]:
        """The stage's output, and the states that were seen up to here; they are forgotten."""
        states, self._states = self._states, {}
        return [output, *(states[layer] for layer in self._before(self._stage.layers.stop))]

    def _before(self, layer: int) -> list[int]:
        """The states that go along with the output of this layer, which is none of them."""
        return [wanted for wanted in self._wanted if wanted < layer]

    def _see_head(self, hidden: Tensor, weight: Tensor) -> bool:
        if self.open:
            self._head = Head(to_words_of_rank(hidden, self._config), weight)
        return self.open

    def _see_layer(self, layer: Any, inputs: Any, output: tuple[Tensor, Any]) -> None:
        if self.open:
            self._states[layer.layer_number] = output[0]

    def _see_embeddings(self, embedding: Any, inputs: Any, output: Tensor) -> None:
        if self.open:
            self._states[_EMBEDDINGS] = output
