"""prune: measure what matters, cut the student out of the teacher, check what came out."""

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compression_pipeline.config import (
    ASKING,
    Aggregation,
    Architecture,
    Axis,
    DocumentAttention,
    Phase,
    Precision,
    PruneConfig,
    PruneJob,
    PruneResult,
    student_architecture,
    student_faults,
)
from compression_pipeline.config.base import indivisible
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine, Model, start_engine
from compression_pipeline.engines.soundness import check_sound
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.files import CheckpointFiles, inspect
from compression_pipeline.huggingface.writer import save_tensors, write_checkpoint
from compression_pipeline.importance import (
    BLOCKS,
    Choice,
    Samples,
    Scores,
    block_score,
    choose,
    higher_is_better,
)
from compression_pipeline.importance.base import Batches
from compression_pipeline.phases import measuring, scores
from compression_pipeline.phases.arithmetic import planned_precision
from compression_pipeline.phases.cutting import Cut, cutting_steps
from compression_pipeline.phases.drawing import try_to_draw
from compression_pipeline.phases.notes import Notes
from compression_pipeline.report import IMPORTANCE
from compression_pipeline.tasks.live import live_model
from compression_pipeline.tasks.shallow import ShallowScores
from compression_pipeline.text.batches import Batch, MixedText, Place, ValidationData

CALIBRATION_TOKENS = 8192
"""Tokens in one forward pass of the calibration, about; at least one sequence."""

TORCH_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def run(job: PruneJob, context: Context) -> PruneResult:
    """Make the student `job.prune` of the teacher and publish it.

    The artifact: `model/`, `importance.safetensors` (scores by axis), `chosen.json` (what was kept), and
    `importance.html`, which shows both.

    Raises UserError, before anything is loaded, where the teacher can't give such a student, or where the GPU can't be
    used whose arithmetic the step's key counts on.
    """
    data, teacher_artifact = context.store.open(job.data), context.store.open(job.teacher)
    files = inspect(teacher_artifact.model)
    teacher, prune = files.architecture, job.prune
    check_sizes(teacher, prune)
    student = student_architecture(teacher, prune)
    dtype = stored_type(files)
    # Weights are only moved, never rounded: float32 arithmetic unless they are bfloat16 already.
    planned = planned_precision(Phase.PRUNE)
    precision = planned if dtype is torch.bfloat16 else Precision.FP32
    check_task(job)
    with start_engine(job, context, precision=precision) as engine:
        sequences = Calibration(
            data.data, engine, job.sequence_length, prune.calibration_samples, attention=job.document_attention
        )
        check_aggregation(sequences, prune)
        model = measuring.loaded(engine, teacher, teacher_artifact.model, sequence_length=job.sequence_length)

        def measure(model: Model, of: Architecture, cut: PruneConfig, step: int, axes: Collection[Axis]) -> Scores:
            held_out = HeldOutText(data.data, engine, job, context)
            samples = Samples(
                sequences.batches(context),
                held_out,
                held_out.tell,
                dropped=scores.dropped(cut, of),
                notes=lambda name: notes_of(job, context, engine, f"{name}-{step}"),
                asked=asked(job, context, engine, model, of, teacher_artifact.model, dtype),
            )
            return _measured(engine, model, of, samples, prune, axes)

        first, *later = cutting_steps(teacher, prune)
        found = scores.find_or_measure(
            job, context, engine, teacher, lambda axes: measure(model, teacher, first, 1, axes)
        )
        choice, shape = choose(found.scores, teacher, first), student_architecture(teacher, first)
        model = engine.cut(model, teacher, shape, choice, divisor=prune.divisor)
        cuts = [Cut(shape, found.scores, choice.layers)]
        for step, cut in enumerate(later, start=2):
            cut_before, model = model, engine.build(shape, sequence_length=job.sequence_length)
            engine.fill(model, engine.state(cut_before), measuring.torch_type(engine.precision))
            del cut_before
            engine.free()
            again = measure(model, shape, cut, step, tuple(Axis))
            chosen, after = choose(again, shape, cut), student_architecture(shape, cut)
            model = engine.cut(model, shape, after, chosen, divisor=prune.divisor)
            choice, shape = choice.then(chosen), after
            cuts.append(Cut(shape, again, choice.layers))
        result = PruneResult(
            student=student,
            parameters=student.parameters,
            compression_ratio=student.parameters / teacher.parameters,
            kept_layers=[layer + 1 for layer in choice.layers],
            scores_reused=found.seconds is None,
            block_score=block_score(found.scores, choice.layers) if scores.dropped(prune, teacher) else None,
        )
        if engine.rank == 0:
            metrics = {
                "calibrationSamples": sequences.count,
                "calibrationTokens": sequences.count * job.sequence_length,
                "scoresReused": list(found.reused),
                "precision": engine.precision.value,
            }
            if found.seconds is not None:
                metrics["importanceSeconds"] = found.seconds
            if planned is not Precision.AUTO:
                metrics["plannedPrecision"] = planned.value
            with context.store.draft("prune", job.fingerprint) as draft:
                write_checkpoint(
                    engine.tensors(engine.state(model), student),
                    student,
                    draft.path / "model",
                    template=teacher_artifact.model,
                    dtype=dtype,
                )
                write_scores(cuts, choice, job, draft.path)
                draw_importance(draft.path, teacher, prune, result.kept_layers, context)
                published = draft.publish(
                    config=job.to_json(),
                    inputs={"data": job.data, "teacher": job.teacher, **scores.tasks_of(job), **found.inputs},
                    result=result.to_json(),
                    metrics=metrics,
                )
            result = published.result(PruneResult)  # another job's, where that was first
    return result


