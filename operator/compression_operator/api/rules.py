"""Where a run runs, and the rules that hold over its whole spec (those of one part sit on that part's model)."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

from compression_pipeline.config import PHASES, Parallelism, Rule, TrainingConfig
from compression_pipeline.config.base import cel_format, cel_indivisible, indivisible
from compression_pipeline.config.schemes import Role, SourceScheme, forms, unreachable_from

from .phase_settings import CEL_PER_NODE
from .task_rules import task_rules

if TYPE_CHECKING:
    from .spec import CompressionRunSpec, Student


class World(StrEnum):
    """Where a run runs. It decides which sources can be reached and what must be given."""

    LOCAL = "local"
    CLUSTER = "cluster"


def spec_rules() -> tuple[Rule, ...]:
    """The rules of CompressionRunSpec."""
    return (
        Rule(
            "distill",
            _every_student_is_distilled,
            cel="has(self.distill) || self.students.all(student, has(student.distill))",
            message=cel_format(_UNDISTILLED, "self.students.filter(student, !has(student.distill))[0].name"),
        ),
        Rule.of(
            "students",
            "accept.extendSteps trains on at distill.minLearningRate, which is 0 for one of them; set it above 0",
            lambda spec: not any(_extends_by_nothing(spec, student) for student in spec.students),
            f"!self.students.exists(student, {_CEL_EXTENDS} && {_CEL_BY_NOTHING})",
        ),
        *task_rules(),
        *(_splits_over_ranks(phase) for phase, spec in PHASES.items() if spec.trains),
        _students_split_over_ranks(),
        *_reachable(World.CLUSTER),
        *_reachable(World.LOCAL),
        Rule(
            "storage",
            lambda spec: _STORAGE if spec.storage is None else None,
            cel="has(self.storage)",
            sentence=_STORAGE,
            where="cluster",
        ),
    )


_UNDISTILLED = "is required, because student %s has no distill of its own"
_STORAGE = "is required on a cluster; name the claim that keeps artifacts: persistentVolumeClaim.claimName"


def _every_student_is_distilled(spec: CompressionRunSpec) -> str | None:
    without = [student.name for student in spec.students if student.distill is None]
    if spec.distill is not None or not without:
        return None
    return _UNDISTILLED % without[0]


_CEL_EXTENDS = (
    "(has(student.accept) ? has(student.accept.extendSteps) : has(self.accept) && has(self.accept.extendSteps))"
)
_CEL_BY_NOTHING = (
    "(has(student.distill) ? student.distill.minLearningRate == 0.0 "
    ": has(self.distill) && self.distill.minLearningRate == 0.0)"
)


def _extends_by_nothing(spec: CompressionRunSpec, student: Student) -> bool:
    accept, distill = student.accept or spec.accept, student.distill or spec.distill
    extends = accept is not None and accept.extend_steps is not None
    return extends and distill is not None and distill.min_learning_rate == 0


def _unsplit_template(phase: str, of_student: bool = False) -> str:
    owner = "distill.globalBatchSize of student %s: " if of_student else ""
    return f"{owner}%d is not divisible by microBatchSize x copies of the model (%d x %d, see phases.{phase})"


def _unsplit(spec: CompressionRunSpec, phase: str, training: TrainingConfig | None) -> bool:
    """Whether a batch of whole micro-batches (anything else is told elsewhere) does not split over its ranks."""
    settings = spec.phases.of(phase)
    if training is None or training.global_batch_size % training.micro_batch_size:
        return False
    if settings.split.copies(nodes=settings.nodes, per_node=settings.per_node) is None:
        return False
    return training.global_batch_size % (training.micro_batch_size * spec.phases.of(phase).layout.data) != 0


def _unsplit_sentence(spec: CompressionRunSpec, phase: str, training: TrainingConfig, *student: str) -> str:
    batch, micro, count = training.global_batch_size, training.micro_batch_size, spec.phases.of(phase).layout.data
    template = _unsplit_template(phase, of_student=bool(student))
    return indivisible(template, (*student, batch, micro, count), batch, micro * count)


def _cel_copies(phase: str) -> str:
    """`PhaseSettings.layout.data` as CEL, which cannot ask it."""
    return f"{_cel_ranks(phase)} / {_cel_split(phase)}"


def _cel_ranks(phase: str) -> str:
    settings = f"self.phases.{phase}"
    return f"({settings}.nodes * {CEL_PER_NODE.format(settings)})"


def _cel_split(phase: str) -> str:
    """`Parallelism.per_copy` as CEL."""
    return f"({' * '.join(f'self.phases.{phase}.parallelism.{field}' for field in Parallelism.model_fields)})"


def _cel_splits(phase: str, training: str) -> str:
    batch, micro, count = f"{training}.globalBatchSize", f"{training}.microBatchSize", _cel_copies(phase)
    ranks, split = _cel_ranks(phase), _cel_split(phase)
    # Which the schema tells already, or the rule of how a copy is split.
    out_of_bounds = f"{batch} < 1 || {micro} < 1 || {ranks} < 1 || {split} < 1 || {ranks} % {split} != 0"
    return f"!has({training}) || {out_of_bounds} || {batch} % {micro} != 0 || {batch} % ({micro} * {count}) == 0"


def _cel_unsplit_sentence(phase: str, training: str, *student: str) -> str:
    batch, micro, count = f"{training}.globalBatchSize", f"{training}.microBatchSize", _cel_copies(phase)
    template = _unsplit_template(phase, of_student=bool(student))
    return cel_indivisible(template, (*student, batch, micro, count), batch, f"{micro} * {count}")


def _splits_over_ranks(phase: str) -> Rule:
    """A training phase's global batch splits over its ranks: on a cluster, for GPUs are taken as found locally."""

    def check(spec: CompressionRunSpec) -> str | None:
        training = getattr(spec, phase)
        return _unsplit_sentence(spec, phase, training) if _unsplit(spec, phase, training) else None

    return Rule(
        f"{phase}.globalBatchSize",
        check,
        cel=_cel_splits(phase, f"self.{phase}"),
        message=_cel_unsplit_sentence(phase, f"self.{phase}"),
        where="cluster",
    )


