"""Platforms whose admission is stricter than Kubernetes' own: what they refuse is told, and the chart's way out works.

Each is emulated by a ValidatingAdmissionPolicy for the pods of the test's namespace; nothing is mutated.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from api import Api, Body, Refused
from kubelets import NOWHERE
from operators import Namespace
from test_admission_policy_on_server import BINDINGS, POLICIES
from tests.support.waiting import until

RANGE = (1000650000, 1000659999)
"""Users of the namespace, as OpenShift gives each a range."""

IDS = (
    "[object.spec.?securityContext.runAsUser, object.spec.?securityContext.fsGroup]"
    "+ object.spec.containers.map(c, c.?securityContext.runAsUser)"
)
"""CEL for the ids that a pod sets, as optional values."""

OUTSIDE = f"unable to validate against any security context constraint: runAsUser must be in the ranges: {list(RANGE)}"


@contextmanager
def admission(namespace: Namespace, expression: str, message: str, refused: Body) -> Iterator[None]:
    """Pods of the namespace for which the expression is false are refused; `refused` is the spec of one, by which it is
    seen that the API server goes by it.
    """
    api, name = namespace.api, f"{namespace.name}.pods"
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]
    spec: Body = {"matchConstraints": {"resourceRules": rules}, "failurePolicy": "Fail"}
    spec |= {"validations": [{"expression": expression, "message": message}]}
    mine = {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}}
    bound = {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": mine}}
    try:
        api.create(POLICIES, {"metadata": {"name": name}, "spec": spec})
        api.create(BINDINGS, {"metadata": {"name": name}, "spec": bound})
        until(lambda: message in answer(api, namespace.name, refused), "the platform's policy to be in force")
        yield
    finally:
        api.delete(f"{BINDINGS}/{name}")
        api.delete(f"{POLICIES}/{name}")


def answer(api: Api, namespace: str, spec: Body) -> str:
    """What the API server says to a pod; empty where it takes it."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    try:
        api.call("POST", path, {"metadata": {"name": "asked"}, "spec": spec}, dryRun="All")
    except Refused as refused:
        return str(refused)
    return ""


def confined(**fields: object) -> Body:
    """The spec of a pod that the restricted standard takes."""
    capabilities = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **fields}
    return {"containers": [{"name": "c", "image": "x", "securityContext": capabilities}], "securityContext": pod}


def told(namespace: Namespace, words: str) -> bool:
    return words in json.dumps(namespace.status().get("conditions", []), ensure_ascii=False).replace('\\"', '"')


def test_a_platform_that_chooses_the_ids_takes_the_pods_that_leave_them_to_it(namespace: Namespace) -> None:
    """OpenShift's restricted-v2: whoever sets ids is refused, and told why; `jobs.user.ids: Cluster` passes."""
    expression = f"({IDS}).all(i, !i.hasValue() || (i.value() >= {RANGE[0]} && i.value() <= {RANGE[1]}))"
    cluster = json.dumps({"user": {"ids": "Cluster"}})
    with admission(namespace, expression, OUTSIDE, confined(runAsUser=1000)):
        with namespace.operator():
            namespace.submit(jobTemplate=NOWHERE)
            until(lambda: told(namespace, OUTSIDE), "the API server's words on the run")
            assert not namespace.pods()
        namespace.api.delete(namespace.run_path())
        until(lambda: not namespace.jobs(), "the job to be gone")
        with namespace.operator("localhost/none:1", f"--jobs={cluster}", identity="operator-1"):
            namespace.submit(jobTemplate=NOWHERE)
            (pod,) = until(namespace.pods, "the pod")
            assert not {"runAsUser", "runAsGroup", "fsGroup"} & pod["spec"]["securityContext"].keys()


def test_the_init_container_of_jobs_of_several_pods_is_named_with_the_fix(namespace: Namespace, pods: str) -> None:
    """The training operator's own template gives it no securityContext, so the restricted standard refuses the worker;
    this cluster's has one, so a policy says here what the standard says to a container without.
    """
    probe = confined()
    bare: Body = {**probe, "initContainers": [{"name": "init-pytorch", "image": "x"}]}
    said = answer(namespace.api, namespace.name, bare)
    standard = said[said.index("violates PodSecurity") :]
    assert 'container "init-pytorch" must set securityContext.allowPrivilegeEscalation=false' in standard

    def two_pods(body: Body) -> None:
        body["spec"]["phases"]["finetune"]["nodes"] = 2

    expression = "!object.spec.?initContainers.orValue([]).exists(c, c.name == 'init-pytorch')"
    init = {**probe["containers"][0], "name": "init-pytorch"}
    with admission(namespace, expression, standard, {**probe, "initContainers": [init]}), namespace.operator(pods):
        # A master that waits for its place or its image would be told first.
        namespace.submit(behaviour={"finetune": {"sleep": 600}}, edit=two_pods)
        until(lambda: told(namespace, standard), lambda: f"the API server's words on {namespace.status()}")
        assert told(namespace, "give it one by the training operator's template for it")
