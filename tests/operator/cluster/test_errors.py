"""What a pass met with, in words: what passes is not told, a fault of the operator's own is, with what to report."""

from datetime import UTC, datetime
from typing import Any

import pytest

from compression_operator.backends.observe import observe_job
from compression_operator.backends.pytorchjob.kind import PYTORCHJOB
from compression_operator.cluster.errors import creation_failure, is_internal, problem_of
from compression_operator.cluster.runs import UnreadableRun
from compression_operator.core.problems import INTERNAL_ERROR, QUOTA_EXCEEDED, REASONS, UNREADABLE
from compression_operator.kube.client import ApiError, NotLeading


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (ApiError(403, "Forbidden", "exceeded quota: q"), QUOTA_EXCEEDED, "the namespace's quota is used up, waiting"),
        (UnreadableRun("spec.x (no)"), UNREADABLE, "this operator does not understand spec.x"),
        (ApiError(0, "Unreachable", "no answer: <object at 0x7f01>"), None, "the API server does not answer"),
        (ApiError(500, "", "failed calling webhook kueue"), None, "failed calling webhook kueue"),
        (ApiError(404, "NotFound", "namespace", namespace_gone=True), None, "namespace"),
        (NotLeading("no"), None, "no"),
        (KeyError("attempt"), INTERNAL_ERROR, "KeyError: 'attempt'"),
    ],
)
def test_what_is_told_of_an_error(error: Exception, reason: str | None, words: str) -> None:
    problem = problem_of(error)
    assert (problem.reason if problem else None) == reason
    assert creation_failure(error).startswith(words)
    assert is_internal(error) == (reason == INTERNAL_ERROR)
    assert reason is None or reason in REASONS, "so that a finished run heals"


def test_a_fault_of_the_operators_own_says_what_to_report_and_where_it_stands() -> None:
    problem = problem_of(KeyError("attempt"))
    assert problem is not None and problem.message.endswith("KeyError: 'attempt'")
    assert "report it" in problem.message and "log at 'pass failed'" in problem.message


@pytest.mark.parametrize("labels", [{"attempt": "first"}, {"attempt": ""}, {"attempt": "-1"}, {}])
def test_a_job_with_other_labels_than_ours_is_not_ours(labels: dict[str, str]) -> None:
    """Whoever made it: nothing is known of it, and looking at it fails nothing."""
    ours = {"run": "demo", "step": "prepare", "fingerprint": "f" * 32, **labels}
    meta: dict[str, Any] = {
        "name": "stray",
        "uid": "u",
        "labels": {f"modelcompression.io/{k}": v for k, v in ours.items()},
    }
    meta["ownerReferences"] = [{"uid": "run", "controller": True}]
    now = datetime(2026, 11, 1, tzinfo=UTC)
    assert not observe_job(PYTORCHJOB, {"metadata": meta}, (), run_uid="run", now=now).ours
    meta["labels"]["modelcompression.io/attempt"] = "1"
    assert observe_job(PYTORCHJOB, {"metadata": meta}, (), run_uid="run", now=now).ours
