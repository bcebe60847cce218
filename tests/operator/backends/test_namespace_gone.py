"""In a namespace that is being deleted no job is made, and none is told to have been."""

from pathlib import Path

import pytest
from api_world import ApiWorld, Operator, run_in_world
from http_server import Answer
from tests.support.matchers import has_step
from tests.support.waiting import until_async

from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS

WORDS = 'pytorchjobs "x" is forbidden: unable to create new content in namespace default because it is being terminated'
TERMINATING = {"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]}


def test_a_step_waits_for_a_job_that_nobody_makes_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(api: ApiWorld) -> None:
        def ends(method: str, path: str) -> Answer | None:
            if (method, path) != ("POST", PYTORCHJOBS.path("default")):
                return None
            return 403, {"kind": "Status", "reason": "Forbidden", "message": WORDS, "details": TERMINATING}, {}

        api.fault = ends
        async with Operator():
            await until_async(lambda: has_step(api, "prepare", state="Pending"), "the status")
        assert has_step(api, "prepare", state="Pending", attempt=0) and not api.names(PYTORCHJOBS)

    run_in_world(scenario, tmp_path, monkeypatch)
