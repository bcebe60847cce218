"""How a local job ended, from what it left behind."""

from typing import Any

from compression_operator.core.jobs import JobState
from compression_operator.joblog.lines import last_line
from compression_pipeline.config import ExitClass

from .jobfiles import ExitRecord, JobFolder


def ending(folder: JobFolder, exited: ExitRecord) -> dict[str, Any]:
    """The fields of an ObservedJob that tell its end: by its termination message first, then by its exit code."""
    termination = folder.termination()
    found: dict[str, Any] = {"ended": exited.ended, "exit_code": exited.code, "termination": termination}
    if termination is not None:
        done = termination.exit_class is ExitClass.DONE
        return found | {"state": JobState.SUCCEEDED if done else JobState.FAILED, "message": termination.message}
    said = last_line(folder.log)
    tail = f"; it said last: {said[:500]}" if said else ""
    if exited.code is None:
        # Nobody saw it end: the machine, or the command that started it, was stopped at once.
        why = "vanished while nobody watched it"
        return found | {"state": JobState.FAILED, "interrupted": True, "message": why}
    if exited.code == 0:
        # Without its result nothing can follow, so it counts as a passing fault.
        why = f"ended without saying its result{tail}"
        return found | {"state": JobState.FAILED, "exit_code": None, "message": why}
    by_signal = {137: "was killed (SIGKILL): perhaps the machine ran out of memory", 143: "was stopped (SIGTERM)"}
    why = by_signal.get(exited.code, f"ended with exit code {exited.code}")
    return found | {"state": JobState.FAILED, "message": f"{why}{tail}"}
