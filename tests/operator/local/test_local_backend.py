"""The local backend with real processes: start, progress, ends of every kind, and what jobs share."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from local_jobs import ENDLESS, HUB_WORD, Local, a_job, a_run, environment_of, manifest, now

from compression_operator.core.jobs import JobState
from compression_operator.local import disk_space as space
from compression_pipeline.config import ExitClass, Phase


def test_a_job_runs_and_all_about_it_is_files(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        await here.backend.create(run, job)  # the same job, found to exist
        ended = await here.until(run, job.name, lambda j: not j.alive)
        assert ended.state is JobState.SUCCEEDED and ended.ended_as is ExitClass.DONE and ended.ours
        assert ended.termination and ended.termination.result["correctedTeacherLoss"] == 3.8
        assert ended.created and ended.started and ended.ended
        assert ended.created <= ended.started <= ended.ended
        await here.backend.close()
        assert here.woken == 1
        assert (here.store / "starts").read_text().count("\n") == 1
        # Another backend, as after a crash, sees the same from the files alone.
        assert await Local(tmp_path).job(run, job.name) == ended

    asyncio.run(scenario())


def test_progress_comes_from_the_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path, any={**ENDLESS, "seconds": 0.005}), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        seen = await here.until(run, job.name, lambda j: j.progress is not None and j.progress.step > 3)
        assert seen.state is JobState.RUNNING and seen.alive and not seen.deleting
        assert (
            seen.progress and seen.progress.total_steps == ENDLESS["steps"] and seen.progress.tokens_per_second == 1000
        )
        assert seen.last_event and seen.created and seen.created < seen.last_event < now()
        await here.backend.delete(run, job.name)
        await here.backend.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("exit_class", "ends_as"),
    [("UserError", ExitClass.USER_ERROR), ("Transient", ExitClass.TRANSIENT), ("Interrupted", ExitClass.INTERRUPTED)],
)
def test_a_job_says_why_it_failed(tmp_path: Path, exit_class: str, ends_as: ExitClass) -> None:
    async def scenario() -> None:
        fault = {"class": exit_class, "message": "the column text does not exist", "attempts": 1}
        here, run = Local(tmp_path, finetune={"fail": fault}), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        ended = await here.until(run, job.name, lambda j: not j.alive)
        assert ended.state is JobState.FAILED and ended.ended_as is ends_as
        assert ended.message == "the column text does not exist"

    asyncio.run(scenario())


def test_a_job_that_crashes_without_a_word_is_a_passing_fault_and_tells_its_last_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path, any={"fail": {"class": "Crash", "message": "", "attempts": 1}}), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        ended = await here.until(run, job.name, lambda j: not j.alive)
        assert ended.ended_as is ExitClass.TRANSIENT and ended.exit_code == 1
        assert ended.message == "ended with exit code 1; it said last: Traceback: it broke"

    asyncio.run(scenario())


def test_a_job_killed_by_the_kernel_is_a_passing_fault(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path, any=ENDLESS), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        await here.until(run, job.name, lambda j: j.progress is not None)
        os.kill(here.pid_of(job), signal.SIGKILL)
        ended = await here.until(run, job.name, lambda j: not j.alive)
        assert ended.ended_as is ExitClass.TRANSIENT and ended.exit_code == 137
        assert ended.message == "was killed (SIGKILL): perhaps the machine ran out of memory"

    asyncio.run(scenario())


def test_what_cannot_be_started_fails_with_a_sentence(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path, command=("/nonexistent/python",)), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        ended = await here.until(run, job.name, lambda j: not j.alive)
        assert ended and ended.ended_as is ExitClass.TRANSIENT and not ended.alive
        assert ended.message == "cannot start /nonexistent/python: No such file or directory"

    asyncio.run(scenario())


def test_jobs_get_only_what_they_need(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path, any={"sleep": 600}), a_run()
        prepare, finetune = a_job(run, Phase.PREPARE), a_job(run)
        for job in (prepare, finetune):
            await here.backend.create(run, job)
        online, offline = environment_of(here.pid_of(prepare)), environment_of(here.pid_of(finetune))
        assert online["HF_TOKEN"] == HUB_WORD and online["HF_ENDPOINT"] and "HF_HUB_OFFLINE" not in online
        assert offline["HF_HUB_OFFLINE"] == "1" and not {"HF_TOKEN", "HF_ENDPOINT"} & set(offline)
        assert online["PYTHONUTF8"] == offline["PYTHONUTF8"] == "1"
        assert "OTHER" not in online and "OTHER" not in offline
        assert json.loads(online["COMPRESSION_CONFIG"])["sourceRoots"] == {"file": str(tmp_path)}
        written = "".join(f.read_text() for f in here.jobs.rglob("*") if f.is_file())
        assert HUB_WORD not in written
        for job in (prepare, finetune):
            await here.backend.delete(run, job.name)
        here.backend.kill()
        await here.backend.close()

    asyncio.run(scenario())


def test_processors_are_shared_by_the_jobs_that_may_run_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path, processors=8, any={"sleep": 600}), a_run()
        finetune, distill = a_job(run, processes_per_node=2), a_job(run, Phase.DISTILL)
        baseline = a_job(run, Phase.BASELINE)
        for job in (finetune, distill, baseline):
            await here.backend.create(run, job)
        alone, shared = here.config_of(finetune), here.config_of(distill)
        assert (alone["processesPerNode"], alone["threads"]) == (2, 4)
        assert (shared["processesPerNode"], shared["threads"]) == (1, 4), "two students at once"
        assert here.config_of(baseline)["threads"] == 4, "the students train beside it"
        here.backend.kill()
        await here.backend.close()

    asyncio.run(scenario())


def test_gpus_are_lent_to_one_job_at_a_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path, gpus=("0", "1", "2"), any={"sleep": 600}), a_run()
        first, second = a_job(run, Phase.DISTILL), a_job(run)
        prepare = a_job(run, Phase.PREPARE)
        for job in (first, second):
            await here.backend.create(run, job)
        # 4 sequences a step split over two ranks, not over three.
        assert here.config_of(first)["processesPerNode"] == 2
        assert environment_of(here.pid_of(first))["CUDA_VISIBLE_DEVICES"] == "0,1"
        waits = await here.job(run, second.name)
        assert waits and waits.state is JobState.PENDING and waits.message == "waits for free GPUs"
        await here.backend.create(run, prepare)
        assert environment_of(here.pid_of(prepare))["CUDA_VISIBLE_DEVICES"] == "", "it does not wait for them"
        await here.backend.delete(run, first.name)
        await here.until(run, second.name, lambda j: j.state is JobState.RUNNING)
        assert environment_of(here.pid_of(second))["CUDA_VISIBLE_DEVICES"] == "0,1"
        here.backend.kill()
        await here.backend.close()

    asyncio.run(scenario())


def test_a_waiting_job_can_be_deleted(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path, gpus=("0",), any={"sleep": 600}), a_run()
        first, second = a_job(run, Phase.DISTILL), a_job(run)
        for job in (first, second):
            await here.backend.create(run, job)
        await here.backend.delete(run, second.name)
        assert [job.name for job in await here.backend.observe(run)] == [first.name]
        here.backend.kill()
        await here.backend.close()
        assert not (here.jobs / second.name / "log").exists()

    asyncio.run(scenario())


def test_a_step_does_not_start_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path), a_run()
        job = a_job(run)
        monkeypatch.setattr(space, "FLOOR", 10**18)
        await here.backend.create(run, job)
        ended = await here.job(run, job.name)
        assert ended and ended.ended_as is ExitClass.USER_ERROR and ended.started is None
        assert "free and this step needs about 1000000.0 TB; free some space" in ended.message
        assert not (here.store / "starts").exists()
        # What is published already needs no room.
        published = here.store / "artifacts" / f"finetune-{job.fingerprint}"
        published.mkdir(parents=True)
        (published / "manifest.json").write_text(json.dumps({"files": {}, "result": {}}))
        again = a_job(run, attempt=2)
        await here.backend.create(run, again)
        assert (await here.until(run, again.name, lambda j: not j.alive)).state is JobState.SUCCEEDED

    asyncio.run(scenario())


def test_a_job_of_another_run_is_not_ours(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        await here.until(run, job.name, lambda j: not j.alive)
        stranger = type(run).model_validate({**manifest(), "metadata": {"name": "demo", "uid": "uid-2"}})
        [seen] = await Local(tmp_path).backend.observe(stranger)
        assert not seen.ours

    asyncio.run(scenario())


def test_looking_while_a_job_is_being_started_does_it_no_harm(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path), a_run()
        job = a_job(run)
        creation = asyncio.create_task(here.backend.create(run, job))
        while not creation.done():
            await asyncio.sleep(0)
            seen = await here.job(run, job.name)
            assert seen is None or seen.alive
        ended = await here.until(run, job.name, lambda j: not j.alive)
        assert ended.state is JobState.SUCCEEDED, "nobody stopped it"

    asyncio.run(scenario())
