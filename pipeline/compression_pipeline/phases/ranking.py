"""What importance is measured on, by the phases that cut by it: text of the training data, held-out text, a task."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compression_pipeline.config import ASKING, Aggregation, Architecture, Axis, DocumentAttention, PruneConfig
from compression_pipeline.config.chunks import CALIBRATION_TOKENS
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine, Model
from compression_pipeline.engines.soundness import check_sound
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.files import CheckpointFiles, inspect
from compression_pipeline.importance import Samples, Scores
from compression_pipeline.importance.base import Batches
from compression_pipeline.phases import measuring, scores
from compression_pipeline.phases.notes import Notes
from compression_pipeline.tasks.live import live_model
from compression_pipeline.tasks.shallow import ShallowScores
from compression_pipeline.text.batches import Batch, Place, ValidationData
from compression_pipeline.text.shuffled import MixedText

TORCH_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def measure_importance(
    job: scores.Job,
    context: Context,
    engine: Engine,
    model: Model,
    architecture: Architecture,
    sequences: "Calibration",
    axes: Collection[Axis],
    *,
    step: int = 1,
) -> Scores:
    """The scores of some axes of `model`, for the sizes of `job.prune`. `step`: of a prune in several cuts.

    Raises UserError where they are no numbers, which says what is to blame; Interrupted on SIGTERM.
    """
    held_out = HeldOutText(context.store.open(job.data).data, engine, job, context)
    samples = Samples(
        sequences.batches(context),
        held_out,
        held_out.tell,
        dropped=scores.dropped(job.prune, architecture),
        notes=lambda name: notes_of(job, context, engine, f"{name}-{step}"),
        asked=asked(job, context, engine, model, architecture),
    )
    found = engine.measure(model, architecture, samples, job.prune.importance, axes)
    for name, tensor in found.items():
        check_sound(
            lambda: engine.tensors(engine.state(model), architecture),
            float(tensor.double().sum()),
            whose="the teacher",
            what=f"the importance of its {name}",
            precision=engine.precision,
        )
    return found


def check_task(job: scores.Job) -> None:
    """Raises UserError where layers are to be ranked by a task and the job was given none."""
    if job.prune.importance.depth in ASKING and (job.evaluate is None or job.tasks is None):
        raise UserError(
            f"prune.importance.depth: {job.prune.importance.depth} needs a task of evaluate.tasks, and the job has "
            "none; name one, with an operator of this version"
        )


def asked(
    job: scores.Job, context: Context, engine: Engine, model: Model, architecture: Architecture
) -> ShallowScores | None:
    """What scores the model by the job's task; None without one."""
    if job.evaluate is None or job.tasks is None:
        return None
    template = context.store.open(job.teacher).model

    def load() -> tuple[Any, Any]:
        from transformers import AutoTokenizer

        tensors = engine.tensors(engine.state(model), architecture)
        computed, rounded = measuring.torch_type(engine.precision), stored_type(inspect(template))
        scored = live_model(
            tensors, architecture, template=template, rounded=rounded, computed=computed, device=engine.device
        )
        return scored, AutoTokenizer.from_pretrained(template, local_files_only=True, trust_remote_code=False)

    return ShallowScores(
        load,
        context.store.open(job.tasks).path,
        job.evaluate,
        rank=engine.data_rank,
        ranks=engine.data_size,
        tick=lambda done, total: context.stop_if_requested(),
    )


def check_aggregation(sequences: "Calibration", prune: PruneConfig) -> None:
    """Raises UserError where the text has one sequence, over which no importance varies."""
    if sequences.count == 1 and prune.importance.aggregation.batch is Aggregation.VARIANCE:
        raise UserError(
            "dataset: the training text is one sequence, and the variance over one sequence "
            "(prune.importance.aggregation.batch) is 0 for all; lower sequenceLength, give more text, or choose L2"
        )


def stored_type(files: CheckpointFiles) -> torch.dtype:
    """The type of a checkpoint's weights; float32 where they are of several."""
    kinds = {entry.dtype for entry in files.tensors.values()}
    return TORCH_TYPES.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32


