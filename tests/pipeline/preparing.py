"""Prepare jobs in this process."""

import io
import json
from pathlib import Path
from typing import Any

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import DatasetConfig, PrepareJob, PrepareResult
from compression_pipeline.context import Context, StopFlag
from compression_pipeline.events import Events
from compression_pipeline.phases import prepare

FINGERPRINT = "fedcba9876543210fedcba9876543210"


class Preparation:
    """One job on a store of its own, with a teacher and a dataset of this machine unless told otherwise."""

    def __init__(self, folder: Path, teacher: str) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.teacher = teacher
        self.stop = StopFlag()
        self._log = io.StringIO()

    def job(self, source: str, *, teacher: dict[str, Any] | None = None, **dataset: Any) -> PrepareJob:
        told = {"source": source, "sequenceLength": 8} | dataset
        return PrepareJob.model_validate(
            {
                "run": "r",
                "step": "prepare",
                "attempt": 1,
                "fingerprint": FINGERPRINT,
                "store": str(self.store),
                "teacher": teacher or {"model": self.teacher},
                "dataset": DatasetConfig.model_validate(told),
                "sourceRoots": {"file": str(self.folder), "pvc://claim": str(self.folder / "volume")},
            }
        )

    def run(self, source: str, **told: Any) -> PrepareResult:
        return self.take(self.job(source, **told))

    def take(self, job: PrepareJob) -> PrepareResult:
        self._log.seek(0)
        self._log.truncate()
        context = Context.of(job, environment={}, stop=self.stop)
        context.events = Events(self._log)
        return prepare.run(job, context)

    def artifact(self, result: PrepareResult) -> Artifact:
        return Store(self.store).open(f"prepare-{result.key}")

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in self._log.getvalue().splitlines())
        return [line for line in lines if line["event"] == kind]

    def write(self, name: str, *lines: str) -> None:
        """A text file below the folder that file: paths are relative to."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))

    def leftovers(self) -> list[Path]:
        return list(self.store.rglob("draft-*"))


def rows(*texts: str) -> list[str]:
    """JSON lines with these texts."""
    return [json.dumps({"text": text}) for text in texts]
