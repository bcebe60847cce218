"""What is denied without holding a run up: told on the runs of its namespace for as long as it lasts, and once."""

import dataclasses
from datetime import timedelta

import pytest
from jobs_world import START, World, manifest
from looks import condition

from compression_operator.api.run import CompressionRun
from compression_operator.api.status import CompressionRunStatus
from compression_operator.core.jobs import Decision
from compression_operator.core.problems import FORBIDDEN, Circumstances, add_circumstances
from compression_operator.core.reconcile import reconcile
from compression_operator.kube.client import ApiError
from compression_operator.kube.denied_permissions import Denials

DENIED = ApiError(403, "Forbidden", 'User "x" cannot get resource "pods/log" in API group "" in the namespace "a"')

PROGRESS = Circumstances(denied=["no progress: ask"])
BOTH = Circumstances(denied=["no progress: ask", "no Events: ask"])


class Told:
    def __init__(self) -> None:
        self.changed: list[str] = []
        self.denials = Denials(self.changed.append)

    def ask(self, error: ApiError | None, namespace: str = "a", loss: str = "no progress") -> None:
        try:
            with self.denials.note_denial(namespace, loss):
                if error:
                    raise error
        except ApiError as raised:
            assert raised is error
        else:
            assert error is None


def test_a_denial_lasts_until_the_api_server_has_another_answer() -> None:
    world = Told()
    world.ask(None)
    assert not world.changed
    world.ask(DENIED)
    world.ask(DENIED)
    (sentence,) = world.denials.sentences("a")
    assert sentence.startswith("no progress: the operator may not get pods/log in namespace a: add this to the Role")
    assert world.changed == ["a"] and not world.denials.sentences("b")
    world.ask(None, namespace="b")
    world.ask(None, loss="no Events")
    world.ask(ApiError(503, "ServiceUnavailable", ""))
    assert world.denials.sentences("a") == [sentence], "another request, another namespace, no answer: no news"
    world.ask(None)
    assert not world.denials.sentences("a") and world.changed == ["a", "a"]


@pytest.mark.parametrize("error", [ApiError(404, "NotFound", ""), ApiError(403, "", "", namespace_gone=True)])
def test_what_is_no_denial(error: ApiError) -> None:
    world = Told()
    world.ask(error)
    assert not world.denials.sentences("a")


def test_one_that_is_answered_with_not_found_is_denied_no_more() -> None:
    world = Told()
    world.ask(DENIED)
    world.ask(ApiError(404, "NotFound", ""))
    assert not world.denials.sentences("a")


def degraded(status: CompressionRunStatus) -> tuple[str, str, str]:
    found = condition(status, "Degraded")
    return found.status, found.reason, found.message


def after(run: CompressionRun, decision: Decision) -> CompressionRun:
    return run.model_copy(update={"status": decision.status})


def test_a_run_under_way_is_degraded_by_it_told_once_and_heals() -> None:
    run = World(manifest(suspend=True)).run  # none of its jobs is missed meanwhile
    first = add_circumstances(run, reconcile(run, [], START), BOTH, START)
    assert degraded(first.status) == ("True", FORBIDDEN, "no progress: ask; no Events: ask")
    assert [n.message for n in first.events if n.reason == FORBIDDEN] == ["no progress: ask", "no Events: ask"]
    run, later = after(run, first), START + timedelta(seconds=30)
    again = add_circumstances(run, reconcile(run, [], later), BOTH, later)
    assert again.status == first.status and not [n for n in again.events if n.reason == FORBIDDEN]
    assert degraded(add_circumstances(run, reconcile(run, [], later), Circumstances(), later).status)[:2] == (
        "False",
        "AsExpected",
    )


def test_what_degrades_a_run_already_is_told_too() -> None:
    run = World().run
    decision = reconcile(run, [], START)
    conditions = [
        c.model_copy(update={"status": "True", "reason": "Retrying", "message": "prepare: it broke"})
        if c.type == "Degraded"
        else c
        for c in decision.status.conditions
    ]
    decision = dataclasses.replace(decision, status=decision.status.model_copy(update={"conditions": conditions}))
    assert degraded(add_circumstances(run, decision, PROGRESS, START).status) == (
        "True",
        "Retrying",
        "prepare: it broke; no progress: ask",
    )


def test_a_finished_run_lacks_nothing() -> None:
    world = World()
    world.drive()
    decision = Decision(world.status)
    assert add_circumstances(world.run, decision, PROGRESS, START) is decision
