"""search: of the shapes that meet a student's target, measure those that are cut least, and tell the best.

The teacher's weights are read once and held in main memory. Each candidate is cut out of them in one shot, by the same
scores, as prune will cut the best one; what is measured of it is remembered, so an attempt that goes on measures no
candidate twice.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from compression_pipeline.config import (
    METHODS,
    Architecture,
    Candidate,
    DistillConfig,
    Phase,
    Precision,
    Search,
    SearchJob,
    SearchResult,
    Shape,
    loss_faults,
    resolved_losses,
)
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine, Model, State, Training, start_engine
from compression_pipeline.errors import Diverged, UserError
from compression_pipeline.huggingface.files import inspect
from compression_pipeline.importance import Scores, choose
from compression_pipeline.phases import measuring, ranking, scores
from compression_pipeline.phases.arithmetic import planned_precision
from compression_pipeline.phases.prune import check_sizes
from compression_pipeline.sizing import candidate
from compression_pipeline.sizing.sweep import swept_for
from compression_pipeline.text.batches import TrainingData, ValidationData, ValidationLoss, sequences_per_pass

FILE = "candidates.json"


def run(job: SearchJob, context: Context) -> SearchResult:
    """Measure the candidates and publish them as `search-<key>`.

    The artifact: `candidates.json`, all that were measured, the best first.

    Raises:
        UserError: no shape meets the target, before anything is loaded; a loss asks for what a candidate does not have;
            the text is too short; no candidate computes a number.
        Interrupted: told to stop; another attempt measures what is left.
    """
    files = inspect(context.store.open(job.teacher).model)
    teacher = files.architecture
    check_sizes(teacher, job.prune)
    search = Search.of(teacher, job.prune)
    if search is None:
        raise UserError("prune: has no target, so there is nothing to search; give target, or run prune")
    _check_losses(job, teacher, search.found.best)
    ranking.check_task(job)
    dtype, planned = ranking.stored_type(files), planned_precision(Phase.SEARCH)
    # As prune, whose scores these are.
    precision = planned if dtype is torch.bfloat16 else Precision.FP32
    seed = {"seed": job.distill.seed, "deterministic": job.distill.deterministic} if job.distill else {}
    with start_engine(job, context, precision=precision, **seed) as engine:
        measured = _Measuring(job, context, engine, teacher)
        teacher_loss = measured.teacher_loss()
        candidates = _best_first(measured.candidates(search.found.best), distilled=job.distill is not None)
        result = SearchResult(
            shapes=search.found.count,
            teacher_loss=teacher_loss,
            validation_sequences=len(measured.validation),
            candidates=candidates,
        )
        if engine.rank == 0:
            with context.store.draft("search", job.fingerprint) as draft:
                (draft.path / FILE).write_text(json.dumps(result.to_json(), indent=1) + "\n")
                metrics = {"precision": engine.precision.value, "scoresReused": measured.reused}
                published = draft.publish(
                    config=job.to_json(),
                    inputs={"data": job.data, "teacher": job.teacher, **scores.tasks_of(job), **measured.inputs},
                    result=result.to_json(),
                    metrics=metrics,
                )
            result = published.result(SearchResult)
    return result


def _check_losses(job: SearchJob, teacher: Architecture, students: Sequence[Architecture]) -> None:
    """Raises UserError with the first candidate that cannot be distilled by the losses."""
    for student in students if job.distill else ():
        faults = loss_faults(job.distill.losses, teacher, student, engine=job.engine) if job.distill else ()
        if said := "; ".join(f"distill.{field}: {sentence}" for field, sentence in faults):
            raise UserError(f"{said} (of the candidate with {Shape.of(student)})")


def _best_first(candidates: Sequence[Candidate], *, distilled: bool) -> list[Candidate]:
    """By their losses; those that computed no number, in their order, last. Raises UserError where all did."""

    def loss(one: Candidate) -> float:
        found = one.loss(distilled=distilled)
        return math.inf if found is None else found

    if all(math.isinf(loss(one)) for one in candidates):
        raise UserError(
            "prune.target: the loss of every candidate is no number; lower the cut or distill.learningRate, or check "
            "the teacher"
        )
    return sorted(candidates, key=loss)


@dataclass
class _Measuring:
    """What is needed to measure candidates: made once, and only if something is left to measure."""

    job: SearchJob
    context: Context
    engine: Engine
    teacher: Architecture
    inputs: dict[str, str] = field(default_factory=dict[str, str])
    """Artifacts with scores that were taken or made."""
    reused: bool = True
    """Whether no score was measured."""
    _scores: dict[int | None, Scores] = field(default_factory=dict[int | None, Scores])

    @cached_property
    def validation(self) -> ValidationData:
        return measuring.validation_of(self.job, self.context)

    @cached_property
    def sequences(self) -> ranking.Calibration:
        """Of the training text, for importance."""
        data, settings = self.context.store.open(self.job.data).data, self.job.prune
        found = ranking.Calibration(
            data,
            self.engine,
            self.job.sequence_length,
            settings.calibration_samples,
            attention=self.job.document_attention,
        )
        ranking.check_aggregation(found, settings)
        return found

    @cached_property
    def held(self) -> State:
        """The teacher's weights in main memory, in their own type; rank 0 has them."""
        folder = self._folder
        return self.engine.read(self.teacher, folder) if self.engine.rank == 0 else {}

    @property
    def _folder(self) -> Path:
        return self.context.store.open(self.job.teacher).model

    @property
    def _in_a_pass(self) -> int:
        """Sequences of one forward pass."""
        if self.job.distill is not None:
            return sequences_per_pass(self.job.distill, self.engine)
        return max(1, ranking.CALIBRATION_TOKENS // self.job.sequence_length)

    def teacher_loss(self) -> float:
        """Validation loss of the teacher. Raises UserError if it is no number."""

        def measure() -> ValidationLoss:
            model = self._filled(self.teacher, self.held)
            loss = self.engine.validate(model, self.validation, sequences_per_pass=self._in_a_pass)
            measuring.check_loss(
                self.engine, lambda: self.engine.state(model), self.teacher, loss.loss, whose="the teacher"
            )
            return loss

        loss = self._remembered("teacher", measure)
        self.engine.free()
        return loss

    def candidates(self, students: Sequence[Architecture]) -> list[Candidate]:
        """What is found of each."""
        found: list[Candidate] = []
        for student in students:
            found.append(self._candidate(student))
            self.context.events.progress(len(found), len(students), unit="candidates")
        return found

    def _candidate(self, student: Architecture) -> Candidate:
        name = "-".join(map(str, Shape.of(student)))
        pruned = self._remembered(f"pruned-{name}", lambda: self._pruned_loss(student))
        self.engine.free()
        settings, distilled = self.job.distill, None
        if settings is not None and not math.isfinite(pruned):
            self.context.events.warning(
                f"the candidate with {Shape.of(student)} is not distilled: its loss is {pruned}"
            )
        elif settings is not None:
            distilled = self._remembered(f"distilled-{name}", lambda: self._distilled_loss(student, settings))
            self.engine.free()
        found = {"pruned_loss": pruned, "distilled_loss": distilled}
        return candidate(student, self.job.prune, self.job.sequence_length).model_copy(
            update={name: loss for name, loss in found.items() if loss is not None and math.isfinite(loss)}
        )

    def _pruned_loss(self, student: Architecture) -> ValidationLoss:
        return self.engine.validate(self._cut(student), self.validation, sequences_per_pass=self._in_a_pass)

    def _distilled_loss(self, student: Architecture, settings: DistillConfig) -> ValidationLoss:
        data = self.context.store.open(self.job.data).data
        training = Training(
            fingerprint=self.job.fingerprint,
            settings=settings,
            architecture=student,
            data=TrainingData(
                data,
                settings,
                self.engine,
                sequence_length=self.job.sequence_length,
                attention=self.job.document_attention,
            ),
            validation=self.validation,
            check=lambda loss, state: None,  # its loss after pruning is a number
        )
        small, big = self._cut(student), self._filled(self.teacher, self.held)
        losses = resolved_losses(settings.losses, self.teacher, student)
        try:
            history, _ = self.engine.distill(small, big, training, of=self.teacher, losses=losses)
            last = history.validation[-1]
            found = ValidationLoss(last.loss, last.by_source)
        except Diverged as fault:  # on every rank alike; the others may be sound
            self.context.events.warning(f"the candidate with {Shape.of(student)} comes last: {fault}")
            found = ValidationLoss(math.nan)
        # Before its loss is noted: a candidate that an attempt remembers has left no checkpoint for the next to take.
        self._remove_checkpoints()
        return found

    def _cut(self, student: Architecture) -> Model:
        """The student as prune will make it, in a model of its own: one that was cut may not be fit for training."""
        # In one shot, whatever the iterations of the prune that comes after.
        sized = self.job.prune.of_shape(self.teacher, student).model_copy(update={"iterations": 1})
        choice = choose(self._scores_for(self.job.model_copy(update={"prune": sized})), self.teacher, sized)
        whole = self._filled(self.teacher, self.held)
        cut = self.engine.cut(whole, self.teacher, student, choice, divisor=sized.divisor)
        return self._filled(student, self.engine.state(cut))

    def _scores_for(self, job: SearchJob) -> Scores:
        """The scores for a job of these sizes, found or measured once; some methods measure as many layers as go."""
        sweeps = METHODS[job.prune.importance.depth].sweeps
        key = swept_for(scores.dropped(job.prune, self.teacher)) if sweeps else None
        if key not in self._scores:
            found = scores.find_or_measure(
                job,
                self.context,
                self.engine,
                self.teacher,
                lambda axes: ranking.measure_importance(
                    job,
                    self.context,
                    self.engine,
                    self._filled(self.teacher, self.held),
                    self.teacher,
                    self.sequences,
                    axes,
                ),
            )
            self._scores[key] = found.scores
            self.inputs |= found.inputs
            self.reused = self.reused and found.seconds is None
        return self._scores[key]

    def _filled(self, architecture: Architecture, state: State) -> Model:
        model = self.engine.build(architecture, sequence_length=self.job.sequence_length)
        self.engine.fill(model, state, measuring.torch_type(self.engine.precision))
        return model

    def _remembered(self, name: str, measure: Callable[[], ValidationLoss]) -> float:
        measured_on = {
            "teacher": self.context.store.open(self.job.teacher).content,
            "sequences": len(self.validation),
            "sequencesPerPass": self._in_a_pass,
            "ranks": self.engine.world_size,
        }
        found = measuring.remembered(
            self.context, self.job.fingerprint, self.engine, name, measured_on, measure, failures=True
        )
        return found.loss

    def _remove_checkpoints(self) -> None:
        """Those of a candidate that is done: no other one goes on from them. Every rank calls it."""
        if self.engine.rank == 0 and self.context.owns_step():
            for folder in self.context.store.earlier_attempts(self.job.fingerprint):
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        self.engine.agree(None)
