"""The chart's ValidatingAdmissionPolicy says at once, on every minor that the chart admits, what the operator would."""

import json
import subprocess
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.cluster import build
from tests.packaging.helm import CHART, Body, kinds, only, render
from tests.packaging.test_kubernetes_floor import floor, newest

from compression_operator.api import templates
from compression_operator.api.admission import LONGEST, policies_text
from compression_operator.api.cel import LISTED
from compression_operator.api.templates import PodTemplates, TemplatePolicy, template_findings

BUDGET = 10_000_000
"""What one evaluation of a policy may cost."""

HOST_PATH: Body = {"volumes": [{"name": "nvme", "hostPath": {"path": "/mnt/disks/ssd0"}}]}
DROPPED: Body = {
    "serviceAccountName": "s3-reader",
    "hostNetwork": True,
    "hostIPC": True,
    "containers": [{"name": "pytorch", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}],
    **HOST_PATH,
}
"""What vanished from pods without a word (the public report: a node's disk and InfiniBand for one's pods)."""


def run(template: Body, **spec: Any) -> Body:
    return {"spec": {"jobTemplate": {"podTemplate": template}, **spec}}


def policy(said: PodTemplates = PodTemplates.RESTRICTED, images: tuple[str, ...] = ()) -> Body:
    """As the chart has it."""
    return only(
        render({"jobs": {"podTemplate": said.value, "allowedImages": list(images)}}), "ValidatingAdmissionPolicy"
    )