def _measured(
    engine: Engine, model: Model, teacher: Architecture, samples: Samples, prune: PruneConfig, axes: Collection[Axis]
) -> Scores:
    """The scores of some axes. Raises UserError where they are no numbers, which says what is to blame."""
    found = engine.measure(model, teacher, samples, prune.importance, axes)
    for name, tensor in found.items():
        check_sound(
            lambda: engine.tensors(engine.state(model), teacher),
            float(tensor.double().sum()),
            whose="the teacher",
            what=f"the importance of its {name}",
            precision=engine.precision,
        )
    return found


def check_sizes(teacher: Architecture, prune: PruneConfig) -> None:
    """Everything that can be wrong with the student's sizes, before anything is loaded.

    Raises UserError with all faults.
    """
    faults = [f"{field}: {sentence}" for field, sentence in student_faults(teacher, prune)]
    for field, wanted, has in (
        ("hiddenSize", prune.hidden_size, teacher.hidden_size),
        ("ffnHiddenSize", prune.ffn_hidden_size, teacher.ffn_hidden_size),
    ):
        if wanted is not None and wanted != has and wanted % prune.divisor:
            said = indivisible("%d is not divisible by %d (divisor)", (wanted, prune.divisor), wanted, prune.divisor)
            faults.append(f"{field}: {said}")
    if faults:
        raise UserError("; ".join(f"prune.{fault}" for fault in faults))


def check_task(job: PruneJob) -> None:
    """Raises UserError where layers are to be ranked by a task and the job was given none."""
    if job.prune.importance.depth in ASKING and (job.evaluate is None or job.tasks is None):
        raise UserError(
            f"prune.importance.depth: {job.prune.importance.depth} needs a task of evaluate.tasks, and the job has "
            "none; name one, with an operator of this version"
        )


def asked(
    job: PruneJob,
    context: Context,
    engine: Engine,
    model: Model,
    architecture: Architecture,
    template: Path,
    dtype: torch.dtype,
) -> ShallowScores | None:
    """What scores the model by the job's task; None without one."""
    if job.evaluate is None or job.tasks is None:
        return None

    def load() -> tuple[Any, Any]:
        from transformers import AutoTokenizer

        tensors = engine.tensors(engine.state(model), architecture)
        computed = measuring.torch_type(engine.precision)
        scored = live_model(
            tensors, architecture, template=template, rounded=dtype, computed=computed, device=engine.device
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

    def __init__(self, folder: Path, place: Place, job: PruneJob, context: Context) -> None:
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


def notes_of(job: PruneJob, context: Context, engine: Engine, name: str) -> Notes:
    """This rank's notes of a measurement."""
    measured = {"rank": engine.data_rank, "ranks": engine.data_size, "precision": engine.precision.value}
    return Notes(context, job.fingerprint, f"{name}-{engine.data_rank}", measured)


def write_scores(cuts: Sequence[Cut], choice: Choice, job: PruneJob, folder: Path) -> None:
    """Scores, choice and methods, beside the model; and what was measured of each block of layers (from 1).

    Scores of the teacher as it was are importance.safetensors; those of the second cut importance-2.safetensors.
    """
    scores, prune = cuts[0].scores, job.prune
    for step, cut in enumerate(cuts, start=1):
        save_tensors(cut.scores, folder / ("importance.safetensors" if step == 1 else f"importance-{step}.safetensors"))
    methods = {axis.value: name for axis, name in prune.importance.by_axis().items()}
    told: dict[str, Any] = {"methods": methods, "aggregation": prune.importance.aggregation.to_json()}
    if BLOCKS in scores:
        rows = scores[BLOCKS].tolist()
        told["blocks"] = [{"first": int(first), "layers": int(n), "value": value} for first, n, value in rows]
        told["higherIsBetter"] = higher_is_better(scores)
    if job.evaluate is not None:
        told["task"] = job.evaluate.tasks[0].name
    if len(cuts) > 1:
        told["steps"] = [cut.to_json() for cut in cuts]
    (folder / "chosen.json").write_text(json.dumps({**choice.to_json(), **told}) + "\n")


def draw_importance(
    folder: Path, teacher: Architecture, prune: PruneConfig, kept_layers: Sequence[int], context: Context
) -> None:
    """Draw the page that shows the scores and the choice, which are written in `folder` by now."""

    def write() -> None:
        from compression_pipeline.report.write import write_importance

        write_importance(folder, teacher, prune, kept_layers)

    page = folder / IMPORTANCE
    try_to_draw(f"the page {IMPORTANCE}", write, page, context, safe="the student and its scores are whole")
