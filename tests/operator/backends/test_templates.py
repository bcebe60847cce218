"""Pod templates: what the allow-list takes arrives in the pods, and everything else is refused by its path."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from api_world import ON_A_CLAIM, RUN, Operator, run_in_world
from test_render import a_run, jobs, pods
from tests.support.matchers import has_condition
from tests.support.waiting import until_async

from compression_operator.api.manifest import InvalidManifest, World, load
from compression_operator.api.templates import ANYBODYS, PodTemplates, TemplatePolicy, template_findings
from compression_operator.backends.pods.platform_defaults import JobDefaults
from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.backends.pytorchjob.manifest import pytorch_job
from compression_operator.kube.client import RUNS

SPEC = "spec.jobTemplate.podTemplate.spec"
MOUNT = "containers[0].volumeMounts[0].mountPath"
EVERYTHING = Path(__file__).parents[1] / "valid" / "everything.yaml"


def refused(spec: dict[str, Any], policy: TemplatePolicy = ANYBODYS) -> list[str]:
    """Paths below the pod's spec that are refused."""
    told = template_findings({"jobTemplate": {"podTemplate": {"spec": spec}}}, policy)
    return [path.removeprefix(f"{SPEC}.") for path, _ in told]


def in_container(name: str = "pytorch", **fields: Any) -> dict[str, Any]:
    return {"containers": [{"name": name, **fields}]}


@pytest.mark.parametrize(
    ("spec", "paths"),
    [
        ({"serviceAccountName": "s3"}, ["serviceAccountName"]),
        ({"serviceAccount": "s3"}, ["serviceAccount"]),
        ({"automountServiceAccountToken": True}, ["automountServiceAccountToken"]),
        ({"hostNetwork": True, "hostPID": True, "hostIPC": True}, ["hostNetwork", "hostPID", "hostIPC"]),
        ({"nodeName": "n"}, ["nodeName"]),
        ({"restartPolicy": "Always"}, ["restartPolicy"]),
        ({"terminationGracePeriodSeconds": 5}, ["terminationGracePeriodSeconds"]),
        ({"activeDeadlineSeconds": 5}, ["activeDeadlineSeconds"]),
        ({"ephemeralContainers": []}, ["ephemeralContainers"]),
        ({"aFieldOfTheFuture": 1}, ["aFieldOfTheFuture"]),
        ({"securityContext": {"runAsUser": 0}}, ["securityContext.runAsUser"]),
        ({"securityContext": {"supplementalGroups": [5, 0]}}, ["securityContext.supplementalGroups[1]"]),
        ({"securityContext": {"runAsNonRoot": False}}, ["securityContext.runAsNonRoot"]),
        ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, ["securityContext.seccompProfile.type"]),
        ({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}, ["securityContext.appArmorProfile.type"]),
        ({"securityContext": {"seLinuxOptions": {"user": "u"}}}, ["securityContext.seLinuxOptions.user"]),
        ({"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}, ["securityContext.seLinuxOptions.type"]),
        ({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}, ["securityContext.sysctls[0].name"]),
        ({"securityContext": {"windowsOptions": {"hostProcess": True}}}, ["securityContext.windowsOptions"]),
        (in_container(image="x"), ["containers[0].image"]),
        (in_container(command=["sh"], args=["-c"]), ["containers[0].command", "containers[0].args"]),
        (in_container(env=[{"name": "HF_TOKEN", "value": "x"}]), ["containers[0].env[0]"]),
        (in_container(volumeMounts=[{"name": "a", "mountPath": "/tmp/"}]), [MOUNT]),
        (in_container(volumeMounts=[{"name": "a", "mountPath": "//dev/shm"}]), [MOUNT]),
        (in_container(volumeDevices=[{"name": "a"}]), ["containers[0].volumeDevices"]),
        (in_container(securityContext={"privileged": True}), ["containers[0].securityContext.privileged"]),
        (in_container("side", securityContext={"procMount": "Unmasked"}), ["containers[0].securityContext.procMount"]),
        (
            in_container(securityContext={"capabilities": {"add": ["NET_BIND_SERVICE", "IPC_LOCK"]}}),
            ["containers[0].securityContext.capabilities.add[1]"],
        ),
        (
            in_container("side", securityContext={"allowPrivilegeEscalation": True}),
            ["containers[0].securityContext.allowPrivilegeEscalation"],
        ),
        (in_container(ports=[{"containerPort": 1, "hostPort": 1}]), ["containers[0].ports[0].hostPort"]),
        (in_container(ports=[{"containerPort": 1, "hostIP": "::"}]), ["containers[0].ports[0].hostIP"]),
        *(
            (in_container("side", **{probe: {how: {"host": "10.0.0.1"}}}), [f"containers[0].{probe}.{how}.host"])
            for probe in ("livenessProbe", "readinessProbe", "startupProbe")
            for how in ("httpGet", "tcpSocket")
        ),
        *(
            (
                in_container(lifecycle={hook: {"httpGet": {"host": "a"}}}),
                [f"containers[0].lifecycle.{hook}.httpGet.host"],
            )
            for hook in ("postStart", "preStop")
        ),
        (
            {"initContainers": [{"name": "i", "securityContext": {"runAsUser": 0}}]},
            ["initContainers[0].securityContext.runAsUser"],
        ),
        *(
            ({"volumes": [{"name": "v", kind: {}}]}, [f"volumes[0].{kind}"])
            for kind in ("hostPath", "nfs", "gitRepo", "flexVolume", "iscsi", "cephfs", "rbd", "fc", "azureFile", "new")
        ),
        ({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}, ["volumes[0].hostPath"]),
        (
            {"volumes": [{"name": "v", "projected": {"sources": [{"secret": {}}, {"serviceAccountToken": {}}]}}]},
            ["volumes[0].projected.sources[1].serviceAccountToken"],
        ),
        ({"volumes": [{"name": "store", "emptyDir": {}}]}, ["volumes[0].name"]),
        ({"containers": {"name": "pytorch"}}, ["containers"]),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused_by_its_path(spec: dict[str, Any], paths: list[str]) -> None:
    assert refused(spec) == paths


ALLOWED: dict[str, Any] = {
    "hostNetwork": False,
    "hostUsers": False,
    "automountServiceAccountToken": False,
    "runtimeClassName": "nvidia",
    "schedulerName": "volcano",
    "hostname": "trainer",
    "subdomain": "ring",
    "setHostnameAsFQDN": True,
    "os": {"name": "linux"},
    "readinessGates": [{"conditionType": "example.com/ready"}],
    "overhead": {"memory": "120Mi"},
    "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 5001,
        "seLinuxOptions": {"level": "s0:c123", "type": "container_t"},
        "sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "4096 131072 6291456"}],
        "seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"},
    },
    "containers": [
        {
            "name": "pytorch",
            "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}, "privileged": False},
        },
        {
            "name": "side",
            "image": "side:1",
            "command": ["run"],
            "stdin": True,
            "stdinOnce": False,
            "tty": True,
            "ports": [{"containerPort": 80, "name": "http"}],
            "livenessProbe": {"httpGet": {"path": "/", "port": 80, "host": ""}, "periodSeconds": 5},
            "securityContext": {"readOnlyRootFilesystem": False, "runAsUser": 7},
        },
    ],
    "volumes": [
        {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}},
        {"name": "a", "configMap": {"name": "a"}},
        {"name": "b", "secret": {"secretName": "b"}},
        {"name": "c", "projected": {"sources": [{"configMap": {"name": "a"}}]}},
        {"name": "d", "csi": {"driver": "d"}},
        {"name": "e", "downwardAPI": {}},
        {"name": "f", "persistentVolumeClaim": {"claimName": "f"}},
        {"name": "g", "image": {"reference": "models:1"}},
    ],
}  # fmt: skip