def asked(judge: Body, objects: list[Body], *minors: int, old: Body | None = None) -> list[Body]:
    """What servers of these minors answer to each object: `refused` (empty where it is taken) and `cost`."""
    build.build((build.CRD_RULES,), print)
    questions = [{"object": one} | ({"oldObject": old} if old else {}) for one in objects]
    done = subprocess.run(
        [build.CRD_RULES.built() / "crd-rules", *(f"1.{minor}" for minor in minors or (floor(),))],
        input="\n---\n".join(map(json.dumps, [judge, *questions])),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def parts(told: str) -> list[str]:
    """The sentences in any order: the API server's maps have none."""
    return sorted(told.split("; ")) if told else []


def by_operator(body: Body, judge: TemplatePolicy) -> str:
    return "; ".join(f"{path} {why}" for path, why in template_findings(body["spec"], judge))


# -- the same words ----------------------------------------------------------------------------------------------------


def test_the_file_is_the_generated_one() -> None:
    assert (CHART / "files" / "podtemplates.yaml").read_text() == policies_text(), "run `make crds`"


@pytest.mark.parametrize("said", PodTemplates)
def test_every_minor_that_the_chart_admits_refuses_in_the_operators_words(said: PodTemplates) -> None:
    minors = range(floor(), newest() + 1)
    answers = asked(policy(said), [run({"spec": DROPPED}), run({})], *minors)
    assert [answer["minor"] for answer in answers[::2]] == [f"1.{minor}" for minor in minors]
    expected = by_operator(run({"spec": DROPPED}), TemplatePolicy(said))
    assert {tuple(parts(answer["refused"])) for answer in answers[::2]} == {tuple(parts(expected))}
    assert {answer["refused"] for answer in answers[1::2]} == {""}


NAMES = {
    *("metadata", "spec", "labels", "annotations", "containers", "initContainers", "volumes", "ephemeralContainers"),
    *("hostNetwork", "nodeName", "serviceAccountName", "automountServiceAccountToken", "restartPolicy", "affinity"),
    *("securityContext", "lifecycle", "ports", "env", "volumeMounts", "image", "command", "stdin", "name", "resources"),
    *("httpGet", "tcpSocket", "exec", "host", "hostPort", "containerPort", "mountPath", "projected", "sources", "nfs"),
    *(
        "capabilities",
        "add",
        "drop",
        "sysctls",
        "seccompProfile",
        "seLinuxOptions",
        "type",
        "runAsUser",
        "runAsNonRoot",
    ),
    *("supplementalGroups", "privileged", "readOnlyRootFilesystem", "serviceAccountToken", "reference", "hostPath"),
    *templates.HANDLERS,
    *templates.HOOKS,
    *templates.VOLUMES,
    *("modelcompression.io/run", "container.apparmor.security.beta.kubernetes.io/pytorch", "team"),
}
VALUES = (
    *(None, True, False, 0, 1, 5, -1, 2**31, 1.5, "", "pytorch", "HF_TOKEN", "store", "/tmp/x", "//dev//shm", "/data"),
    *("NET_BIND_SERVICE", "IPC_LOCK", "RuntimeDefault", "Unconfined", "Never", "kernel.msgmax", "tools:1", "evil:1"),
)
LISTS = {"containers", "initContainers", "volumes", "ports", "env", "volumeMounts", "sources", "add", "sysctls"}
LISTS |= {"supplementalGroups"}


def field(name: str, below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly of the kind that the field is of, so that what is looked at lies deep."""
    return st.lists(below, max_size=3) if name in LISTS else below


JSON: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(VALUES),
    lambda below: st.one_of(
        st.lists(below, max_size=2),
        st.lists(st.sampled_from(sorted(NAMES)), max_size=5, unique=True).flatmap(
            lambda names: st.fixed_dictionaries({name: field(name, below) for name in names})
        ),
    ),
    max_leaves=25,
)
CONTAINER = st.fixed_dictionaries(
    {"name": st.sampled_from(["pytorch", "side"])},
    optional=dict.fromkeys(
        ("securityContext", "ports", "env", "volumeMounts", "livenessProbe", "lifecycle", "image", "command"), JSON
    ),
)
VOLUME = st.fixed_dictionaries(
    {"name": st.sampled_from(["store", "mine", 5])},
    optional=dict.fromkeys(("projected", "image", "hostPath", "emptyDir"), JSON),
)
POD = st.fixed_dictionaries(
    {},
    optional={
        "containers": st.lists(CONTAINER, max_size=2),
        "initContainers": st.lists(CONTAINER, max_size=1),
        "volumes": st.lists(VOLUME, max_size=2),
        "securityContext": JSON,
        "hostNetwork": st.sampled_from(VALUES),
        "automountServiceAccountToken": st.sampled_from(VALUES),
        "somethingNew": st.sampled_from(VALUES),
    },
)
TEMPLATE = st.one_of(
    st.fixed_dictionaries({"spec": POD}, optional={"metadata": JSON}),
    st.dictionaries(st.sampled_from(sorted(NAMES)), JSON, max_size=3),
)


@pytest.mark.parametrize("said", [PodTemplates.RESTRICTED, PodTemplates.UNRESTRICTED])
@given(st.lists(TEMPLATE, min_size=40, max_size=40))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_whatever_a_template_says_the_policy_says_of_it_what_the_operator_does(
    said: PodTemplates, found: list[Body]
) -> None:
    judge = TemplatePolicy(said, ("registry.example/*", "tools:?"))
    bodies = [run(template) for template in found]
    for body, answer in zip(bodies, asked(policy(said, judge.images), bodies), strict=True):
        expected = by_operator(body, judge)
        if len(expected) > LONGEST:
            assert answer["refused"].endswith(" ...")
        else:
            assert parts(answer["refused"]) == parts(expected), body
        assert answer["cost"] < BUDGET / 10


# -- places, and what stays --------------------------------------------------------------------------------------------


def test_every_place_is_looked_at() -> None:
    body = run({"spec": {"hostPID": True}}, phases={"distill": {"podTemplate": {"spec": HOST_PATH}}, "prune": {}})
    body["spec"]["jobTemplate"]["image"] = "evil:1"
    judge = TemplatePolicy(images=("registry.example/ai/*",))
    (answer,) = asked(policy(images=judge.images), [body])
    assert parts(answer["refused"]) == parts(by_operator(body, judge))
    for path in (
        "jobTemplate.image",
        "jobTemplate.podTemplate.spec.hostPID",
        "phases.distill.podTemplate.spec.volumes[0]",
    ):
        assert f"spec.{path}" in answer["refused"]


def test_a_run_that_was_taken_before_may_still_be_edited() -> None:
    """Its template is told of in its status; whoever suspends it meanwhile is not to be stopped by that."""
    old = run({"spec": DROPPED})
    suspended = run({"spec": DROPPED}, suspend=True)
    worse = run({"spec": {**DROPPED, "hostPID": True}})
    answers = asked(policy(), [suspended, worse], old=old)
    assert answers[0]["refused"] == "" and "spec.hostPID is not allowed" in answers[1]["refused"]


def test_a_template_as_large_as_a_template_gets_is_looked_at() -> None:
    """Within the budget that the API server gives."""
    env = [{"name": f"VARIABLE_{number}", "value": "x"} for number in range(2 * LISTED)]
    ports = [{"containerPort": number} for number in range(1, 20)]
    probe = {"httpGet": {"port": 80, "path": "/"}}
    one = {"env": env, "ports": ports, **dict.fromkeys(templates.HANDLERS, probe)}
    containers = [{"name": "pytorch", "env": env}, *({"name": f"side-{n}", "image": "a:1", **one} for n in range(10))]
    mounts = [{"name": f"v{number}", "emptyDir": {}} for number in range(60)]
    template = {"spec": {"containers": containers, "volumes": mounts}}
    places = {phase: {"podTemplate": template} for phase in ("prepare", "finetune", "prune", "distill", "export")}
    (answer,) = asked(policy(), [run(template, phases=places)])
    assert answer["refused"] == "" and answer["cost"] < BUDGET / 2


# -- the chart's part --------------------------------------------------------------------------------------------------


def test_it_is_of_the_namespaces_that_the_operator_watches() -> None:
    assert "matchResources" not in only(render({}), "ValidatingAdmissionPolicyBinding")["spec"]
    bound = only(render({"watchNamespaces": ["a", "b"]}), "ValidatingAdmissionPolicyBinding")["spec"]
    (matched,) = bound["matchResources"]["namespaceSelector"]["matchExpressions"]
    assert matched == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    assert bound["policyName"] == policy()["metadata"]["name"] and bound["validationActions"] == ["Deny"]


def test_it_can_be_left_out() -> None:
    assert not {kind for kind in kinds(render({"admissionPolicy": {"create": False}})) if "Admission" in kind}
