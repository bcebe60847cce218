"""The chart's CronJob for `compression gc`: off unless a store is named, and a dry run unless told otherwise."""

import argparse
from typing import Any

import pytest
from tests.packaging.helm import Body, container, everything, only, pod, render

from compression_operator.cli.__main__ import parser

STORE = {"namespace": "research", "claimName": "models"}
IDS = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}


def cleaning(values: Body, **options: Any) -> list[Body]:
    """What the chart makes for the clean-up."""
    bodies = render(values, **options)
    return [body for body in bodies if body["metadata"]["labels"]["app.kubernetes.io/component"] == "gc"]


def spec_of(bodies: list[Body]) -> Body:
    return only(bodies, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def told(bodies: list[Body]) -> argparse.Namespace:
    """What the command makes of its arguments."""
    (found,) = spec_of(bodies)["containers"]
    assert found["command"] == ["compression"]
    return parser().parse_args(found["args"])


def test_it_is_off_and_then_only_says_what_it_would_remove() -> None:
    assert cleaning({}) == []
    asked = told(cleaning({"gc": {"stores": [STORE]}}))
    assert (asked.command_name, asked.dry_run, asked.older_than.days) == ("gc", True, 7)
    assert (str(asked.store), asked.namespace) == ("/compression", ["research"])
    assert told(cleaning({"gc": {"stores": [STORE], "dryRun": False}})).dry_run is False


def test_it_sees_the_store_and_the_runs_and_nothing_else() -> None:
    bodies = cleaning({"gc": {"stores": [STORE | {"subPath": "a/b", "runsOf": ["other"]}]}})
    account = spec_of(bodies)["serviceAccountName"]
    assert {body["metadata"]["name"] for body in bodies} == {account}
    roles = [body for body in bodies if body["kind"] == "Role"]
    assert [role["metadata"]["namespace"] for role in roles] == ["research", "other"] == told(bodies).namespace
    rights = {"apiGroups": ["modelcompression.io"], "resources": ["compressionruns"], "verbs": ["list"]}
    assert [role["rules"] for role in roles] == [[rights], [rights]]
    bindings = [body for body in bodies if body["kind"] == "RoleBinding"]
    subject = {"kind": "ServiceAccount", "name": account, "namespace": "research"}
    assert [binding["subjects"] for binding in bindings] == [[subject], [subject]]
    (mount,) = spec_of(bodies)["containers"][0]["volumeMounts"]
    assert mount == {"name": "store", "mountPath": "/compression", "subPath": "a/b"}


@pytest.mark.parametrize("ids", ["Fixed", "Cluster"])
def test_it_is_whoever_the_jobs_are_and_restricted(ids: str) -> None:
    spec = spec_of(cleaning({"gc": {"stores": [STORE]}, "jobs": {"user": {"ids": ids}}}))
    security = spec["securityContext"]
    assert {name: security[name] for name in IDS if name in security} == (IDS if ids == "Fixed" else {})
    assert security["runAsNonRoot"] is True and security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["containers"][0]["securityContext"] == container(render({}))["securityContext"]


def test_the_operators_service_does_not_find_its_pods() -> None:
    bodies = render(everything())
    labels = only(bodies, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    selector = only(bodies, "Service")["spec"]["selector"]
    assert selector.items() <= pod(bodies)["metadata"]["labels"].items()
    assert not selector.items() <= labels.items()
    assert labels["app.kubernetes.io/managed-by"] != "compression-operator", "nor does its watch"


def test_stores_do_not_meet() -> None:
    stores = [STORE, STORE | {"subPath": "a"}, {"namespace": "research", "claimName": "n" * 253}]
    made = cleaning({"gc": {"stores": stores}}, release="r" * 53)
    names = [body["metadata"]["name"] for body in made if body["kind"] == "CronJob"]
    assert len(set(names)) == 3 and max(map(len, names)) <= 52