def _students_split_over_ranks() -> Rule:
    """The same for distillations that students bring; a CEL rule can't blame an item of a list, so it names it."""

    def check(spec: CompressionRunSpec) -> str | None:
        for student in spec.students:
            if student.distill is not None and _unsplit(spec, "distill", student.distill):
                return _unsplit_sentence(spec, "distill", student.distill, student.name)
        return None

    splits = _cel_splits("distill", "student.distill")
    sentence = _cel_unsplit_sentence("distill", "student.distill", "student.name")
    return Rule(
        "students",
        check,
        cel=f"self.students.all(student, {splits})",
        message=f"self.students.filter(student, !({splits})).map(student, {sentence})[0]",
        where="cluster",
    )


def _reachable(world: World) -> Iterator[Rule]:
    """No source is of a kind that `world` has no way to."""
    for scheme in unreachable_from(world.value):
        yield _is_not("teacher.model", "model", scheme, world)
        yield _is_not("dataset.source", "dataset", scheme, world)
        yield _none_is_of(scheme, world)
        yield _no_task_is(scheme, world)


def is_of_clusters(sentence: str) -> bool:
    """Whether a fault of a local run says that only clusters have such a source."""
    return any(rule.sentence == sentence for rule in _reachable(World.LOCAL))


def _elsewhere(role: Role, scheme: SourceScheme, world: World) -> str:
    """The sentence that a source of this kind is not for this world."""
    others = forms(role, world.value)
    return {
        World.CLUSTER: f"{scheme.prefix} is for local runs; on a cluster use {others}",
        World.LOCAL: f"{scheme.prefix} is for clusters; local runs use {others}",
    }[world]


def _no_task_is(scheme: SourceScheme, world: World) -> Rule:
    sentence = _elsewhere("tasks", scheme, world)

    def check(spec: CompressionRunSpec) -> str | None:
        tasks = spec.evaluate.tasks if spec.evaluate else []
        return sentence if any(task.source and task.source.startswith(scheme.prefix) for task in tasks) else None

    tasks, named = "self.evaluate.tasks", f"has(task.source) && task.source.startsWith('{scheme.prefix}')"
    cel = f"!has(self.evaluate) || !has({tasks}) || !{tasks}.exists(task, {named})"
    return Rule("evaluate.tasks", check, cel, sentence=sentence, where=world.value)


def _none_is_of(scheme: SourceScheme, world: World) -> Rule:
    sentence = _elsewhere("dataset", scheme, world)

    def check(spec: CompressionRunSpec) -> str | None:
        return sentence if any(one.source.startswith(scheme.prefix) for one in spec.dataset.sources) else None

    sources = "self.dataset.sources"
    cel = f"!has({sources}) || !{sources}.exists(one, one.source.startsWith('{scheme.prefix}'))"
    return Rule("dataset.sources", check, cel, sentence=sentence, where=world.value)


def _is_not(path: str, role: Role, scheme: SourceScheme, world: World) -> Rule:
    sentence = _elsewhere(role, scheme, world)
    part, field = path.split(".")

    def check(spec: CompressionRunSpec) -> str | None:
        return sentence if (getattr(getattr(spec, part), field) or "").startswith(scheme.prefix) else None

    cel = f"!has(self.{path}) || !self.{path}.startsWith('{scheme.prefix}')"
    return Rule(path, check, cel, sentence=sentence, where=world.value)