def test_what_is_allowed_arrives() -> None:
    assert refused(ALLOWED) == []
    pod = pods(jobs(a_run(jobTemplate={"podTemplate": {"spec": ALLOWED}}))["finetune"])[0]["spec"]
    for name in ALLOWED.keys() - {"securityContext", "containers", "volumes", "hostNetwork"}:
        assert pod[name] == ALLOWED[name]
    assert ALLOWED["securityContext"].items() <= pod["securityContext"].items()
    assert all(volume in pod["volumes"] for volume in ALLOWED["volumes"])
    ours, side = pod["containers"]
    assert {"name": "scratch", "mountPath": "/scratch"} in ours["volumeMounts"]
    assert ours["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}
    assert (
        side["command"] == ["run"]
        and side["tty"] is True
        and side["securityContext"]["readOnlyRootFilesystem"] is False
    )
    assert side["securityContext"]["runAsUser"] == 7 and side["securityContext"]["privileged"] is False


def test_metadata() -> None:
    meta = {
        "name": "x",
        "labels": {"team": "a", "modelcompression.io/run": "b"},
        "annotations": {"a": "b", "container.apparmor.security.beta.kubernetes.io/pytorch": "unconfined"},
    }
    found = [path for path, _ in template_findings({"jobTemplate": {"podTemplate": {"metadata": meta}}})]
    assert [path.removeprefix("spec.jobTemplate.podTemplate.metadata.") for path in found] == [
        "name",
        "labels[modelcompression.io/run]",
        "annotations[container.apparmor.security.beta.kubernetes.io/pytorch]",
    ]


def test_every_template_is_looked_at_and_told_by_validate(tmp_path: Path) -> None:
    body = next(one for one in yaml.safe_load_all(EVERYTHING.read_text()) if one["kind"] == "CompressionRun")
    body["spec"]["jobTemplate"]["podTemplate"]["spec"] = {"hostIPC": True, "volumes": [{"name": "n", "nfs": {}}]}
    body["spec"]["phases"]["distill"]["podTemplate"] = {"spec": {"serviceAccountName": "s3"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(body))
    with pytest.raises(InvalidManifest) as caught:
        load(tmp_path / "run.yaml", World.CLUSTER)
    assert [fault.path for fault in caught.value.faults] == [
        "spec.jobTemplate.podTemplate.spec.hostIPC",
        "spec.jobTemplate.podTemplate.spec.volumes[0].nfs",
        "spec.phases.distill.podTemplate.spec.serviceAccountName",
    ]
    assert "the operator's administrator may allow it" in str(caught.value)


# -- what an administrator may say ------------------------------------------------------------------------------------

OPEN = TemplatePolicy(PodTemplates.UNRESTRICTED)
RDMA: dict[str, Any] = {
    "hostNetwork": True,
    "serviceAccountName": "s3-reader",
    "containers": [{"name": "pytorch", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}],
    "volumes": [{"name": "nvme", "hostPath": {"path": "/mnt/disks/ssd0"}}],
}


def test_a_platform_may_restrict_nothing_but_what_is_the_operators() -> None:
    assert refused(RDMA, OPEN) == []
    mine = in_container(command=["sh"], env=[{"name": "HF_TOKEN", "value": "x"}])
    assert refused(mine | {"volumes": [{"name": "tmp"}], "restartPolicy": "Always"}, OPEN) == [
        "containers[0].command",
        "containers[0].env[0]",
        "volumes[0].name",
        "restartPolicy",
    ]
    run = a_run(jobTemplate={"podTemplate": {"spec": RDMA}})
    plain = next(iter(jobs(run).values()))
    assert "hostNetwork" not in pods(plain)[0]["spec"]
    job = _job_of(run)
    pod = pods(pytorch_job(run, job, image="x", defaults=JobDefaults(pod_template=PodTemplates.UNRESTRICTED)))[0][
        "spec"
    ]
    assert pod["hostNetwork"] is True and pod["automountServiceAccountToken"] is True
    assert RDMA["volumes"][0] in pod["volumes"]
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True, "what it does not name stays"


def _job_of(run: Any) -> Any:
    from compression_operator.cli.inspect import with_placeholders
    from compression_operator.core.plan import plan

    planned = with_placeholders(plan(run.spec))
    return planned.job(planned.steps[0], run=run.metadata.name, attempt=1)


def test_a_platform_may_take_no_templates_at_all() -> None:
    policy = TemplatePolicy(PodTemplates.FORBIDDEN)
    template = {"metadata": {"labels": {"a": "b"}}}
    found = list(template_findings({"jobTemplate": {"podTemplate": template}}, policy))
    assert [path for path, _ in found] == ["spec.jobTemplate.podTemplate"]
    assert not list(template_findings({"jobTemplate": {"podTemplate": {}}}, policy))


def test_a_platform_may_name_the_images() -> None:
    policy = TemplatePolicy(images=("registry.example/ai/*", "tools:1"))
    template = {"spec": {"containers": [{"name": "a", "image": "tools:1"}, {"name": "b", "image": "evil:1"}]}}
    volume = {"volumes": [{"name": "v", "image": {"reference": "evil:2"}}]}
    template["spec"] |= volume
    told = template_findings({"jobTemplate": {"image": "docker.io/me/x:1", "podTemplate": template}}, policy)
    assert [path for path, _ in told] == [
        "spec.jobTemplate.image",
        f"{SPEC}.containers[1].image",
        f"{SPEC}.volumes[0].image.reference",
    ]
    assert not list(template_findings({"jobTemplate": {"image": "registry.example/ai/team/x:1"}}, policy))


# -- in the run's status ----------------------------------------------------------------------------------------------


async def _told_and_healed(told: Any) -> None:
    async with Operator() as service:
        service.note_event(RUNS, "ADDED", told.objects[RUN])
        await until_async(
            lambda: has_condition(told, "Degraded", "True", reason="PodTemplateRefused"), "the template to be refused"
        )
        assert has_condition(told, "Ready", "False")
        assert has_condition(told, "Degraded", says=f"{SPEC}.hostNetwork is not allowed")
        assert not told.names(PYTORCHJOBS)
        await until_async(lambda: told.events.count("PodTemplateRefused") == 1, "one Event of it")
        service.note_event(RUNS, "MODIFIED", told.edit(RUN, jobTemplate={}))
        await until_async(lambda: told.names(PYTORCHJOBS), "the job")
        await until_async(
            lambda: has_condition(told, "Degraded", "False", reason="AsExpected"), "the run to be well again"
        )
        assert told.events.count("PodTemplateRefused") == 1


def test_a_stored_run_whose_template_is_refused_says_so_and_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = ON_A_CLAIM.spec(jobTemplate={"podTemplate": {"spec": {"hostNetwork": True}}})
    run_in_world(_told_and_healed, tmp_path, monkeypatch, refused)
