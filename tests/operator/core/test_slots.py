"""Which steps may run beside each other, and what those that may not are said to wait for."""

import pytest
from jobs_world import World, manifest, student
from looks import FINETUNED, PRUNED, at, created, finish, open_jobs, step

from compression_operator.api.status import StepState
from compression_operator.core.jobs import JobState
from compression_pipeline.config import Phase

ON_CPU = {"phases": {"prune": {"gpusPerNode": 0}}}


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_step_without_a_gpu_does_not_wait_for_one_whose_job_waits_for_a_gpu(on_cpu: bool) -> None:
    phases = {"phases": {"distill": {"gpusPerNode": 0 if on_cpu else 8}}}
    world = at(World(manifest(maxParallelJobs=2, **phases)), *PRUNED)
    runs, waits = open_jobs(world)
    world.update(waits, state=JobState.PENDING, started=None, last_event=None)
    world.place_half(waits)
    world.look()
    world.edit(maxParallelJobs=1)
    world.succeed(runs)
    decision = world.look()
    assert bool(created(decision)) != on_cpu, "export"
    if not on_cpu:
        assert created(decision)[0].startswith("export-")


def test_a_step_that_will_not_run_waits_for_no_place() -> None:
    """Its attempt gives its places back when a student turns out to be impossible."""
    world = at(World(), *FINETUNED)
    waits, _ = open_jobs(world)
    world.update(waits, state=JobState.PENDING, started=None, last_event=None)
    world.place_half(waits)
    world.look()
    world.pass_time(1000)
    students = [one.to_json() for one in world.run.spec.students]
    world.edit(students=[*students, student("huge", hiddenSize=512)])
    world.look()
    name = world.jobs[waits].job.step
    assert step(world, name).state is StepState.SKIPPED and step(world, name).waiting_reason is None


def test_old_jobs_that_still_stop_are_what_a_run_waits_for() -> None:
    world = at(World(), *FINETUNED)
    one, other = sorted(open_jobs(world))
    world.edit(dataset={**world.run.spec.dataset.to_json(), "textColumn": "body"})
    world.look()
    assert step(world, "prepare").message == f"waits for job {one} to end"
    world.settle(one)
    world.settle(other)
    assert created(world.look()) == ["prepare"]


def test_jobs_that_go_on_are_waited_for_as_slots() -> None:
    world = at(World(manifest(maxParallelJobs=1)), *FINETUNED)
    assert step(world, "prune-depth").message == "waits for a free slot (maxParallelJobs is 1)"
    finish(world)
    assert open_jobs(world)


def test_what_trains_and_hands_out_goes_before_what_scores() -> None:
    searched = [{"name": "small", "prune": {"divisor": 32, "target": {"ratio": 2}}}]
    world = World(manifest(students=searched, maxParallelJobs=1, evaluate={"tasks": [{"name": "hellaswag"}]}))
    order: list[str] = []
    world.look()
    while jobs := open_jobs(world):
        order += [world.jobs[name].job.phase for name in jobs]
        finish(world)
    ran = list(dict.fromkeys(order))
    assert ran == [phase for phase in Phase if phase in ran]
    before = (Phase.PREPARE, Phase.TASKS, Phase.FINETUNE, Phase.SEARCH, Phase.PRUNE, Phase.DISTILL, Phase.EXPORT)
    scores = (Phase.BASELINE, Phase.BASELINE_CORRECTED, Phase.EVALUATE, Phase.REPORT)
    assert {*before, *scores} <= {*ran}
