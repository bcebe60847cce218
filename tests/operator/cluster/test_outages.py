"""What should have passed by itself and has not: told once, by its cause, and over as soon as it is."""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_world import RUN, ApiWorld, Operator, run_in_world
from http_server import Answer
from tests.support.matchers import has_condition
from tests.support.waiting import until_async

from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.cluster.errors import FailedPass, RunErrors
from compression_operator.cluster.service import Service
from compression_operator.core.problems import API_SERVER_UNAVAILABLE, FORBIDDEN, WEBHOOK_UNAVAILABLE
from compression_operator.kube.client import EVENTS, RUNS, ApiError

KEY = "default/demo"
WORDS = (
    'Internal error occurred: failed calling webhook "validator.pytorchjob.training-operator.kubeflow.org": failed to '
    'call webhook: Post "https://training-operator.kubeflow.svc:443/validate?timeout=10s": no endpoints available'
)
DOWN: Answer = (500, {"kind": "Status", "reason": "InternalError", "message": WORDS}, {})
FULL: Answer = (500, {"kind": "Status", "message": "etcdserver: mvcc: database space exceeded"}, {})


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2026, 11, 1, tzinfo=UTC)
        self.errors = RunErrors(lambda: self.time)

    def reason(self, error: Exception, after: float = 0) -> str | None:
        self.time += timedelta(seconds=after)
        problem = self.errors.problem(KEY, error)
        return problem.reason if problem else None


def test_it_is_told_once_it_has_lasted_for_a_minute_and_is_over_with_the_first_pass_that_goes_through() -> None:
    clock, error = Clock(), ApiError(500, "InternalError", WORDS)
    assert [clock.reason(error, after) for after in (0, 30, 29)] == [None] * 3
    assert clock.reason(error, 1) == WEBHOOK_UNAVAILABLE
    told = clock.errors.problem(KEY, ApiError(500, "InternalError", WORDS.replace("no endpoints", "x")))
    assert told is not None and told.message.endswith(WORDS), "the words of a try are no news"
    assert "is the training operator running?" in told.message
    assert clock.errors.note_reported(KEY) and not clock.errors.note_reported(KEY)
    clock.errors.end_outage(KEY)
    assert clock.reason(error) is None and not clock.errors.note_reported(KEY)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ApiError(0, "Unreachable", "no answer from the API server: none within 30 s"), API_SERVER_UNAVAILABLE),
        (ApiError(503, "ServiceUnavailable", "etcd"), API_SERVER_UNAVAILABLE),
        (ApiError(429, "TooManyRequests", "slow"), API_SERVER_UNAVAILABLE),
        (ApiError(500, "", 'failed calling webhook "policy.example": timeout'), WEBHOOK_UNAVAILABLE),
        (ApiError(403, "Forbidden", "no", namespace_gone=True), None),
    ],
)
def test_by_its_cause(error: ApiError, reason: str | None) -> None:
    clock = Clock()
    assert clock.reason(error) is None
    assert clock.reason(error, 60) == reason


def test_what_will_not_go_away_is_told_at_once() -> None:
    assert Clock().reason(ApiError(403, "Forbidden", "no")) == FORBIDDEN


def test_the_log_says_it_once() -> None:
    clock, error = Clock(), ApiError(500, "", WORDS)
    waits = [clock.errors.classify(KEY, clock.errors.problem(KEY, error), 1)]
    clock.time += timedelta(seconds=60)
    waits += [clock.errors.classify(KEY, clock.errors.problem(KEY, error), count) for count in (2, 3, 4)]
    assert waits == [FailedPass.ERROR] * 2 + [FailedPass.STILL_THE_SAME] * 2


# -- a whole operator -------------------------------------------------------------------------------------------------


@pytest.fixture
def play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[ApiWorld, Service], Coroutine[Any, Any, None]]], None]:
    """Plays a scenario with an operator for which a second is as long as a minute."""

    def run(scenario: Callable[[ApiWorld, Service], Coroutine[Any, Any, None]]) -> None:
        async def whole(api: ApiWorld) -> None:
            async with Operator() as service:
                await scenario(api, service)

        monkeypatch.setattr("compression_operator.cluster.errors.PATIENCE", timedelta(seconds=1))
        run_in_world(whole, tmp_path, monkeypatch)

    return run


def test_jobs_that_cannot_be_made_for_a_webhook_is_down(play: Callable[..., None]) -> None:
    async def scenario(api: ApiWorld, service: Service) -> None:
        api.fault = lambda method, path: DOWN if method == "POST" and "pytorchjobs" in path else None
        await until_async(
            lambda: has_condition(api, "Degraded", "True", reason=WEBHOOK_UNAVAILABLE), "the run to tell of the webhook"
        )
        assert has_condition(api, "Ready", "False", reason=WEBHOOK_UNAVAILABLE)
        await until_async(lambda: WEBHOOK_UNAVAILABLE in api.events, "an Event of it")
        tries = api.requests("POST", PYTORCHJOBS.path("default"))
        await until_async(lambda: api.requests("POST", PYTORCHJOBS.path("default")) > tries, "another try")
        api.fault = lambda method, path: None
        await until_async(lambda: api.names(PYTORCHJOBS), "the job")
        await until_async(
            lambda: has_condition(api, "Degraded", "False", reason="AsExpected"), "the run to be well again"
        )
        assert api.events.count(WEBHOOK_UNAVAILABLE) == 1

    play(scenario)


def test_jobs_that_cannot_be_deleted(play: Callable[..., None]) -> None:
    async def scenario(api: ApiWorld, service: Service) -> None:
        await until_async(lambda: api.names(PYTORCHJOBS), "the job")
        api.fault = lambda method, path: DOWN if method == "DELETE" else None
        service.note_event(RUNS, "MODIFIED", api.edit(RUN, suspend=True))
        await until_async(
            lambda: has_condition(api, "Degraded", "True", reason=WEBHOOK_UNAVAILABLE), "the run to tell of the webhook"
        )
        api.fault = lambda method, path: None
        await until_async(lambda: not api.names(PYTORCHJOBS), "the job to go")
        await until_async(lambda: WEBHOOK_UNAVAILABLE in api.events, "an Event of it")
        assert api.events.count(WEBHOOK_UNAVAILABLE) == 1

    play(scenario)


def test_a_status_that_cannot_be_written_is_told_by_an_event(play: Callable[..., None]) -> None:
    async def scenario(api: ApiWorld, service: Service) -> None:
        api.fault = lambda method, path: FULL if method == "PUT" else None
        await until_async(lambda: API_SERVER_UNAVAILABLE in api.events, "an Event of the API server")
        tries = api.requests("PUT", RUN)
        await until_async(lambda: api.requests("PUT", RUN) > tries + 2, "three more tries to write the status")
        assert api.events.count(API_SERVER_UNAVAILABLE) == 1
        (event,) = [asked[2] for asked in list(api.asked) if asked[1] == EVENTS.path("default")
                    and asked[2]["reason"] == API_SERVER_UNAVAILABLE]  # fmt: skip
        assert event["type"] == "Warning" and "database space exceeded" in event["note"]
        api.fault = lambda method, path: None
        await until_async(
            lambda: has_condition(api, "Degraded", "False", reason="AsExpected"), "the run to be well again"
        )

    play(scenario)
