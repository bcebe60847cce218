"""The summary of a run for people and for tools: its phase, its conditions (kstatus too), its times. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from compression_operator.api.status import CompressionRunStatus, Condition, RunPhase, Step, StepState, StudentStatus
from compression_pipeline.config import PHASES, Phase

from .gates import is_open, missed

KINDS = ("Ready", "Progressing", "Degraded", "Suspended", "Reconciling", "Stalled")
"""The conditions of every run that was looked at."""

ACCEPTED = "Accepted"
"""The condition of a run that has a gate."""

GATE_MISSED = "GateMissed"

FINISHED = (RunPhase.SUCCEEDED, RunPhase.FAILED)
LISTED = 5
"""Steps that one message names at most."""


@dataclass(frozen=True)
class Situation:
    """What a summary is made of besides the steps."""

    generation: int
    suspended: bool
    live_jobs: int
    faults: Sequence[str]  # of students that cannot be made of this teacher: path and sentence


def set_condition(
    conditions: Sequence[Condition], changed: Condition, *, stored: Sequence[Condition] | None = None
) -> list[Condition]:
    """The conditions with this one in place of the one of its type, or at the end: meta.SetStatusCondition.

    The time of transition stays that of the `stored` condition (default: the one in `conditions`) unless the status
    changes.
    """
    before = next((one for one in (conditions if stored is None else stored) if one.type == changed.type), None)
    if before is not None and before.status == changed.status:
        changed = changed.model_copy(update={"last_transition_time": before.last_transition_time})
    if all(one.type != changed.type for one in conditions):
        return [*conditions, changed]
    return [changed if one.type == changed.type else one for one in conditions]


def condition_of(
    kind: str, holds: bool | None, reason: str, message: str, *, generation: int, now: datetime
) -> Condition:
    """A condition whose status changes `now`, if it changes. `holds`: None where that is not known yet."""
    return Condition(
        type=kind,
        status="Unknown" if holds is None else str(holds),
        observed_generation=generation,
        last_transition_time=now,
        reason=reason,
        message=message,
    )


def is_finished(steps: Sequence[Step]) -> bool:
    """Whether nothing more happens. The steps say so, not the phase that follows from them: anybody may write that."""
    return bool(steps) and all(step.state.final for step in steps)


def run_phase(steps: Sequence[Step], *, suspended: bool, gate_missed: bool = False) -> RunPhase:
    """The phase of the earliest unfinished step; Failed only once nothing else goes on, also if all steps are done and
    a student misses its gate.
    """
    unfinished = [step for step in steps if not step.state.final]
    if not unfinished:
        well = not gate_missed and all(step.state is StepState.SUCCEEDED for step in steps)
        return RunPhase.SUCCEEDED if well else RunPhase.FAILED
    if suspended:
        return RunPhase.SUSPENDED
    order = list(Phase)
    first = min(unfinished, key=lambda step: order.index(step.phase))
    begun = any(step.attempt > 0 or step.state is not StepState.PENDING for step in steps)
    return RunPhase(PHASES[first.phase].under_way) if begun else RunPhase.PENDING


def summarized(status: CompressionRunStatus, situation: Situation, now: datetime) -> CompressionRunStatus:
    """`status`, whose steps and verdicts are up to date, with the phase, the times and the conditions that follow from
    them.
    """
    misses = missed(status.students)
    phase = run_phase(status.steps, suspended=situation.suspended, gate_missed=bool(misses))
    begins = phase is not RunPhase.SUSPENDED and (status.start_time is None or status.completion_time is not None)
    begins = begins and phase not in FINISHED
    ended = phase in FINISHED
    conditions = [condition for condition in status.conditions if condition.type not in (*KINDS, ACCEPTED)]  # others'
    for kind, (holds, reason, message) in _verdicts(status, phase, misses, situation).items():
        found = condition_of(kind, holds, reason, message, generation=situation.generation, now=now)
        conditions = set_condition(conditions, found, stored=status.conditions)
    return status.model_copy(
        update={
            "phase": phase,
            "observed_generation": situation.generation,
            "start_time": now if begins else status.start_time,
            "completion_time": (status.completion_time or now) if ended else None,
            "conditions": conditions,
        }
    )


_Verdict = tuple[bool | None, str, str]


def _verdicts(
    status: CompressionRunStatus, phase: RunPhase, misses: Sequence[str], situation: Situation
) -> dict[str, _Verdict]:
    """By type of condition: whether it holds, the reason, the message. `misses`: gates, a sentence each."""
    steps = status.steps
    failed = [step for step in steps if step.state is StepState.FAILED]
    going_on = [step for step in steps if not step.state.final]
    stuck = [step for step in going_on if step.waiting_reason]
    shaky = [step for step in going_on if step.failures or step.makes_no_progress]
    why, what = _story(steps, phase, failed, misses, situation)
    under_way = phase not in (*FINISHED, RunPhase.SUSPENDED)
    suspended = phase is RunPhase.SUSPENDED
    problems = [f"{step.name}: {step.message}" for step in (*failed, *stuck)]
    problems += [] if failed else [_failures_so_far(step) for step in shaky]
    problems += misses
    degraded = "AsExpected"
    if problems:
        degraded = (
            _reason(failed, situation) if failed else _waiting_reason(stuck) or _retry_reason(shaky) or GATE_MISSED
        )
    return {
        "Ready": (phase is RunPhase.SUCCEEDED, why, what),
        "Progressing": (under_way, why, what),
        "Degraded": (bool(problems), degraded, _listed(problems)),
        "Suspended": (suspended, why, what) if suspended else (False, "NotSuspended", ""),
        "Reconciling": (under_way, why, what),
        "Stalled": (phase is RunPhase.FAILED, why, what),
        **_gate(status.students, misses),
    }


def _gate(students: Sequence[StudentStatus], misses: Sequence[str]) -> dict[str, _Verdict]:
    """The condition of a run that has a gate."""
    undecided = is_open(students)
    if misses:
        return {ACCEPTED: (False, GATE_MISSED, _listed(misses))}
    match undecided:
        case None:
            return {}
        case True:
            return {
                ACCEPTED: (
                    None,
                    "NotMeasured",
                    "a student is judged once it is exported and evaluated",
                )
            }
        case False:
            return {ACCEPTED: (True, "GateMet", "every student that is judged meets accept")}


def _story(
    steps: Sequence[Step], phase: RunPhase, failed: Sequence[Step], misses: Sequence[str], situation: Situation
) -> tuple[str, str]:
    """Reason and message of where the run stands."""
    done = sum(step.state is StepState.SUCCEEDED for step in steps)
    tally = f"{done} of {len(steps)} steps are done"
    match phase:
        case RunPhase.SUCCEEDED:
            students = len({step.student for step in steps if step.student is not None})
            return phase.value, f"{students} student{'s are' if students > 1 else ' is'} exported"
        case RunPhase.FAILED:
            said = situation.faults or [*(f"{step.name}: {step.message}" for step in failed), *misses]
            return _reason(failed, situation), _listed(said)
        case RunPhase.SUSPENDED:
            jobs = situation.live_jobs
            stopping = f"{jobs} job{'s write' if jobs > 1 else ' writes'} a checkpoint and will end" if jobs else ""
            return phase.value, f"{tally}; {stopping or 'set spec.suspend to false to continue'}"
        case _:
            active = [step for step in steps if step.state.active]
            under_way = [step.name + (f" ({step.message})" if step.message else "") for step in active]
            waiting = [f"{step.name} {step.message}" for step in steps if step.state is StepState.PENDING]
            going = f"under way: {_listed(under_way)}" if active else _listed(waiting[:1])
            held = active or [step for step in steps if step.state is StepState.PENDING and step.waiting_reason]
            why = _waiting_reason(held) if all(step.waiting_reason for step in held) else ""
            return why or phase.value, f"{tally}; {going}"


def _reason(failed: Sequence[Step], situation: Situation) -> str:
    if situation.faults:
        return "InvalidStudent"
    return f"{failed[0].phase.value.title().replace('-', '')}Failed" if failed else GATE_MISSED


def _waiting_reason(steps: Sequence[Step]) -> str:
    return next((step.waiting_reason for step in steps if step.waiting_reason), "")


def _retry_reason(steps: Sequence[Step]) -> str:
    if not steps:
        return ""
    return "Interrupted" if any(step.makes_no_progress for step in steps) else "Retrying"


def _failures_so_far(step: Step) -> str:
    if step.last_failure is None:
        return f"{step.name}: {step.message}"
    if step.makes_no_progress:
        many = f"{step.interruptions} attempts in a row were interrupted before they came further"
        return f"{step.name}: {many}; attempt {step.last_failure.attempt}: {step.last_failure.message}"
    return f"{step.name}: attempt {step.last_failure.attempt} failed: {step.last_failure.message}"


def _listed(sentences: Sequence[str]) -> str:
    more = len(sentences) - LISTED
    return "; ".join(sentences[:LISTED]) + (f"; and {more} more" if more > 0 else "")
