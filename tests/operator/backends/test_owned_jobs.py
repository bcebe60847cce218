"""How a run owns its jobs: so that its foreground deletion waits for them, where the operator may ask for that."""

from pathlib import Path

import pytest
from api_world import ApiWorld, Body, Operator, refused, run_in_world
from http_server import Answer
from looks import condition
from tests.support.matchers import has_condition
from tests.support.waiting import until_async

from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS

WORDS = (
    'pytorchjobs.kubeflow.org "x" is forbidden: cannot set blockOwnerDeletion if an ownerReference refers to a '
    "resource you can't set finalizers on: , <nil>"
)


def owner(api: ApiWorld) -> Body:
    (path,) = api.names(PYTORCHJOBS)
    (found,) = api.objects[path]["metadata"]["ownerReferences"]
    return found


def test_a_job_blocks_the_deletion_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(api: ApiWorld) -> None:
        async with Operator():
            await until_async(
                lambda: api.names(PYTORCHJOBS) and has_condition(api, "Degraded"), "the job and the status"
            )
        assert owner(api)["blockOwnerDeletion"] is True and has_condition(api, "Degraded", "False", reason="AsExpected")

    run_in_world(scenario, tmp_path, monkeypatch)


def test_a_job_that_may_not_block_it_is_made_all_the_same_and_the_right_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Role may be an older one, or written by hand."""

    async def scenario(api: ApiWorld) -> None:
        def may_not_block(method: str, path: str) -> Answer | None:
            if (method, path) != ("POST", PYTORCHJOBS.path("default")):
                return None
            job = next(asked[2] for asked in reversed(list(api.asked)) if asked[:2] == (method, path))
            owners = job["metadata"]["ownerReferences"]
            return refused(403, WORDS) if any(one.get("blockOwnerDeletion") for one in owners) else None

        api.fault = may_not_block
        async with Operator():
            await until_async(lambda: has_condition(api, "Degraded", "True", reason="Forbidden"), "what is missing")
        assert "blockOwnerDeletion" not in owner(api)
        told = condition(api, "Degraded").message
        assert told.startswith("a foreground deletion of a run does not wait for its jobs: the operator may not ")
        assert "not update compressionruns/finalizers in namespace default: add this to the Role" in told

    run_in_world(scenario, tmp_path, monkeypatch)
