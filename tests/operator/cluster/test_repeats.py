"""Passes that fail: told once and counted where they are failures, a wait where the status says that it is one."""

import asyncio
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from compression_operator.cluster.errors import FailedPass, RunErrors
from compression_operator.cluster.options import Options
from compression_operator.cluster.service import Service
from compression_operator.core.problems import FORBIDDEN, QUOTA_EXCEEDED, REFUSED, Problem
from compression_operator.kube.client import ApiError

KEY = "default/demo"
TIME = datetime(2026, 11, 1, tzinfo=UTC)
ERROR, WAIT, SAME = FailedPass.ERROR, FailedPass.WAIT, FailedPass.STILL_THE_SAME
COUNTER = "compression_reconcile_errors_total"


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not asked for anything."""
    context = {"name": "x", "context": {"cluster": "x", "user": "x"}}
    config: dict[str, Any] = {
        "contexts": [context],
        "current-context": "x",
        "users": [{"name": "x", "user": {"token": "t"}}],
    }
    config["clusters"] = [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}}]
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))


def error(code: int, message: str) -> ApiError:
    return ApiError(code, "Forbidden" if code == 403 else "Invalid", message)


def full(used: int) -> ApiError:
    return error(403, f'pytorchjobs "demo-prepare-1" is forbidden: exceeded quota: q, used: count/jobs={used}')


def levels(caplog: pytest.LogCaptureFixture, *errors: ApiError, in_status: bool = True) -> tuple[list[str], float]:
    """What an operator logs of these failures in a row of one run, and how many it counts as errors."""

    async def scenario() -> float:
        service = Service(Options(image="x"))
        for index, failure in enumerate(errors):
            service.pass_failed(KEY, failure, index + 1, in_status=in_status)
        lines = service._metrics.exposition().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{COUNTER} "))

    with caplog.at_level(logging.DEBUG, "compression_operator.cluster.service"):
        counted = asyncio.run(scenario())
    return [
        record.levelname for record in caplog.records if record.name == "compression_operator.cluster.service"
    ], counted


def test_a_full_quota_is_a_wait_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    assert levels(caplog, full(3), full(3), full(4), full(3)) == (["WARNING", "DEBUG", "DEBUG", "DEBUG"], 0)


def test_what_is_refused_is_an_error_once(caplog: pytest.LogCaptureFixture) -> None:
    bad, worse = error(422, "spec.x is wrong"), error(422, "spec.y is wrong")
    assert levels(caplog, bad, bad, worse, bad) == (["ERROR", "DEBUG", "ERROR", "ERROR"], 3)


def test_what_somebody_has_to_mend_stays_an_error(caplog: pytest.LogCaptureFixture) -> None:
    denied = error(403, 'User "x" cannot create resource "pytorchjobs" in API group "kubeflow.org"')
    assert levels(caplog, denied, denied, full(3), denied) == (["ERROR", "ERROR", "WARNING", "ERROR"], 3)


def test_a_success_in_between_makes_it_news() -> None:
    errors, refused = RunErrors(lambda: TIME), Problem(REFUSED, "no")
    quota = Problem(QUOTA_EXCEEDED, "full")
    assert [errors.classify(KEY, quota, n) for n in (1, 2, 1, 2)] == [WAIT, SAME, WAIT, SAME]
    assert [errors.classify(KEY, refused, n) for n in (1, 2, 1)] == [ERROR, SAME, ERROR]
    assert [errors.classify(other, quota, 2) for other in ("default/a", "default/b")] == [WAIT, WAIT]
    assert errors.classify(KEY, Problem(FORBIDDEN, "no"), 2) is ERROR and errors.classify(KEY, None, 3) is ERROR
