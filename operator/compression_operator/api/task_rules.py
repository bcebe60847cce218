"""Whatever names a task names one of `evaluate.tasks`: gates, what distillations are watched by, what ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compression_pipeline.config import ASKING, VALIDATION_LOSS, Ranking, Rule
from compression_pipeline.config.base import cel_format

if TYPE_CHECKING:
    from .spec import CompressionRunSpec

_UNMEASURED = "names %s, which evaluate.tasks does not measure; add it there"

_CEL_TASKS = "has(self.evaluate) && has(self.evaluate.tasks)"


@dataclass(frozen=True)
class _Names:
    """A field that names tasks, of the spec or of a student. CEL is given the owner."""

    path: str
    names: Callable[[Any], Iterable[str]]
    all_measured: Callable[[str], str]
    """CEL: whether it names measured tasks alone."""
    first_unmeasured: Callable[[str], str]
    """CEL: the first other one that it names."""


@dataclass(frozen=True)
class _Needs:
    """A field that is of no use without any task, of the spec or of a student."""

    path: str
    why: str
    """After the field: what it asks for, and what to do."""
    needs: Callable[[Any], bool]
    cel: Callable[[str], str]


def _measured(name: str) -> str:
    return f"({_CEL_TASKS} && self.evaluate.tasks.exists(task, task.name == {name}))"


def _one(path: str, name: Callable[[Any], str | None], guard: Callable[[str], str]) -> _Names:
    """A field that names one task, if it does. `guard`: CEL for whether it does, without `has` of itself."""
    return _Names(
        path,
        lambda owner: filter(None, [name(owner)]),
        lambda owner: f"!({guard(owner)} && has({owner}.{path})) || {_measured(f'{owner}.{path}')}",
        lambda owner: f"{owner}.{path}",
    )


_OF_BOTH = (
    _Names(
        "accept.tasks",
        lambda owner: (gate.name for gate in owner.accept.tasks) if owner.accept else (),
        lambda owner: (
            f"!has({owner}.accept) || !has({owner}.accept.tasks) || "
            f"{owner}.accept.tasks.all(gate, {_measured('gate.name')})"
        ),
        lambda owner: f"{owner}.accept.tasks.filter(gate, !{_measured('gate.name')})[0].name",
    ),
    _Names(
        "distill.tasks",
        lambda owner: owner.distill.tasks if owner.distill else (),
        lambda owner: (
            f"!has({owner}.distill) || !has({owner}.distill.tasks) || "
            f"{owner}.distill.tasks.all(name, {_measured('name')})"
        ),
        lambda owner: f"{owner}.distill.tasks.filter(name, !{_measured('name')})[0]",
    ),
    _one(
        "distill.keepBest",
        lambda owner: owner.distill and owner.distill.best_task,
        lambda owner: (
            f"has({owner}.distill) && has({owner}.distill.keepBest) && {owner}.distill.keepBest != '{VALIDATION_LOSS}'"
        ),
    ),
    _Needs(
        "distill.taskInterval",
        "needs a task to score the student by; add one to evaluate.tasks, or remove taskInterval",
        lambda owner: owner.distill is not None and owner.distill.task_interval is not None,
        lambda owner: f"has({owner}.distill) && has({owner}.distill.taskInterval)",
    ),
)


def _ranks_by_task(student: Any) -> bool:
    # By value: a rule may be asked of words that nothing has parsed yet.
    return student.prune.target is not None and student.prune.target.rank == Ranking.TASK


_RANKED = "a task, and evaluate.tasks measures none; add one there"

_OF_STUDENTS = (
    _one(
        "prune.importance.depthTask",
        lambda owner: owner.prune.importance.depth_task if owner.prune.importance.depth in ASKING else None,
        lambda owner: f"{owner}.prune.importance.depth in {ASKING}",
    ),
    _Needs(
        "prune.importance.depth",
        f"ranks layers by {_RANKED}",
        lambda owner: owner.prune.importance.depth in ASKING and owner.prune.importance.depth_task is None,
        lambda owner: f"{owner}.prune.importance.depth in {ASKING} && !has({owner}.prune.importance.depthTask)",
    ),
    _one(
        "prune.target.rankTask",
        lambda owner: owner.prune.target.rank_task if _ranks_by_task(owner) else None,
        lambda owner: f"has({owner}.prune.target) && {owner}.prune.target.rank == '{Ranking.TASK.value}'",
    ),
    _Needs(
        "prune.target.rank",
        f"ranks candidates by {_RANKED}",
        lambda owner: _ranks_by_task(owner) and owner.prune.target.rank_task is None,
        lambda owner: (
            f"has({owner}.prune.target) && {owner}.prune.target.rank == '{Ranking.TASK.value}' && "
            f"!has({owner}.prune.target.rankTask)"
        ),
    ),
)


def task_rules() -> Iterator[Rule]:
    """The rules of CompressionRunSpec that tasks are measured which it names."""
    for field in _OF_BOTH:
        yield _of_run(field)
    for field in (*_OF_BOTH, *_OF_STUDENTS):
        yield _of_students(field)


def _of_run(field: _Names | _Needs) -> Rule:
    def check(spec: CompressionRunSpec) -> str | None:
        return _fault(spec, spec, field)

    if isinstance(field, _Needs):
        return Rule(field.path, check, cel=_cel_served(field, "self"), sentence=field.why)
    message = cel_format(_UNMEASURED, field.first_unmeasured("self"))
    return Rule(field.path, check, cel=field.all_measured("self"), message=message)


def _of_students(field: _Names | _Needs) -> Rule:
    """Of what students bring; a CEL rule can't blame an item of a list, so it names it."""

    def check(spec: CompressionRunSpec) -> str | None:
        for student in spec.students:
            if (fault := _fault(spec, student, field)) is not None:
                return f"{field.path} of student {student.name} {fault}"
        return None

    told = f"{field.path} of student %s "
    if isinstance(field, _Needs):
        holds, sentence = _cel_served(field, "student"), cel_format(told + field.why, "student.name")
    else:
        holds = field.all_measured("student")
        sentence = cel_format(told + _UNMEASURED, "student.name", field.first_unmeasured("student"))
    return Rule(
        "students",
        check,
        cel=f"self.students.all(student, {holds})",
        message=f"self.students.filter(student, !({holds})).map(student, {sentence})[0]",
    )


def _fault(spec: CompressionRunSpec, owner: Any, field: _Names | _Needs) -> str | None:
    measured = {task.name for task in spec.evaluate.tasks} if spec.evaluate else set[str]()
    if isinstance(field, _Needs):
        return field.why if field.needs(owner) and not measured else None
    return next((_UNMEASURED % name for name in field.names(owner) if name not in measured), None)


def _cel_served(field: _Needs, owner: str) -> str:
    return f"!({field.cel(owner)}) || {_CEL_TASKS} && size(self.evaluate.tasks) > 0"
