"""What is worth telling about a pass: the difference between two statuses in words, so that nothing is told twice."""

from collections.abc import Iterator, Mapping

from compression_operator.api.status import CompressionRunStatus, RunPhase, Step, StepState

from .jobs import RunEvent


def events_between(before: CompressionRunStatus, after: CompressionRunStatus) -> tuple[RunEvent, ...]:
    """What happened between two statuses of a run."""
    return (*_step_events(before, after), *_size_events(before, after), *_run_events(before, after))


def _step_events(before: CompressionRunStatus, after: CompressionRunStatus) -> Iterator[RunEvent]:
    for step in after.steps:
        yield from _events_of_step(before.step(step.name) or Step(name=step.name, phase=step.phase), step)


def _events_of_step(before: Step, step: Step) -> Iterator[RunEvent]:
    if step.lost_attempt > before.lost_attempt:
        message = f"{step.name} runs again: {before.artifact}, which it made, is gone, not whole, or another by now"
        yield RunEvent("Warning", "ArtifactMissing", message, step.name)
    elif before.state is StepState.SUCCEEDED and step.state is not StepState.SUCCEEDED:
        message = f"{step.name} runs again: its configuration or its inputs changed"
        yield RunEvent("Normal", "StepOutdated", message, step.name)
    failure = step.last_failure
    if failure is not None and failure != before.last_failure and step.state is not StepState.FAILED:
        interrupted = failure.exit_class == "Interrupted"
        kind = "Normal" if interrupted and not step.makes_no_progress else "Warning"
        when = f"; again at {step.retry_time:%H:%M:%S} UTC" if step.retry_time else ""
        reason = "StepInterrupted" if interrupted else "StepRetrying"
        message = f"{step.name}, attempt {failure.attempt}: {failure.message}{when}"
        yield RunEvent(kind, reason, message, step.name, failure.job_name)
    if step.state.active and (step.attempt > before.attempt or not before.state.active):
        message = f"{step.name}, attempt {step.attempt}: job {step.job_name}"
        yield RunEvent("Normal", "JobCreated", message, step.name, step.job_name)
    if step.waiting_reason and step.waiting_reason != before.waiting_reason:
        which = f", attempt {step.attempt}" if step.state.active else ""
        message = f"{step.name}{which}: {step.message}"
        yield RunEvent("Warning", step.waiting_reason, message, step.name, step.job_name)
    if step.state is before.state:
        return
    match step.state:
        case StepState.SUCCEEDED:
            message = f"{step.name} is done{' (cached)' if step.cached else ''}"
            yield RunEvent("Normal", "StepSucceeded", message, step.name, step.job_name)
        case StepState.FAILED:
            yield RunEvent("Warning", "StepFailed", f"{step.name} failed: {step.message}", step.name, step.job_name)
        case _:
            pass


def _size_events(before: CompressionRunStatus, after: CompressionRunStatus) -> Iterator[RunEvent]:
    """What will probably not fit, told when it turns out: before a GPU is asked for.

    Only with a step that went on or an edit, because an older CRD drops what the status says of sizes from each write.
    """
    if _states(before) == _states(after) and before.observed_generation == after.observed_generation:
        return
    told = set(_warnings(before))
    for warning in _warnings(after):
        if warning not in told:
            yield RunEvent("Warning", "MayNotFit", warning)


def _states(status: CompressionRunStatus) -> Mapping[str, StepState]:
    return {step.name: step.state for step in status.steps}


def _warnings(status: CompressionRunStatus) -> Iterator[str]:
    for one in (status.teacher, *status.students):
        yield from one.planned.warnings if one and one.planned else ()


def _run_events(before: CompressionRunStatus, after: CompressionRunStatus) -> Iterator[RunEvent]:
    if after.phase is before.phase:
        return
    message = next((condition.message for condition in after.conditions if condition.type == "Ready"), "")
    match after.phase:
        case RunPhase.SUCCEEDED:
            yield RunEvent("Normal", "RunSucceeded", message)
        case RunPhase.FAILED:
            yield RunEvent("Warning", "RunFailed", message)
        case RunPhase.SUSPENDED:
            yield RunEvent("Normal", "RunSuspended", message)
        case _ if before.phase is RunPhase.SUSPENDED:
            yield RunEvent("Normal", "RunResumed", message)
        case _:
            pass
