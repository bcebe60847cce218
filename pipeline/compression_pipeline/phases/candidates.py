"""What a search measures of the teacher and of each candidate.

The teacher's weights are read once and held in main memory. Each candidate is cut out of them in one shot, by the same
scores, as prune will cut the best one; what is measured of it is remembered, so an attempt that goes on measures no
candidate twice.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from compression_pipeline.config import (
    METHODS,
    Architecture,
    Candidate,
    DistillConfig,
    SearchJob,
    Shape,
    TaskScore,
    resolved_losses,
)
from compression_pipeline.config.chunks import CALIBRATION_TOKENS
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine, Model, State, Training
from compression_pipeline.errors import Diverged
from compression_pipeline.huggingface.files import inspect
from compression_pipeline.importance import Scores, choose
from compression_pipeline.phases import measuring, ranking, scores
from compression_pipeline.phases.remembering import Measured, remembered
from compression_pipeline.sizing import candidate
from compression_pipeline.sizing.sweep import swept_for
from compression_pipeline.text.batches import TrainingData, ValidationData, ValidationLoss, sequences_per_pass


@dataclass
class Measuring:
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
        return max(1, CALIBRATION_TOKENS // self.job.sequence_length)

    def whole(self) -> Measured:
        """What is found of the teacher. Raises UserError if its validation loss is no number."""

        def measure() -> Measured:
            loss = self._loss_of_teacher()
            self.engine.free()
            return Measured(loss, self._score(self.held, self.teacher))

        found = self._remembered("teacher", measure)
        self.engine.free()
        return found

    def _loss_of_teacher(self) -> ValidationLoss:
        engine, model = self.engine, self._filled(self.teacher, self.held)
        loss = engine.validate(model, self.validation, sequences_per_pass=self._in_a_pass)
        measuring.check_loss(engine, lambda: engine.state(model), self.teacher, loss.loss, whose="the teacher")
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
        settings, distilled = self.job.distill, None
        compared = pruned = self._remembered(f"pruned-{name}", lambda: self._pruned(student, scored=settings is None))
        self.engine.free()
        if settings is not None and not math.isfinite(pruned.loss.loss):
            self.context.events.warning(
                f"the candidate with {Shape.of(student)} is not distilled: its loss is {pruned.loss.loss}"
            )
        elif settings is not None:
            compared = distilled = self._remembered(f"distilled-{name}", lambda: self._distilled(student, settings))
            self.engine.free()
        score = compared.score
        found = {
            "pruned_loss": pruned.loss.loss,
            "distilled_loss": distilled and distilled.loss.loss,
            "score": score and score.score,
            "score_stderr": score and score.stderr,
        }
        return candidate(student, self.job.prune, self.job.sequence_length).model_copy(
            update={name: figure for name, figure in found.items() if figure is not None and math.isfinite(figure)}
        )

    def _pruned(self, student: Architecture, *, scored: bool) -> Measured:
        model = self._cut(student)
        loss = self.engine.validate(model, self.validation, sequences_per_pass=self._in_a_pass)
        if not scored or self.job.ranked_by is None or not math.isfinite(loss.loss):
            return Measured(loss)
        # What is scored is a copy: the device would hold both.
        kept = self.engine.state(model) if self.engine.rank == 0 else {}
        weights = {name: tensor.detach().cpu() for name, tensor in kept.items()}
        del model, kept
        self.engine.free()
        return Measured(loss, self._score(weights, student))

    def _distilled(self, student: Architecture, settings: DistillConfig) -> Measured:
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
            history, weights = self.engine.distill(small, big, training, of=self.teacher, losses=losses)
            del small, big
            self.engine.free()
            last = history.validation[-1]
            found = Measured(ValidationLoss(last.loss, last.by_source), self._score(weights, student))
        except Diverged as fault:  # on every rank alike; the others may be sound
            self.context.events.warning(f"the candidate with {Shape.of(student)} comes last: {fault}")
            found = Measured(ValidationLoss(math.nan))
        # Before its loss is noted: a candidate that an attempt remembers has left no checkpoint for the next to take.
        self._remove_checkpoints()
        return found

    def _score(self, weights: State, model: Architecture) -> TaskScore | None:
        """What the model of these weights scores in the task that candidates are ranked by; None without one."""
        asked, tasks = self.job.ranked_by, self.job.tasks
        if asked is None or tasks is None:
            return None

        def score(tick: Callable[[], None]) -> TaskScore:
            from compression_pipeline.tasks.live import score_live  # which takes seconds to import

            [found] = score_live(
                self.engine.tensors(weights, model),
                model,
                template=self._folder,
                tasks=self.context.store.open(tasks).path,
                settings=asked,
                rounded=ranking.stored_type(inspect(self._folder)),
                precision=self.engine.precision,
                device=self.engine.device,
                tick=lambda done, total: tick(),
            )
            return found

        return self.engine.on_rank_0(score)

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

    def _remembered(self, name: str, measure: Callable[[], Measured]) -> Measured:
        measured_on = {
            "teacher": self.context.store.open(self.job.teacher).content,
            "sequences": len(self.validation),
            "sequencesPerPass": self._in_a_pass,
            "ranks": self.engine.world_size,
        }
        return remembered(self.context, self.job.fingerprint, self.engine, name, measured_on, measure, failures=True)

    def _remove_checkpoints(self) -> None:
        """Those of a candidate that is done: no other one goes on from them. Every rank calls it."""
        if self.engine.rank == 0 and self.context.owns_step():
            for folder in self.context.store.earlier_attempts(self.job.fingerprint):
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        self.engine.agree(None)