class _Walked(Iterable[tuple[Tensor, Tensor]]):
    """What makes its items anew each time it is walked."""

    def __init__(self, walk: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> None:
        self._walk = walk

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._walk()


class Calibration:
    """The sequences that importance is measured on, shared among the ranks."""

    def __init__(
        self,
        folder: Path,
        place: Place,
        sequence_length: int,
        samples: int,
        *,
        attention: DocumentAttention = DocumentAttention.SHARED,
    ) -> None:
        """A sample of the training text by the weights of its sources, no sequence twice; fewer than `samples` where
        there are fewer.

        It is drawn for calibration alone: whatever the seed of a training, these are not the sequences it begins with.

        Raises UserError where the text is shorter than one sequence.
        """
        self._text = MixedText(folder, sequence_length=sequence_length, drawn_for=("calibration",))
        self._chosen = self._text.sample(samples)
        self.count = len(self._chosen)
        self._place = place
        self._size = max(1, CALIBRATION_TOKENS // sequence_length)
        self._isolated = attention is DocumentAttention.ISOLATED
        self._positions = torch.arange(sequence_length, device=place.device)

    def batches(self, context: Context) -> Batches:
        """This rank's, to be walked any number of times, with progress told; that raises Interrupted on SIGTERM."""
        return _Walked(lambda: self._batches(context))

    def _batches(self, context: Context) -> Iterator[tuple[Tensor, Tensor]]:
        mine = range(self._place.data_rank, self.count, self._place.data_size)
        for start in range(0, len(mine), self._size):
            context.stop_if_requested()
            chosen = [self._chosen[index] for index in mine[start : start + self._size]]
            tokens = torch.stack([self._text.texts[text][number][:-1] for text, number in chosen])
            positions = self._positions.expand(len(tokens), -1)
            if self._isolated:
                positions = torch.stack([self._text.texts[text].positions(number) for text, number in chosen])
            yield tokens.to(self._place.device), positions.to(self._place.device)
            done = min(self.count, (start + len(tokens)) * self._place.data_size)
            context.events.progress(done, self.count, unit="samples")


class HeldOutText:
    """This rank's sequences of the held-out text, for methods that measure a loss on it; read once it is walked."""

    def __init__(self, folder: Path, place: Place, job: scores.Job, context: Context) -> None:
        """As many as the job asks for, or all there are."""
        self._folder = folder
        self._place = place
        self._job = job
        self._context = context
        self._size = max(1, CALIBRATION_TOKENS // job.sequence_length)
        self._began: tuple[float, int] | None = None

    @cached_property
    def _data(self) -> ValidationData:
        """Raises UserError where the text is shorter than one sequence."""
        wanted = self._job.prune.importance.held_out_sequences
        length, attention = self._job.sequence_length, self._job.document_attention
        return ValidationData(self._folder, sequence_length=length, samples=wanted, attention=attention)

    @property
    def _starts(self) -> range:
        mine, size = self._place.data_rank, self._place.data_size
        return range(mine * self._size, len(self._data), size * self._size)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Batch]:
        for start in self._starts:
            yield self._data.batch(range(start, min(start + self._size, len(self._data))), self._place.device)

    def tell(self, done: int, total: int) -> None:
        """Progress of a sweep, with the time that is left. Raises Interrupted on SIGTERM."""
        self._context.stop_if_requested()
        began, first = self._began = self._began or (time.monotonic(), done)  # the clock starts with the first
        left = (time.monotonic() - began) * (total - done) / max(done - first, 1)
        self._context.events.progress(done, total, unit="blocks", eta_seconds=left, doing="leave out layers")


def notes_of(job: scores.Job, context: Context, engine: Engine, name: str) -> Notes:
    """This rank's notes of a measurement."""
    measured = {"rank": engine.data_rank, "ranks": engine.data_size, "precision": engine.precision.value}
    return Notes(context, job.fingerprint, f"{name}-{engine.data_rank}", measured)
