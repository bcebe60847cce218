"""Problem told in conditions: for runs under way and finished ones, kept while it lasts, gone when it is over."""

from datetime import UTC, datetime, timedelta

import pytest
from jobs_world import World
from tests.support.matchers import has_condition, verdicts

from compression_operator.api.run import GROUP
from compression_operator.backends.kinds import PERMISSIONS
from compression_operator.core.problems import (
    FORBIDDEN,
    QUOTA_EXCEEDED,
    REASONS,
    REFUSED,
    Problem,
    refusal,
    with_problem,
)
from compression_operator.core.reconcile import reconcile

TIME = datetime(2026, 11, 1, 12, tzinfo=UTC)
PROBLEM = Problem(FORBIDDEN, "cannot create")


def test_a_run_under_way_is_held_up_by_it() -> None:
    status = with_problem({"phase": "Preparing", "steps": [1]}, PROBLEM, generation=3, now=TIME)
    assert verdicts(status) == {
        "Degraded": ("True", FORBIDDEN),
        "Ready": ("False", FORBIDDEN),
        "Progressing": ("False", FORBIDDEN),
        "Reconciling": ("True", FORBIDDEN),
    }
    assert status["steps"] == [1] and status["phase"] == "Preparing", "the rest is left as it is, whatever it means"
    assert all(c["observedGeneration"] == 3 for c in status["conditions"])


def test_a_run_that_was_never_looked_at_is_pending() -> None:
    """`kubectl get` has a word for it, and nothing claims that its spec was planned."""
    status = with_problem({}, PROBLEM, generation=1, now=TIME)
    assert status["phase"] == "Pending" and "observedGeneration" not in status


def test_what_is_told_already_is_no_news() -> None:
    status = with_problem({}, PROBLEM, generation=1, now=TIME)
    assert with_problem(status, PROBLEM, generation=1, now=TIME + timedelta(hours=1)) == status
    other = with_problem(status, Problem(REFUSED, "x"), generation=1, now=TIME + timedelta(hours=1))
    assert other != status and other["conditions"][0]["lastTransitionTime"] == "2026-11-01T12:00:00Z"


def test_a_finished_run_stays_what_it_is_and_heals() -> None:
    world = World()
    world.drive()
    assert world.status.phase == "Succeeded"
    troubled = with_problem(world.status.to_json(), PROBLEM, generation=1, now=TIME)
    assert has_condition(troubled, "Ready", "True") and has_condition(troubled, "Degraded", "True", reason=FORBIDDEN)
    run = world.run.model_copy(update={"status": type(world.status).model_validate(troubled)})
    healed = reconcile(run, [], world.now).status
    assert [(c.type, c.status, c.reason, c.message) for c in healed.conditions] == [
        (c.type, c.status, c.reason, c.message) for c in world.status.conditions
    ]
    assert reconcile(world.run, [], world.now).status == world.status, "nothing is written where there was no problem"


def test_words_for_refusals() -> None:
    assert refusal(403, 'User "x" cannot create resource "pytorchjobs"').reason == FORBIDDEN
    assert refusal(403, "exceeded quota: small").reason == QUOTA_EXCEEDED
    assert refusal(403, 'admission webhook "policy" denied the request').message.startswith("the API server forbids")
    assert refusal(422, "spec.x: Invalid").reason == REFUSED
    assert {refusal(code, "").reason for code in (400, 403, 404, 422)} <= set(REASONS)


@pytest.mark.parametrize(
    ("resource", "said"),
    [
        ("pytorchjobs.kubeflow.org", "know pytorchjobs.kubeflow.org: is the training operator installed?"),
        (f"compressionruns.{GROUP}", f"know compressionruns.{GROUP}: install the CRD with `kubectl apply -f crds/`"),
        ("leases.coordination.k8s.io", "know leases.coordination.k8s.io: 404 page not found"),
    ],
)
def test_what_the_cluster_lacks_is_named_with_what_to_install(resource: str, said: str) -> None:
    """A real API server says nothing of what it was asked for."""
    problem = refusal(404, "404 page not found", resource)
    assert problem.reason == REFUSED and problem.message.startswith(f"the API server does not {said}")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (
            ' in the namespace "team-a"',
            "the operator may not get pods/log in namespace team-a: add this to the Role or",
        ),
        (" at the cluster scope", "the operator may not get pods/log in the whole cluster: add this to the Role"),
    ],
)
def test_a_denied_right_is_named_with_what_to_do(where: str, said: str) -> None:
    words = f'pods is forbidden: User "system:serviceaccount:a:b" cannot get resource "pods/log" in API group ""{where}'
    assert refusal(403, words).message.startswith(said) and refusal(403, words).message.endswith(words)


def test_permissions_are_told_apart() -> None:
    assert len({(p.group, p.resource) for p in PERMISSIONS}) == len(PERMISSIONS)
    assert all("*" not in (p.group, p.resource, *p.verbs) for p in PERMISSIONS)
