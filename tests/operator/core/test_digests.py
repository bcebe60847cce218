"""A job takes what a status vouches for: inputs by their manifests' digests, and where the cache is limited its own."""

from typing import Any

import pytest
from jobs_world import World, manifest, student
from looks import FINETUNED, PREPARED, at, created, finish, open_jobs, step

from compression_operator.api.status import RunPhase, StepState
from compression_operator.core.plan import discovered_in, plan_of
from compression_pipeline.config import Cache, JobConfig


def config_of(world: World, job: str) -> JobConfig:
    return world.jobs[job].job.config


def test_a_job_is_told_the_digests_of_its_inputs() -> None:
    world = at(World(), *FINETUNED)
    made = {one.artifact: one.digest for one in (step(world, "prepare"), step(world, "finetune"))}
    assert None not in made.values()
    for job in open_jobs(world):
        told = config_of(world, job)
        assert (told.cache, told.expected, told.known) == (Cache.STORE, made, [])
        assert set(told.inputs) == set(made)


def test_of_an_input_that_an_older_image_made_nothing_is_told() -> None:
    world = at(World(), *PREPARED)
    steps = [one.model_copy(update={"digest": None}) for one in world.status.steps]
    world.run = world.run.model_copy(update={"status": world.status.model_copy(update={"steps": steps})})
    finish(world)
    (job, *_) = open_jobs(world)
    finetune = step(world, "finetune")
    assert config_of(world, job).expected == {finetune.artifact: finetune.digest}


def test_students_that_ask_for_the_same_share_an_artifact_of_the_run() -> None:
    """The second one's job set aside what the first one's had made, and made it anew, until both gave up."""
    world = World(manifest(cache="Run", students=[student("a", hiddenSize=128), student("b", hiddenSize=128)]))
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED
    assert step(world, "prune-a").digest == step(world, "prune-b").digest
    assert [step(world, f"distill-{name}").cached for name in "ab"] == [False, True]
    assert {name: world.made[name] for name in ("prune-a", "prune-b")} == {"prune-a": 1, "prune-b": 1}


@pytest.mark.parametrize("cache", ["Run", "Store"])
def test_what_made_a_changed_input_looks_again(cache: str) -> None:
    world = at(World(manifest(cache=cache)), *FINETUNED)
    artifact, before = step(world, "finetune").artifact, step(world, "finetune").digest
    assert artifact
    world.change(artifact)
    for job in open_jobs(world):
        world.start(job)
        world.succeed(job)
    assert created(world.look()) == ["finetune"]
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED
    again = step(world, "finetune")
    assert again.digest != before
    assert (again.digest == "was planted", again.cached) == ((True, True) if cache == "Store" else (False, False))


def test_what_is_changed_each_time_is_not_made_for_ever() -> None:
    world = at(World(manifest(cache="Run")), *FINETUNED)
    artifact = step(world, "finetune").artifact
    assert artifact
    for _ in range(40):
        for job in open_jobs(world):
            world.start(job)
            world.change(artifact)
            world.succeed(job)
            world.change(artifact)
        world.pass_time(700)
        world.look()
    failed = step(world, "prune-width")
    assert failed.state is StepState.FAILED
    assert "gone or changed again: look for what removes or changes artifacts" in failed.message
    assert world.made["finetune"] == 1 + 3


def test_artifacts_of_a_limited_cache_have_names_of_their_own() -> None:
    names: list[set[str | None]] = []
    for cache, uid in (("Store", "a"), ("Store", "b"), ("Run", "a"), ("Run", "b")):
        run = manifest(cache=cache)
        world = World(run.model_copy(update={"metadata": run.metadata.model_copy(update={"uid": uid})}))
        world.drive()
        assert world.status.phase is RunPhase.SUCCEEDED
        names.append({one.artifact for one in world.status.steps})
    shared, same, *others = names
    assert shared == same
    assert all(not one & other for one in (shared, others[0]) for other in others if other is not one)


def test_a_run_that_has_no_uid_yet_has_no_names_yet() -> None:
    run = manifest(cache="Run")
    run = run.model_copy(update={"metadata": run.metadata.model_copy(update={"uid": ""})})
    assert [one.fingerprint for one in plan_of(run, discovered={}).steps] == [None] * 8


def test_a_job_adopts_again_what_its_run_has_made() -> None:
    """What was out of sight only, on a volume that was late perhaps, is not made anew."""
    world = at(World(manifest(cache="Run")), *FINETUNED)
    artifact, before = step(world, "finetune").artifact, step(world, "finetune").digest
    assert artifact
    for job in open_jobs(world):
        world.start(job)
        world.miss(job, [artifact])
    world.look()
    (job,) = open_jobs(world)
    assert config_of(world, job).known == [before]
    world.drive()
    assert step(world, "finetune").digest == before
    assert step(world, "finetune").cached


def test_what_is_planted_before_the_first_job_is_made_anew_in_a_run_of_its_own() -> None:
    told: dict[str, Any] = {}
    for cache in ("Run", "Store"):
        world = World(manifest(cache=cache))
        world.look()
        finish(world)
        artifact = next(one.artifact for one in plan_of(world.run, discovered=discovered_in(world.status)).steps[1:])
        assert artifact
        world.change(artifact)
        world.drive()
        assert world.status.phase is RunPhase.SUCCEEDED
        told[cache] = step(world, "finetune").digest, step(world, "finetune").cached
    assert told["Store"] == ("was planted", True)
    assert told["Run"][0].startswith("made by ") and not told["Run"][1]
