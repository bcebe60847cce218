"""The chart, rendered by helm: rights, security, probes, names, labels, and values that are refused."""

import asyncio
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from tests.packaging.helm import (
    CHART,
    REPOSITORY,
    Body,
    Refused,
    container,
    everything,
    helm,
    kinds,
    only,
    pod,
    render,
    with_images,
)

from compression_operator import __version__
from compression_operator.api.documents import read_documents
from compression_operator.backends.kinds import PERMISSIONS
from compression_operator.backends.pods.network_policy import PERMISSION
from compression_operator.cluster.health import Probes, serve
from compression_operator.cluster.options import parse

LONGEST_RELEASE = "r" * 53


# -- the chart as a whole ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, everything()], ids=["defaults", "everything"])
def test_lint_finds_nothing(given: Body) -> None:
    done = subprocess.run(
        [helm(), "lint", "--strict", CHART, "--values", "-"],
        input=yaml.safe_dump(with_images(given)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert not re.findall(r"\[(?:WARNING|ERROR)\].*", done.stdout)


def test_versions_are_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"] == __version__


def test_the_optional_parts_are_optional() -> None:
    always = {"ServiceAccount", "Deployment", "Service"}
    assert kinds(render({})) == always | {
        "CustomResourceDefinition",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "PodDisruptionBudget",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
    assert kinds(render(everything())) == kinds(render({})) | {
        "CronJob",
        "NetworkPolicy",
        "ServiceMonitor",
    }
    bare = {
        "crds": {"install": False},
        "rbac": {"create": False, "userRoles": False},
        "admissionPolicy": {"create": False},
        "podDisruptionBudget": {"enabled": False},
    }
    assert kinds(render(bare)) == always


# -- the CRD -----------------------------------------------------------------------------------------------------------


def test_the_crd_is_the_generated_one_and_is_kept() -> None:
    (generated,) = (REPOSITORY / "crds").glob("*.yaml")
    assert (CHART / "files" / generated.name).read_bytes() == generated.read_bytes(), "run `make crds`"
    command = [helm(), "template", CHART, "--show-only", "templates/crd.yaml", "--values", "-"]
    done = subprocess.run(command, input=yaml.safe_dump(with_images({})).encode(), capture_output=True, check=True)
    # Read as kubectl reads: helm writes 1e-05, which is a string to PyYAML.
    crd: Any = read_documents(done.stdout.decode())[0]
    source: Any = read_documents(generated.read_text())[0]
    assert crd["spec"] == source["spec"]
    assert crd["metadata"]["name"] == source["metadata"]["name"]
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


# -- rights ------------------------------------------------------------------------------------------------------------


def granted(rules: list[dict[str, list[str]]]) -> list[tuple[str, str, str]]:
    """Every (group, resource, verb) that RBAC rules give, as often as they give it."""
    return [
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


@pytest.mark.parametrize("policies", [False, True])
def test_the_operator_may_do_what_it_does_and_nothing_else(policies: bool) -> None:
    bodies = render({"jobs": {"networkPolicy": policies}})
    rules = only(bodies, "ClusterRole", "compression-operator.compression-system")["rules"]
    lease = only(bodies, "Role", "compression-operator-lease")["rules"]
    rights = granted(rules) + granted(lease)
    assert len(rights) == len(set(rights)), "a right is given twice"
    needed = (*PERMISSIONS, PERMISSION) if policies else PERMISSIONS
    assert set(rights) == {(asked.group, asked.resource, verb) for asked in needed for verb in asked.verbs}


def test_the_lease_is_the_one_it_is_told_to_take() -> None:
    bodies = render(everything(), release="other", namespace="elsewhere")
    options = parse(container(bodies)["args"])
    role = only(bodies, "Role", f"{options.lease_name}-lease")
    assert role["metadata"]["namespace"] == options.lease_namespace == "elsewhere"
    by_verbs = {tuple(rule["verbs"]): rule.get("resourceNames") for rule in role["rules"]}
    assert by_verbs == {("create",): None, ("get", "update"): [options.lease_name]}


def test_named_namespaces_get_roles_and_the_cluster_none() -> None:
    bodies = render({"watchNamespaces": ["team-a", "team-b"], "rbac": {"userRoles": False}})
    assert not kinds(bodies) & {"ClusterRole", "ClusterRoleBinding"}
    everywhere = only(render({}), "ClusterRole", "compression-operator.compression-system")["rules"]
    account = only(bodies, "ServiceAccount")["metadata"]
    for namespace in ("team-a", "team-b"):
        mine = [body for body in bodies if body["metadata"].get("namespace") == namespace]
        role, binding = only(mine, "Role"), only(mine, "RoleBinding")
        assert role["rules"] == everywhere
        assert binding["roleRef"]["kind"] == "Role"
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
        ]
    assert parse(container(bodies)["args"]).namespace == ["team-a", "team-b"]
    assert parse(container(render({}))["args"]).namespace == []


def cleans(body: Body) -> bool:
    """Whether it is a part of what removes unused artifacts, not of the operator."""
    return body["metadata"]["labels"]["app.kubernetes.io/component"] == "gc"


@pytest.mark.parametrize("given", [{}, everything()], ids=["defaults", "everything"])
def test_bindings_bind_the_account_of_the_pods(given: Body) -> None:
    bodies = render(given)
    account = pod(bodies)["spec"]["serviceAccountName"]
    assert only(bodies, "ServiceAccount", account)
    bindings = [body for body in bodies if body["kind"].endswith("RoleBinding") and not cleans(body)]
    roles = {(body["kind"], body["metadata"].get("namespace"), body["metadata"]["name"]) for body in bodies}
    assert bindings
    for binding in bindings:
        ref = binding["roleRef"]
        assert (ref["kind"], binding["metadata"].get("namespace"), ref["name"]) in roles
        assert [subject["name"] for subject in binding["subjects"]] == [account]


def test_a_foreign_account_is_used_as_it_is() -> None:
    bodies = render({"serviceAccount": {"create": False, "name": "given"}})
    assert "ServiceAccount" not in kinds(bodies)
    assert pod(bodies)["spec"]["serviceAccountName"] == "given"
    assert only(bodies, "ClusterRoleBinding")["subjects"][0]["name"] == "given"


@pytest.mark.parametrize("name", ["", "default"])
def test_no_rights_are_given_to_the_account_of_everybody(name: str) -> None:
    with pytest.raises(Refused, match=r"serviceAccount\.name must name an account of the operator's own"):
        render({"serviceAccount": {"create": False, "name": name}})


def test_people_get_runs_with_the_roles_they_have() -> None:
    bodies = render({})
    edit = only(bodies, "ClusterRole", "compression-operator.compression-system.edit")
    view = only(bodies, "ClusterRole", "compression-operator.compression-system.view")
    rights = set(granted(edit["rules"]))
    assert {verb for _, _, verb in rights} == {"create", "update", "patch", "delete", "deletecollection"}
    assert {verb for _, _, verb in granted(view["rules"])} == {"get", "list", "watch"}
    # Status is the operator's word: nobody else writes it.
    assert {resource for _, resource, _ in rights} == {"compressionruns"}

    def aggregated(role: Body) -> set[str]:
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        return {label.removeprefix(prefix) for label in role["metadata"]["labels"] if label.startswith(prefix)}

    assert (aggregated(edit), aggregated(view)) == ({"admin", "edit"}, {"admin", "edit", "view"})


# -- pods --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, everything()], ids=["defaults", "everything"])
def test_pods_pass_the_restricted_standard(given: Body) -> None:
    spec = pod(render(given))["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
    # The standard takes secrets, of which metrics.secure mounts one.
    assert all(volume.keys() == {"name", "secret"} for volume in spec.get("volumes", ()))
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (only_one,) = spec["containers"]
    security = only_one["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert not security.get("privileged")
    assert not [port for port in only_one["ports"] if "hostPort" in port]


def test_the_account_brings_no_token_to_pods_that_do_not_ask() -> None:
    bodies = render({})
    assert only(bodies, "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod(bodies)["spec"]["automountServiceAccountToken"] is True


def test_probes_and_scrapes_ask_for_what_is_served() -> None:
    bodies = render({"metrics": {"serviceMonitor": {"enabled": True}}})
    found = container(bodies)
    probes = {name: found[name]["httpGet"] for name in ("livenessProbe", "readinessProbe", "startupProbe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
        "startupProbe": "/healthz",
    }
    (endpoint,) = only(bodies, "ServiceMonitor")["spec"]["endpoints"]
    (port,), (service_port,) = found["ports"], only(bodies, "Service")["spec"]["ports"]
    assert port["containerPort"] == parse(found["args"]).port
    assert {probe["port"] for probe in probes.values()} == {port["name"]} == {service_port["targetPort"]}
    assert endpoint["port"] == service_port["name"]
    paths = {probe["path"] for probe in probes.values()} | {endpoint["path"]}
    assert asyncio.run(_statuses(paths)) == dict.fromkeys(paths, 200)


def test_a_slow_start_is_not_cut_short() -> None:
    """On a node with nothing to spare the imports took 135 s; who is killed for that starts no faster next time."""
    probe = container(render({}))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 300


async def _statuses(paths: set[str]) -> dict[str, int]:
    """What the operator's own server answers to these paths."""
    server = await serve(Probes(lambda: None, lambda: None, lambda: b""), "127.0.0.1", 0)
    try:
        base = "http://{}:{}".format(*server.addresses[0][:2])
        async with aiohttp.ClientSession() as session:
            return {path: (await session.get(base + path)).status for path in paths}
    finally:
        await server.cleanup()


def test_an_upgrade_never_leaves_nobody_in_charge() -> None:
    strategy = only(render({}), "Deployment")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


# -- names and labels --------------------------------------------------------------------------------------------------

NAMED = {
    "short": ("compression-operator", {}),
    "long": (LONGEST_RELEASE, everything() | {"fullnameOverride": "", "nameOverride": "n" * 60}),
    "cut at a dash": ("a" * 49 + "-bc", {}),
    "overridden": ("x", {"fullnameOverride": "f" * 63}),
}


@pytest.mark.parametrize(("release", "given"), NAMED.values(), ids=NAMED)
def test_names_fit(release: str, given: Body) -> None:
    for body in render(given, release=release, namespace="n" * 63):
        name, limit = body["metadata"]["name"], 253 if body["kind"] in ("ClusterRole", "ClusterRoleBinding") else 63
        if body["kind"] in ("Role", "RoleBinding", "CustomResourceDefinition") or "Admission" in body["kind"]:
            limit = 253
        assert len(name) <= limit, body["kind"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", name), body["kind"]
        for label, value in body["metadata"]["labels"].items():
            assert len(value) <= 63, label


def test_two_releases_of_one_name_do_not_meet() -> None:
    def unspaced(namespace: str) -> set[tuple[str, str]]:
        bodies = render({"crds": {"install": False}}, namespace=namespace)
        return {(body["kind"], body["metadata"]["name"]) for body in bodies if "namespace" not in body["metadata"]}

    assert unspaced("one")
    assert not unspaced("one") & unspaced("two")


def test_labels_are_on_everything_and_selectors_find_the_pods() -> None:
    overruled = {"app.kubernetes.io/name": "mine", "app.kubernetes.io/instance": "mine"}
    given = everything() | {"commonLabels": {"example.com/owner": "platform"} | overruled, "podLabels": overruled}
    bodies = render(given, release="release")
    for body in bodies:
        labels = body["metadata"]["labels"]
        assert labels["example.com/owner"] == "platform", body["kind"]
        assert labels["app.kubernetes.io/instance"] == "release", body["kind"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm", body["kind"]
    labels = pod(bodies)["metadata"]["labels"]
    selectors = [
        only(bodies, "Deployment")["spec"]["selector"]["matchLabels"],
        only(bodies, "Service")["spec"]["selector"],
        only(bodies, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(bodies, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        pod(bodies)["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    service_labels = only(bodies, "Service")["metadata"]["labels"]
    assert only(bodies, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= service_labels.items()
    # The operator watches pods with managed-by=compression-operator: its own must not be among them.
    assert labels["app.kubernetes.io/managed-by"] != "compression-operator"


def test_replicas_keep_to_nodes_of_their_own() -> None:
    (spread,) = pod(render({"replicas": 2}))["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert spread["labelSelector"]["matchLabels"]["app.kubernetes.io/name"] == "compression-operator"


def test_selectors_do_not_change_with_versions() -> None:
    selector = only(render({}), "Deployment")["spec"]["selector"]["matchLabels"]
    assert set(selector) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}


def test_the_network_policy_lets_probes_and_the_api_through() -> None:
    spec = only(render({"networkPolicy": {"enabled": True}}), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [
        {"ports": [{"port": "http", "protocol": "TCP"}], "from": [{"namespaceSelector": {}}]},
    ]
    out = {(port["port"], port["protocol"]) for rule in spec["egress"] for port in rule["ports"]}
    assert out == {(53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP"), (443, "TCP"), (6443, "TCP")}


# -- the notes ---------------------------------------------------------------------------------------------------------


def notes(tmp_path: Path, given: Body, **kwargs: Any) -> str:
    """NOTES.txt, which helm shows only when it installs."""
    chart = shutil.copytree(CHART, tmp_path / "chart")
    text = (chart / "templates" / "NOTES.txt").read_text()
    (chart / "templates" / "_notes.tpl").write_text('{{- define "notes" -}}' + text + "{{- end -}}")
    (chart / "templates" / "notes.yaml").write_text(
        'kind: Notes\nmetadata: {name: n}\ntext: {{ include "notes" . | toJson }}\n'
    )
    return only(render(given, chart=chart, **kwargs), "Notes")["text"]


def test_notes_say_what_to_do_next(tmp_path: Path) -> None:
    text = notes(tmp_path, {}, release="mini", namespace="ops", api_versions=("kubeflow.org/v1/PyTorchJob",))
    assert "watches the whole cluster" in text
    assert "Runs that another release manages are left alone" in text and "name it in takeOver" in text
    assert "kubectl -n ops rollout status deployment/mini-compression-operator" in text
    assert "kubectl get compressionruns -A -w" in text
    assert "NOTE" not in text


def test_the_logs_that_the_notes_name_are_those_of_all_replicas(tmp_path: Path) -> None:
    """Of a Deployment kubectl shows one pod's, which may be the one that only waits."""
    given: Body = {"nameOverride": "squeezer", "podLabels": {"team": "a"}}
    found = re.search(r"kubectl -n ops logs -l (\S+) --prefix", notes(tmp_path, given, release="mini", namespace="ops"))
    assert found is not None
    named = dict(pair.split("=") for pair in found[1].split(","))
    rendered = render(given, release="mini", namespace="ops")
    assert named == only(rendered, "Deployment")["spec"]["selector"]["matchLabels"]
    assert named.items() <= only(rendered, "Deployment")["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("secure", [True, False])
@pytest.mark.parametrize("rbac", [True, False])
def test_notes_name_the_role_for_scrapes_where_the_chart_makes_it(tmp_path: Path, secure: bool, rbac: bool) -> None:
    given: Body = {"metrics": {"secure": {"enabled": secure, "certificateSecret": "tls"}}, "rbac": {"create": rbac}}
    text = notes(tmp_path, given, release="mini", namespace="ops")
    made = {body["metadata"]["name"] for body in render(given, release="mini", namespace="ops")}
    named = re.findall(r"^  kubectl create clusterrolebinding .* --clusterrole=(\S+) ", text, re.MULTILINE)
    assert named == [name for name in made if name.endswith(".metrics-reader")]
    assert re.search(r"^  kubectl describe compressionrun NAME\n\n\S", text, re.MULTILINE)
    assert re.search(r"\n\nRuns that another release", text)


def test_notes_name_what_is_missing(tmp_path: Path) -> None:
    text = notes(tmp_path, {"watchNamespaces": ["a", "b"], "crds": {"install": False}})
    assert "watches the namespaces a, b" in text
    assert "no PyTorchJobs" in text
    assert "kubectl apply --server-side -f crds/" in text
