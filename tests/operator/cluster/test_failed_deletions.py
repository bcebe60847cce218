"""Jobs that cannot be deleted: told once, for as long as they are to go, and then no more."""

import copy
from pathlib import Path

import pytest
from api_world import RUN, ApiWorld, Operator, refused, run_in_world
from jobs_world import START, World
from looks import at, open_jobs
from tests.support.matchers import has_condition
from tests.support.waiting import until_async

from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.cluster.errors import RunErrors
from compression_operator.core.jobs import Decision, DeleteJob
from compression_operator.core.problems import FORBIDDEN, Circumstances, Problem, add_circumstances
from compression_operator.core.reconcile import reconcile
from compression_operator.kube.client import RUNS, ApiError

KEY = "default/demo"
WORDS = (
    'pytorchjobs.kubeflow.org "x" is forbidden: User "a" cannot delete resource "pytorchjobs" in API group '
    '"kubeflow.org" in the namespace "default"'
)
DENIED = ApiError(403, "Forbidden", WORDS)
GOING = Decision(World().status, tuple(DeleteJob(name, "prepare", "") for name in ("a", "b")))


def test_a_job_that_cannot_be_deleted_is_told_once_and_heals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass wrote that all was well, and took it back when the deletion was refused."""
    run_in_world(stuck, tmp_path, monkeypatch)


async def stuck(api: ApiWorld) -> None:
    async with Operator() as service:
        await until_async(
            lambda: api.names(PYTORCHJOBS) and has_condition(api, "Ready"), "a job, and the condition Ready"
        )
        (job,) = api.names(PYTORCHJOBS)
        api.fault = lambda method, path: refused(403, WORDS) if method == "DELETE" else None
        written = api.requests("PUT", RUN)
        service.note_event(RUNS, "MODIFIED", api.edit(RUN, suspend=True))
        await until_async(
            lambda: api.requests("DELETE", job) >= 5 and FORBIDDEN in api.events,
            "five tries to delete it, and an Event",
        )
        assert api.requests("PUT", RUN) - written == 2, "that it is suspended, and what keeps its job from going"
        assert has_condition(api, "Suspended", "True", reason="Suspended")
        assert has_condition(api, "Degraded", "True", reason=FORBIDDEN)
        assert has_condition(api, "Ready", "False", reason=FORBIDDEN)
        assert api.events.count(FORBIDDEN) == 1
        body = copy.deepcopy(api.objects[job])
        api.fault = lambda method, path: None
        service.note_event(RUNS, "MODIFIED", api.touch(RUN))  # anything that has it looked at
        await until_async(lambda: not api.names(PYTORCHJOBS), "the job to go")
        body["metadata"]["resourceVersion"] = str(api.version)
        service.note_event(PYTORCHJOBS, "DELETED", body)
        await until_async(
            lambda: has_condition(api, "Degraded", "False", reason="AsExpected"), "the run to be well again"
        )


def test_a_finished_run_stays_what_it_is_with_a_job_that_cannot_be_deleted() -> None:
    world = World()
    world.drive()
    refusal = Problem(FORBIDDEN, WORDS * 20)
    first = add_circumstances(
        world.run, reconcile(world.run, world.listing(), world.now), Circumstances(refusal), world.now
    )
    assert has_condition(first, "Ready", "True", reason="Succeeded")
    assert has_condition(first, "Degraded", "True", reason=FORBIDDEN)
    run = world.run.model_copy(update={"status": first.status})
    world.pass_time(60)
    again = add_circumstances(run, reconcile(run, world.listing(), world.now), Circumstances(refusal), world.now)
    assert again.status == first.status and first.events and not again.events, "however long the refusal is"


def test_only_what_is_still_to_go_is_told() -> None:
    errors = RunErrors(lambda: START)
    errors.note_failed_deletions(KEY, {"b": DENIED, "a": ApiError(422, "Invalid", "no")})
    assert [problem.reason for problem in errors.failed_deletions(KEY, GOING)] == ["Refused", FORBIDDEN]
    assert not errors.failed_deletions("default/other", GOING)
    world = at(World())
    assert open_jobs(world) and not errors.failed_deletions(KEY, reconcile(world.run, world.listing(), START))
    errors.note_failed_deletions(KEY, {"b": ApiError(0, "Unreachable", "no answer")})
    assert [problem.reason for problem in errors.failed_deletions(KEY, GOING)] == [FORBIDDEN], (
        "no answer is no permission"
    )
    errors.note_failed_deletions(KEY, {})
    assert not errors.failed_deletions(KEY, GOING)
