"""Whatever names a task names one of `evaluate.tasks`: gates, what distillations are watched by, what ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from compression_pipeline.config import (
    ASKING,
    VALIDATION_LOSS,
    AcceptConfig,
    DistillConfig,
    PruneConfig,
    Ranking,
    Rule,
)

if TYPE_CHECKING:
    from .spec import CompressionRunSpec, Student

_UNMEASURED = "a task that evaluate.tasks does not measure; add it there"

_UNSCORED = "a task to score the student by; add one to evaluate.tasks, or remove taskInterval"


@dataclass(frozen=True)
class _First:
    """The first task there is."""


_Named: TypeAlias = "str | _First"


def task_rules() -> tuple[Rule, ...]:
    """The rules of CompressionRunSpec that tasks are measured which it names."""
    return (
        _of_run("accept", f"names {_UNMEASURED}", lambda spec: _of_gate(spec.accept), _cel_gate("self.accept")),
        _of_students(
            f"accept of one of them names {_UNMEASURED}",
            lambda student: _of_gate(student.accept),
            _cel_gate("student.accept"),
        ),
        _of_run(
            "distill.taskInterval",
            f"needs {_UNSCORED}",
            lambda spec: _of_interval(spec.distill),
            _cel_interval("self.distill"),
        ),
        _of_students(
            f"distill.taskInterval of one of them needs {_UNSCORED}",
            lambda student: _of_interval(student.distill),
            _cel_interval("student.distill"),
        ),
        _of_run(
            "distill",
            f"tasks or keepBest names {_UNMEASURED}",
            lambda spec: _of_distillation(spec.distill),
            _cel_distillation("self.distill"),
        ),
        _of_students(
            f"distill.tasks or distill.keepBest of one of them names {_UNMEASURED}",
            lambda student: _of_distillation(student.distill),
            _cel_distillation("student.distill"),
        ),
        _of_students(
            f"prune.importance.depth of one of them is {' or '.join(ASKING)}, by {_UNMEASURED}, or name one of these "
            "in depthTask",
            lambda student: _of_depth(student.prune),
            f"!(student.prune.importance.depth in {ASKING}) || {_cel_or_first('student.prune.importance.depthTask')}",
        ),
        _of_students(
            f"prune.target.rank of one of them is {Ranking.TASK.value}, by {_UNMEASURED}, or name one of these in "
            "rankTask",
            lambda student: _of_rank(student.prune),
            f"!has(student.prune.target) || student.prune.target.rank != '{Ranking.TASK.value}' || "
            f"{_cel_or_first('student.prune.target.rankTask')}",
        ),
    )


def _of_run(path: str, sentence: str, named: Callable[[CompressionRunSpec], Iterator[_Named]], cel: str) -> Rule:
    return Rule.of(path, sentence, lambda spec: _measures(spec, named(spec)), cel)


def _of_students(sentence: str, named: Callable[[Student], Iterator[_Named]], cel: str) -> Rule:
    return Rule.of(
        "students",
        sentence,
        lambda spec: all(_measures(spec, named(student)) for student in spec.students),
        f"self.students.all(student, {cel})",
    )


def _measures(spec: CompressionRunSpec, named: Iterator[_Named]) -> bool:
    measured = {task.name for task in spec.evaluate.tasks} if spec.evaluate else set[str]()
    return all(name in measured if isinstance(name, str) else bool(measured) for name in named)


def _of_gate(accept: AcceptConfig | None) -> Iterator[_Named]:
    yield from (gate.name for gate in accept.tasks) if accept else ()


def _of_interval(distill: DistillConfig | None) -> Iterator[_Named]:
    yield from [_First()] if distill and distill.task_interval is not None else []


def _of_distillation(distill: DistillConfig | None) -> Iterator[_Named]:
    if distill is None:
        return
    yield from distill.tasks
    yield from [distill.best_task] if distill.best_task else []


def _of_depth(prune: PruneConfig) -> Iterator[_Named]:
    if prune.importance.depth in ASKING:
        yield prune.importance.depth_task or _First()


def _of_rank(prune: PruneConfig) -> Iterator[_Named]:
    if prune.target is not None and prune.target.rank == Ranking.TASK:
        yield prune.target.rank_task or _First()


_CEL_TASKS = "has(self.evaluate) && has(self.evaluate.tasks)"


def _cel_measured(name: str) -> str:
    return f"({_CEL_TASKS} && self.evaluate.tasks.exists(task, task.name == {name}))"


def _cel_or_first(field: str) -> str:
    return f"({_CEL_TASKS} && self.evaluate.tasks.exists(task, !has({field}) || task.name == {field}))"


def _cel_gate(accept: str) -> str:
    return f"(!has({accept}) || !has({accept}.tasks) || {accept}.tasks.all(gate, {_cel_measured('gate.name')}))"


def _cel_interval(distill: str) -> str:
    return f"(!has({distill}) || !has({distill}.taskInterval) || {_CEL_TASKS} && size(self.evaluate.tasks) > 0)"


def _cel_distillation(distill: str) -> str:
    best = f"{distill}.keepBest"
    return (
        f"(!has({distill}) || (!has({distill}.tasks) || {distill}.tasks.all(name, {_cel_measured('name')})) && "
        f"(!has({best}) || {best} == '{VALIDATION_LOSS}' || {_cel_measured(best)}))"
    )
