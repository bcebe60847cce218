"""A local job as files: `<workdir>/jobs/<name>/{job.json,process.json,log,termination.json,exit,deleted}`.

Files are all that is remembered of a job, so whoever starts after a crash finds the same truth.
"""

import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from compression_operator.core.jobs import Job
from compression_operator.joblog.termination import read_termination
from compression_pipeline.config import Phase, Record, Termination

from .processes import ProcessId

M = TypeVar("M", bound=Record)


def write_atomically(path: Path, text: str) -> None:
    """Replace the file as a whole, in UTF-8: a reader, or a crash, finds the old text or the new. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class JobRecord(Record):
    """`job.json`: what was asked for. Written once, before any process starts; it holds no secrets."""

    name: str
    run_uid: str
    step: str
    phase: Phase
    student: str | None = None
    attempt: int
    fingerprint: str
    grace_period_seconds: int
    created: datetime
    config: dict[str, Any]

    @classmethod
    def of(cls, job: Job, *, run_uid: str, created: datetime) -> "JobRecord":
        return cls(
            name=job.name,
            run_uid=run_uid,
            step=job.step,
            phase=job.phase,
            student=job.student,
            attempt=job.attempt,
            fingerprint=job.fingerprint,
            grace_period_seconds=job.settings.termination_grace_period_seconds,
            created=created,
            config=job.config.to_json(),
        )


class ProcessRecord(Record):
    """`process.json`: the job's first process."""

    pid: int
    start: str
    started: datetime

    @property
    def id(self) -> ProcessId:
        return ProcessId(self.pid, self.start)


class ExitRecord(Record):
    """`exit`: none of the job's processes runs any more."""

    code: int | None = None  # None: nobody was there to see it
    ended: datetime


class JobFolder:
    """The files of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.log = path / "log"
        self.termination_file = path / "termination.json"

    def create(self, record: JobRecord) -> None:
        """Make the folder with its `job.json`. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write("job.json", record)

    def record(self) -> JobRecord | None:
        """What was asked for; None where the folder is no job's (a crash before `job.json` was written)."""
        return self._read("job.json", JobRecord)

    def process(self) -> ProcessRecord | None:
        return self._read("process.json", ProcessRecord)

    def write_process(self, process: ProcessRecord) -> None:
        self._write("process.json", process)

    def exit(self) -> ExitRecord | None:
        return self._read("exit", ExitRecord)

    def write_exit(self, record: ExitRecord) -> None:
        self._write("exit", record)

    def termination(self) -> Termination | None:
        """What the job said when it ended; None where it said nothing that can be read."""
        try:
            return read_termination((self.path / "termination.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_termination(self, termination: Termination) -> None:
        self._write("termination.json", termination)

    @property
    def deleted(self) -> bool:
        """Whether the job was deleted: forgotten as soon as none of its processes runs. Its log stays to be read."""
        return (self.path / "deleted").exists()

    def mark_deleted(self) -> None:
        if self.path.is_dir():
            (self.path / "deleted").touch()

    def set_aside(self) -> None:
        """Make room for another job of this name; this one's files stay under `<name>~<number>`."""
        number = 1
        while (aside := self.path.with_name(f"{self.name}~{number}")).exists():
            number += 1
        self.path.rename(aside)

    def last_change(self) -> datetime | None:
        """When the job last wrote anything, in UTC."""
        times = [f.stat().st_mtime for f in (self.log, self.termination_file) if f.exists()]
        return datetime.fromtimestamp(max(times)).astimezone() if times else None

    def _read(self, name: str, model: type[M]) -> M | None:
        try:
            return model.model_validate_json((self.path / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None

    def _write(self, name: str, record: Record) -> None:
        write_atomically(self.path / name, record.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n")
