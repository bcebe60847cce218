"""How each rank ended, as files between the ranks and their launcher, and what the whole job makes of them.

torchrun turns every exit code of a rank into 1, so a rank writes `rank-<n>.json`: once when it starts, so that one
which dies without a word is known, and again when it ends.
"""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from compression_pipeline.config import ExitClass, Record, Termination
from compression_pipeline.store.system import process_start

FOLDER_VARIABLE = "COMPRESSION_OUTCOME_FOLDER"


class Outcome(Record):
    """One rank: running where `exit_class` is None."""

    rank: int
    pid: int
    start: str | None = Field(default=None, description="When its process started, as the kernel counts.")
    time: datetime
    exit_class: ExitClass | None = None
    message: str = ""
    result: dict[str, Any] = Field(default={})
    port_taken: bool = False
    missing: list[str] = Field(default=[], description="Artifacts that it did not find.")

    @property
    def vanished(self) -> bool:
        """Whether its process is gone though it never said that it ended."""
        return self.exit_class is None and process_start(self.pid) != self.start


def write(folder: Path, rank: int, **fields: Any) -> None:
    """Write this process's outcome (`fields` of `Outcome`), as a whole."""
    pid = os.getpid()
    outcome = Outcome(rank=rank, pid=pid, start=process_start(pid), time=datetime.now(UTC), **fields)
    temporary = folder / f".rank-{rank}"
    temporary.write_text(outcome.model_dump_json(by_alias=True))
    temporary.replace(folder / f"rank-{rank}.json")


def read(folder: Path) -> list[Outcome]:
    """What the ranks of this node have written so far."""
    found: list[Outcome] = []
    for path in sorted(folder.glob("rank-*.json")):
        try:
            found.append(Outcome.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue
    return found


def failed(outcomes: Sequence[Outcome]) -> bool:
    """Whether a rank is lost: the others can't go on without it."""
    return any(o.vanished or o.exit_class in (ExitClass.USER_ERROR, ExitClass.TRANSIENT) for o in outcomes)


def running(outcomes: Sequence[Outcome]) -> frozenset[int]:
    """The ranks whose processes still run."""
    return frozenset(o.rank for o in outcomes if o.exit_class is None and not o.vanished)


def without_killed(outcomes: Sequence[Outcome], survivors: frozenset[int]) -> list[Outcome]:
    """The outcomes without those of `survivors` that ended without a word: ranks that outlived another and were killed
    for it (by the launcher or by torchrun) are not to blame.
    """
    return [o for o in outcomes if o.exit_class is not None or o.rank not in survivors]


def judge(
    outcomes: Sequence[Outcome],
    returncode: int,
    *,
    expected: int,
    stopping: bool,
    killed: bool,
    oom_kills: int,
    unmet: str | None = None,
) -> Termination:
    """What the job ends as.

    `returncode` is that of the process that the launcher started (negative: a signal), `expected` the ranks on this
    node, `stopping` whether the job was told to stop, `killed` whether the launcher had to kill it after the grace
    period, `oom_kills` how many processes the kernel killed for memory meanwhile, `unmet` what it means where no rank
    has started, if that is no fault. The rank to blame is the first user's mistake, else the first passing fault: what
    follows (lost peers, SIGTERM from torchrun) only follows.
    """
    ended = sorted((o for o in outcomes if o.exit_class is not None), key=lambda o: o.time)
    for blamed in (ExitClass.USER_ERROR, ExitClass.TRANSIENT):
        first = next((o for o in ended if o.exit_class is blamed), None)
        if blamed is ExitClass.TRANSIENT and not stopping:
            silent = _silent(outcomes, returncode, expected, oom_kills, killed)
            if silent is not None:
                return silent  # it died first: peers that lost it say so only afterwards
        if first is not None:
            # A fault while everything is being stopped is a consequence of that.
            by_stopping = stopping and blamed is ExitClass.TRANSIENT
            ended_as = ExitClass.INTERRUPTED if by_stopping else blamed
            return _termination(ended_as, first.message, rank=first.rank, missing=first.missing)
    done = [o for o in ended if o.exit_class is ExitClass.DONE]
    if returncode == 0 and len(done) == expected:
        return _termination(ExitClass.DONE, result=next((o.result for o in done if o.result), {}))
    if killed:
        return _termination(
            ExitClass.INTERRUPTED, "was told to stop and did not within the grace period, so was killed"
        )
    interrupted = next((o for o in ended if o.exit_class is ExitClass.INTERRUPTED), None)
    if interrupted is not None:
        return _termination(ExitClass.INTERRUPTED, interrupted.message, rank=interrupted.rank)
    if stopping:
        return _termination(ExitClass.INTERRUPTED, "was told to stop (SIGTERM)")
    if unmet is not None and not outcomes:
        return _termination(ExitClass.INTERRUPTED, unmet)
    return _termination(ExitClass.TRANSIENT, f"the ranks could not be started ({_how(returncode)}); the log says why")


def _silent(
    outcomes: Sequence[Outcome], returncode: int, expected: int, oom_kills: int, killed: bool
) -> Termination | None:
    """The verdict on a rank that died without a word, if one did."""
    gone = next((o for o in outcomes if o.exit_class is None), None)
    if gone is None or killed:
        return None
    memory = "; raise the job's memory limit or lower microBatchSize"
    if oom_kills:
        said = f"rank {gone.rank} was killed by the kernel: out of memory{memory}"
    elif expected > 1 or returncode == -9:
        said = f"rank {gone.rank} was killed (SIGKILL), most likely by the kernel for lack of memory{memory}"
    else:
        said = f"rank {gone.rank} died without a word ({_how(returncode)})"
    return _termination(ExitClass.TRANSIENT, said, rank=gone.rank)


def _how(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"


def _termination(
    exit_class: ExitClass,
    message: str = "",
    *,
    rank: int | None = None,
    result: dict[str, Any] | None = None,
    missing: Sequence[str] = (),
) -> Termination:
    told = {"message": message, "rank": rank, "result": result or {}, "missing": list(missing)}
    return Termination.model_validate({"class": exit_class, **told})
