"""What the tests of the local backend share: a small run, its jobs, and a backend that runs the stand-in."""

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.support.runs import a_run as build
from tests.support.waiting import until, until_async

from compression_operator.api.phase_settings import PhaseSettings
from compression_operator.api.run import CompressionRun
from compression_operator.core.jobs import Job, ObservedJob
from compression_operator.local.backend import LocalBackend, Place
from compression_pipeline.config import DistillJob, FinetuneJob, Phase, PrepareJob

HUB_WORD = "hf_of_the_tests"
ENDLESS = {"steps": 1_000_000}
"""How a job behaves that is still at it when the test ends it: hours of steps."""

STANDIN = Path(__file__).with_name("standin.py")


def now() -> datetime:
    return datetime.now(UTC)


def manifest(**spec: Any) -> dict[str, Any]:
    """A manifest with two students, as YAML would give it."""
    run = build("demo", teacher="file:teacher", text="file:text.txt")
    run = run.finetune(steps=10, globalBatchSize=4).distill(steps=10, globalBatchSize=4)
    return run.student("width", hiddenSize=64).student("depth", dropLayers=[3]).spec(**spec).body()


def a_run(**spec: Any) -> CompressionRun:
    run = CompressionRun.model_validate(manifest(**spec))
    return run.model_copy(update={"metadata": run.metadata.model_copy(update={"uid": "uid-1"})})


def a_job(
    run: CompressionRun, phase: Phase = Phase.FINETUNE, *, attempt: int = 1, grace: int = 600, **more: Any
) -> Job:
    """A job of the run; prepare, finetune or the first student's distill."""
    student = run.spec.students[0].name if phase is Phase.DISTILL else None
    step = f"distill-{student}" if student else phase.value
    common: dict[str, Any] = {
        "run": "demo",
        "step": step,
        "attempt": attempt,
        "fingerprint": "0123456789abcdef" * 2,
        "store": "to be filled in",
        "grace_period_seconds": grace,
    }
    inputs: dict[str, Any] = {"data": "prepare-x", "teacher": "prepare-x", "sequence_length": 64}
    match phase:
        case Phase.PREPARE:
            config = PrepareJob(**common, teacher=run.spec.teacher, dataset=run.spec.dataset)
        case Phase.FINETUNE:
            assert run.spec.finetune
            config = FinetuneJob(**common, **inputs, finetune=run.spec.finetune, validation=run.spec.validation)
        case _:
            assert run.spec.distill
            config = DistillJob(
                **common, **inputs, pruned="prune-x", distill=run.spec.distill, validation=run.spec.validation
            )
    settings = PhaseSettings.model_validate(
        {"terminationGracePeriodSeconds": grace, "gpusPerNode": 0 if phase is Phase.PREPARE else 8, **more}
    )
    return Job(
        name=f"demo-{step}-012345-{attempt}",
        step=step,
        phase=phase,
        student=student,
        attempt=attempt,
        fingerprint=common["fingerprint"],
        config=config,
        settings=settings,
    )


def behave(root: Path, **steps: Any) -> tuple[str, ...]:
    """The command of jobs that behave like this; see standin.py. `any` stands for all steps not named."""
    file = root / "behaviour.json"
    named = {name.replace("_", "-"): value for name, value in steps.items() if name != "any"}
    file.write_text(json.dumps(named | {"*": steps.get("any", {})}))
    return (sys.executable, str(STANDIN), str(file))


class Local:
    """A backend in a folder, and what it said."""

    def __init__(
        self,
        root: Path,
        *,
        gpus: tuple[str, ...] = (),
        processors: int = 2,
        command: tuple[str, ...] | None = None,
        now: Callable[[], datetime] = now,
        monotonic: Callable[[], float] = time.monotonic,
        **behaviour: Any,
    ) -> None:
        self.root = root
        self.jobs = root / "jobs"
        self.store = root / "store"
        self.woken = 0
        place = Place(
            jobs=self.jobs,
            store=self.store,
            source_root=root,
            aside=(self.jobs, self.store),
            environment={**os.environ, "HF_TOKEN": HUB_WORD, "HF_ENDPOINT": "http://127.0.0.1:9", "OTHER": "x"},
            processors=processors,
            gpus=gpus,
            command=command or behave(root, **behaviour),
        )
        self.backend = LocalBackend(place, now=now, wake=self._wake, monotonic=monotonic)

    def _wake(self, run: CompressionRun) -> None:
        self.woken += 1

    async def job(self, run: CompressionRun, name: str) -> ObservedJob | None:
        return next((job for job in await self.backend.observe(run) if job.name == name), None)

    async def until(self, run: CompressionRun, name: str, wanted: Callable[[ObservedJob], bool]) -> ObservedJob:
        """The job as soon as it is as wanted."""
        seen: ObservedJob | None = None

        async def as_wanted() -> ObservedJob | None:
            nonlocal seen
            seen = await self.job(run, name)
            return seen if seen is not None and wanted(seen) else None

        return await until_async(as_wanted, lambda: f"job {name} to be as wanted, which is {seen}")

    def config_of(self, job: Job) -> dict[str, Any]:
        """COMPRESSION_CONFIG as the running job sees it."""
        return json.loads(environment_of(self.pid_of(job))["COMPRESSION_CONFIG"])

    def pid_of(self, job: Job) -> int:
        return json.loads((self.jobs / job.name / "process.json").read_text())["pid"]


def environment_of(pid: int) -> dict[str, str]:
    """The environment of a process; empty for the moment in which the kernel puts a new program in it."""
    found = until(Path(f"/proc/{pid}/environ").read_bytes, f"the environment of {pid}")
    return dict(part.split("=", 1) for part in found.decode().split("\0") if part)


def running(pid: int) -> bool:
    """Whether the process runs; one that has ended and awaits its parent doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
