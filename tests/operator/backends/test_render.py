"""PyTorchJobs as a cluster gets them: one golden manifest, and what holds for every one of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from compression_operator.api.run import CompressionRun
from compression_operator.backends.pods.platform_defaults import PLAIN, JobDefaults
from compression_operator.backends.pods.podtemplate import (
    CONTAINER_SECURITY,
    POD_SECURITY,
    USER_AND_GROUPS,
    merge_under,
    secured,
)
from compression_operator.backends.pytorchjob.manifest import pytorch_job
from compression_operator.cli.inspect import with_placeholders
from compression_operator.core.plan import plan
from compression_operator.local.workdir import to_yaml

GOLDEN = Path(__file__).parents[1] / "golden" / "pytorchjob-distill.yaml"


def a_run(**spec: Any) -> CompressionRun:
    return CompressionRun.model_validate(
        {
            "metadata": {
                "name": "llama",
                "namespace": "research",
                "uid": "7a3f",
                "labels": {"kueue.x-k8s.io/queue-name": "gpus", "team": "x"},
            },
            "spec": {
                "teacher": {
                    "model": "hf://meta-llama/Llama-3.1-8B",
                    "secretRef": {"name": "hf-token", "key": "token"},
                },
                "dataset": {"source": "pvc://corpus.v2/text", "sequenceLength": 8192},
                "finetune": {"steps": 1000},
                "students": [{"name": "width", "prune": {"hiddenSize": 3072}}],
                "distill": {"steps": 1000},
                "storage": {"persistentVolumeClaim": {"claimName": "artifacts", "subPath": "team"}},
                "phases": {"distill": {"nodes": 2}},
                **spec,
            },
        }
    )


def jobs(run: CompressionRun, defaults: JobDefaults = PLAIN) -> dict[str, dict[str, Any]]:
    """Step -> PyTorchJob."""
    planned = with_placeholders(plan(run.spec))
    return {
        step.name: pytorch_job(
            run, planned.job(step, run=run.metadata.name, attempt=1), image="pipeline:1", defaults=defaults
        )
        for step in planned.steps
    }


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [replica["template"] for replica in job["spec"]["pytorchReplicaSpecs"].values()]


def container(pod: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in pod["spec"]["containers"] if c["name"] == "pytorch")


def environment(job: dict[str, Any]) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container(pods(job)[0])["env"]}


def test_the_golden_manifest() -> None:
    """Whoever changes what clusters get should see it: read the difference, then copy what the test got."""
    run = a_run(
        jobTemplate={
            "image": "registry.example/pipeline:2",
            "imagePullPolicy": "IfNotPresent",
            "imagePullSecrets": [{"name": "pull"}],
            "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"podAntiAffinity": {"x": []}},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
            ],
            "priorityClassName": "batch",
            "sharedMemory": "16Gi",
            "podTemplate": {
                "metadata": {"labels": {"cost-centre": "42"}, "annotations": {"note": "kept"}},
                "spec": {"containers": [{"name": "pytorch", "env": [{"name": "NCCL_DEBUG", "value": "WARN"}]}]},
            },
        },
        phases={
            "distill": {
                "nodes": 2,
                "resources": {"requests": {"cpu": 8, "memory": "64Gi"}},
                "tolerations": [{"key": "reserved", "operator": "Exists", "effect": "NoExecute"}],
            }
        },
    )
    made = jobs(run)["distill-width"]
    assert to_yaml(made) == GOLDEN.read_text()


def test_a_phase_may_run_elsewhere_than_the_others() -> None:
    """prepare and export need no GPU: they need not wait for a node that has some."""
    gpus = {"nvidia.com/gpu.product": "NVIDIA-H200"}
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    shared = {
        "nodeSelector": gpus,
        "tolerations": [taint],
        "affinity": {"nodeAffinity": {}},
        "podTemplate": {
            "metadata": {"labels": {"cost-centre": "42", "tier": "gpu"}},
            "spec": {
                "runtimeClassName": "nvidia",
                "containers": [{"name": "pytorch", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]}],
            },
        },
    }
    other = {
        "nodeSelector": {},
        "tolerations": [],
        "affinity": {"podAffinity": {}},
        "podTemplate": {
            "metadata": {"labels": {"tier": "cpu"}},
            "spec": {
                "runtimeClassName": "runc",
                "containers": [
                    {"name": "pytorch", "env": [{"name": "B", "value": "2"}, {"name": "HOME", "value": "/"}]}
                ],
            },
        },
    }
    made = jobs(a_run(jobTemplate=shared, phases={"prepare": other, "export": {"nodeSelector": {"pool": "cpu"}}}))
    [prepare], [finetune], [export] = (pods(made[step]) for step in ("prepare", "finetune", "export-width"))
    assert not {"nodeSelector", "tolerations"} & set(prepare["spec"])
    assert prepare["spec"]["affinity"] == {"podAffinity": {}} and prepare["spec"]["runtimeClassName"] == "runc"
    labels = prepare["metadata"]["labels"]
    assert (labels["cost-centre"], labels["tier"], labels["modelcompression.io/phase"]) == ("42", "cpu", "prepare")
    values = environment(made["prepare"])
    assert (values["A"], values["B"], values["HOME"]) == ("1", "2", "/tmp"), "its own, over the shared, under ours"
    assert finetune["spec"]["nodeSelector"] == gpus and finetune["spec"]["tolerations"] == [taint]
    assert finetune["spec"]["runtimeClassName"] == "nvidia" and finetune["metadata"]["labels"]["tier"] == "gpu"
    assert export["spec"]["nodeSelector"] == {"pool": "cpu"} and export["spec"]["tolerations"] == [taint]


def test_one_master_and_the_rest_workers() -> None:
    made = jobs(a_run())
    replicas = made["distill-width"]["spec"]["pytorchReplicaSpecs"]
    assert {name: spec["replicas"] for name, spec in replicas.items()} == {"Master": 1, "Worker": 1}
    assert set(made["finetune"]["spec"]["pytorchReplicaSpecs"]) == {"Master"}
    for job in made.values():
        assert job["spec"]["runPolicy"] == {"cleanPodPolicy": "Running"}
        assert all(r["restartPolicy"] == "Never" for r in job["spec"]["pytorchReplicaSpecs"].values())
        assert job["metadata"]["ownerReferences"][0]["controller"] is True
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
        assert "team" not in job["metadata"]["labels"]
        assert len(container(pods(job)[0])["volumeMounts"]) >= 3


def test_gpus_only_where_they_are_needed() -> None:
    gpus = {
        name: container(pods(job)[0]).get("resources", {}).get("limits", {}).get("nvidia.com/gpu")
        for name, job in jobs(a_run()).items()
    }
    assert gpus == {"prepare": None, "finetune": 8, "prune-width": 1, "distill-width": 8, "export-width": None}
    made = jobs(a_run())
    assert made["finetune"]["spec"]["nprocPerNode"] == "8" and made["prune-width"]["spec"]["nprocPerNode"] == "1"


def test_the_hub_is_for_prepare_alone() -> None:
    for name, job in jobs(a_run()).items():
        variables = environment(job)
        if name == "prepare":
            assert variables["HF_TOKEN"] == {"secretKeyRef": {"name": "hf-token", "key": "token"}}
            assert "HF_HUB_OFFLINE" not in variables
        else:
            assert variables["HF_HUB_OFFLINE"] == "1"
            assert "hf-token" not in json.dumps(job)


def test_claims_of_sources_are_mounted_where_prepare_looks_for_them() -> None:
    made = jobs(a_run())
    config = json.loads(environment(made["prepare"])["COMPRESSION_CONFIG"])
    assert config["store"] == "/compression"
    assert config["sourceRoots"] == {"pvc://corpus.v2": "/sources/corpus.v2"}
    [mount] = [m for m in container(pods(made["prepare"])[0])["volumeMounts"] if m["mountPath"] == "/sources/corpus.v2"]
    assert mount["readOnly"] is True
    assert "/sources" not in json.dumps(made["finetune"])


def test_a_claim_that_is_the_store_too_is_one_volume() -> None:
    prepare = jobs(a_run(dataset={"source": "pvc://artifacts/corpus/text"}))["prepare"]
    spec = pods(prepare)[0]["spec"]
    claims = [volume["persistentVolumeClaim"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume]
    assert claims == [{"claimName": "artifacts"}]
    mounts = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "store"]
    assert mounts == [
        {"name": "store", "mountPath": "/compression", "subPath": "team"},
        {"name": "store", "mountPath": "/sources/artifacts", "readOnly": True},
    ]


@pytest.mark.parametrize(
    "evil",
    [
        {"hostNetwork": True, "hostPID": True, "hostIPC": True, "nodeName": "master"},
        {"serviceAccountName": "admin", "serviceAccount": "admin", "automountServiceAccountToken": True},
        {"securityContext": {"runAsUser": 0, "runAsNonRoot": False, "seccompProfile": {"type": "Unconfined"}}},
        {"containers": [{"name": "pytorch", "securityContext": {"privileged": True}}]},
        {"containers": [{"name": "side", "image": "x", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]},
        {"initContainers": [{"name": "i", "image": "x", "securityContext": {"runAsUser": 0}}]},
        {"securityContext": {"fsGroup": 0, "runAsGroup": 0, "supplementalGroups": [0], "sysctls": [{"name": "a"}]}},
        {"volumes": [{"name": "tmp", "emptyDir": {}, "hostPath": {"path": "/"}}]},
        {
            "volumes": [{"name": "root", "hostPath": {"path": "/"}}],
            "containers": [{"name": "pytorch", "volumeMounts": [{"name": "root", "mountPath": "/host"}]}],
        },
        {"volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]},
        {"containers": [{"name": "pytorch", "ports": [{"containerPort": 80, "hostPort": 80}]}]},
        {"containers": [{"name": "pytorch", "command": ["sh"], "args": ["-c", "id"], "image": "evil"}]},
        {"containers": [{"name": "pytorch", "env": [{"name": "HF_HUB_OFFLINE", "value": "0"}]}]},
    ],
)
def test_a_pod_template_does_not_loosen_the_pod(evil: dict[str, Any]) -> None:
    pod = pods(jobs(a_run(jobTemplate={"podTemplate": {"spec": evil}}))["finetune"])[0]
    plain = pods(jobs(a_run())["finetune"])[0]
    assert_secure(pod)
    for field in ("command", "args", "image", "volumeMounts"):
        assert container(pod)[field] == container(plain)[field]
    assert {e["name"]: e for e in container(pod)["env"]} == {e["name"]: e for e in container(plain)["env"]}
    assert [v for v in pod["spec"]["volumes"] if v["name"] in ("store", "shared-memory", "tmp")] == [
        v for v in plain["spec"]["volumes"] if v["name"] in ("store", "shared-memory", "tmp")
    ]


def test_a_pod_template_may_say_whose_files_the_volume_holds() -> None:
    theirs = {"runAsUser": 5001, "runAsGroup": 5002, "fsGroup": 5003, "supplementalGroups": [5004, 5005]}
    wanted = {"securityContext": theirs | {"fsGroupChangePolicy": "Always", "runAsNonRoot": False}}
    own = {"distill": {"podTemplate": {"spec": {"securityContext": {"fsGroup": 6003}}}}}
    made = jobs(a_run(jobTemplate={"podTemplate": {"spec": wanted}}, phases=own))
    for name, group in (("finetune", 5003), ("distill-width", 6003)):
        pod = pods(made[name])[0]
        assert_secure(pod)
        assert pod["spec"]["securityContext"] == POD_SECURITY | USER_AND_GROUPS | theirs | {
            "fsGroup": group,
            "supplementalGroups": [5004, 5005],
            "fsGroupChangePolicy": "Always",
        }
    assert pods(jobs(a_run())["finetune"])[0]["spec"]["securityContext"] == POD_SECURITY | USER_AND_GROUPS


def test_a_gang_scheduler_and_its_group_reach_every_pod() -> None:
    group = {"scheduling.x-k8s.io/pod-group": "llama"}
    theirs = {"metadata": {"labels": group}, "spec": {"schedulerName": "coscheduling"}}
    made = pods(jobs(a_run(jobTemplate={"podTemplate": theirs}))["distill-width"])
    assert len(made) == 2
    for pod in made:
        assert pod["spec"]["schedulerName"] == "coscheduling"
        assert pod["metadata"]["labels"].items() >= group.items()


def test_old_annotations_do_not_switch_confinement_off() -> None:
    annotations = {
        "container.apparmor.security.beta.kubernetes.io/pytorch": "unconfined",
        "seccomp.security.alpha.kubernetes.io/pod": "unconfined",
        "sidecar.istio.io/inject": "false",
    }
    template = {"metadata": {"annotations": annotations, "name": "x"}}
    pod = pods(jobs(a_run(jobTemplate={"podTemplate": template}))["finetune"])[0]
    assert pod["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
    assert "name" not in pod["metadata"]


def assert_secure(pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    security = spec["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    assert {name: security[name] for name in ("runAsNonRoot", "seccompProfile")} == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    ids = [security["runAsUser"], security["runAsGroup"], security["fsGroup"], *security.get("supplementalGroups", [])]
    assert all(type(one) is int and 0 < one < 2**31 for one in ids)
    assert not security.keys() - POD_SECURITY.keys() - USER_AND_GROUPS.keys() - {"supplementalGroups"}
    for name in ("hostNetwork", "hostPID", "hostIPC", "serviceAccount", "serviceAccountName", "nodeName"):
        assert name not in spec
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for c in spec.get(kind, []):
            assert c["securityContext"] == CONTAINER_SECURITY
            assert not any("hostPort" in port for port in c.get("ports", []))
    names = {volume["name"] for volume in spec["volumes"]}
    assert all(m["name"] in names for c in spec["containers"] for m in c.get("volumeMounts", []))
    text = json.dumps(spec["volumes"])
    assert "hostPath" not in text and "serviceAccountToken" not in text


NAMES = st.sampled_from(["pytorch", "side", "tmp", "store", "root"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
IDS = st.integers(-1, 2**31) | VALUES
SECURITY = VALUES | st.dictionaries(
    st.sampled_from(["runAsUser", "runAsGroup", "fsGroup", "runAsNonRoot", "seccompProfile"]), IDS, max_size=3
)
CONTAINERS = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES},
        optional={
            "securityContext": VALUES,
            "image": st.just("x"),
            "ports": st.lists(st.fixed_dictionaries({"hostPort": st.integers(1, 9)}), max_size=2),
            "volumeMounts": st.lists(st.fixed_dictionaries({"name": NAMES, "mountPath": st.just("/x")}), max_size=2),
        },
    ),
    max_size=3,
)
TEMPLATES = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.fixed_dictionaries({}, optional={"labels": st.just({"a": "b"}), "annotations": VALUES}),
        "spec": st.fixed_dictionaries(
            {},
            optional={
                "containers": CONTAINERS,
                "initContainers": CONTAINERS,
                "ephemeralContainers": CONTAINERS,
                "securityContext": SECURITY,
                "hostNetwork": VALUES,
                "hostPID": VALUES,
                "serviceAccountName": VALUES,
                "automountServiceAccountToken": VALUES,
                "volumes": st.lists(
                    st.fixed_dictionaries({"name": NAMES}, optional={"hostPath": VALUES, "emptyDir": st.just({})}),
                    max_size=3,
                ),
            },
        ),
    },
)


@settings(max_examples=200, deadline=None)
@given(TEMPLATES)
def test_no_pod_template_whatsoever_wins_over_security(template: dict[str, Any]) -> None:
    pod = secured(merge_under(pods(jobs(a_run())["finetune"])[0], template))
    # Mounts that the template adds of volumes that nobody has are the user's own mistake; the API server tells it.
    known = {volume["name"] for volume in pod["spec"]["volumes"]}
    for c in pod["spec"]["containers"]:
        c["volumeMounts"] = [m for m in c.get("volumeMounts", []) if m["name"] in known]
    assert_secure(pod)
    assert container(pod)["args"] == ["finetune"]


def test_render_prints_every_step_and_says_what_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from compression_operator.cli.__main__ import main

    manifest = tmp_path / "run.yaml"
    run = a_run()
    manifest.write_text(
        yaml.safe_dump(
            {
                "apiVersion": run.api_version,
                "kind": run.kind,
                "metadata": {"name": "llama"},
                "spec": run.spec.model_dump(mode="json", by_alias=True, exclude_unset=True),
            }
        )
    )
    assert main(["render", str(manifest), "--image", "pipeline:7"]) == 0
    printed = capsys.readouterr().out
    assert (
        "stands for what is unknown until prepare has run: finetune, prune-width, distill-width, export-width"
        in printed
    )
    made = list(yaml.safe_load_all(printed))
    assert [job["metadata"]["labels"]["modelcompression.io/step"] for job in made] == [
        "prepare",
        "finetune",
        "prune-width",
        "distill-width",
        "export-width",
    ]
    assert container(pods(made[0])[0])["image"] == "pipeline:7"
