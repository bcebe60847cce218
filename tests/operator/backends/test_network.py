"""Network policies of jobs: whom their pods may speak with, and that they are there before the pods are."""

from pathlib import Path

import pytest
from api_world import RUN, ApiWorld, Operator, refused, run_in_world
from test_render import a_run, jobs, pods
from tests.support.matchers import has_condition
from tests.support.waiting import until_async

from compression_operator.backends.pods.network_policy import NETWORK_POLICIES, network_policy
from compression_operator.backends.pods.platform_defaults import JobDefaults
from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.cli.inspect import with_placeholders
from compression_operator.core.plan import plan
from compression_operator.kube.client import RUNS

POLICIES = NETWORK_POLICIES.path("default")
DENIED = (
    'networkpolicies.networking.k8s.io is forbidden: User "x" cannot create resource "networkpolicies" in API group '
    '"networking.k8s.io" in the namespace "default"'
)


def test_pods_of_a_step_speak_with_each_other_and_nobody_else_with_them() -> None:
    run = a_run()
    planned = with_placeholders(plan(run.spec))
    made = jobs(run)
    names: set[str] = set()
    for step in planned.steps:
        first, second = (
            network_policy(run, planned.job(step, run=run.metadata.name, attempt=attempt)) for attempt in (1, 2)
        )
        assert first == second, "attempts at a step follow each other"
        spec, owner = first["spec"], first["metadata"]["ownerReferences"][0]
        own = spec["podSelector"]["matchLabels"]
        for name, job in made.items():
            selected = all(own.items() <= pod["metadata"]["labels"].items() for pod in pods(job))
            assert selected == (name == step.name)
        assert (owner["kind"], owner["uid"]) == ("CompressionRun", run.metadata.uid)
        assert spec["ingress"] == [{"from": [{"podSelector": {"matchLabels": own}}]}]
        if step.name == "prepare":
            assert spec["egress"] == [{}], "the Hub, a mirror of it or a proxy may be anywhere"
        else:
            to_own, names_alone = spec["egress"]
            assert to_own == {"to": [{"podSelector": {"matchLabels": own}}]}
            asked = {(port["protocol"], port["port"]) for port in names_alone["ports"]}
            assert asked == {(protocol, port) for protocol in ("UDP", "TCP") for port in (53, 5353)}
        names.add(first["metadata"]["name"])
    assert len(names) == len(planned.steps)
    assert all(len(name) <= 253 for name in names)


def test_a_policy_comes_before_its_job_and_no_job_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(api: ApiWorld) -> None:
        api.fault = lambda method, path: refused(403, DENIED) if path == POLICIES else None
        async with Operator(jobs=JobDefaults(network_policy=True)) as service:
            await until_async(
                lambda: has_condition(api, "Degraded", "True", reason="Forbidden"),
                "the run to tell that it may not make policies",
            )
            assert not api.names(PYTORCHJOBS)
            # Of the attempt before it is there.
            api.fault = lambda method, path: (409, {"reason": "AlreadyExists"}, {}) if path == POLICIES else None
            service.note_event(RUNS, "MODIFIED", api.touch(RUN))
            await until_async(
                lambda: api.names(PYTORCHJOBS) and has_condition(api, "Degraded", "False"),
                "the job, and the run to be well",
            )
            posted = [path for method, path, *_ in list(api.asked) if method == "POST"]
            assert posted.index(POLICIES) < posted.index(PYTORCHJOBS.path("default"))

    run_in_world(scenario, tmp_path, monkeypatch)
