"""What the platform gives to every job: pure tests of the manifests, with and without a run's own word."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_render import a_run, container, environment, jobs, pods

from compression_operator.api.run import CompressionRun
from compression_operator.backends.pods.platform_defaults import CA_VARIABLES, PLAIN, JobDefaults, job_defaults
from compression_operator.cli.__main__ import main
from compression_operator.cluster.options import parse

GPU = "nvidia.com/gpu"
VOID = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}


def told(**values: Any) -> JobDefaults:
    return job_defaults(json.dumps(values))


def named(**metadata: Any) -> CompressionRun:
    """A run with labels and annotations of its own."""
    body = a_run().model_dump(mode="json", by_alias=True, exclude_none=True)
    body["metadata"] |= metadata
    return CompressionRun.model_validate(body)


def limits(made: dict[str, Any]) -> dict[str, Any]:
    return container(pods(made)[0]).get("resources", {}).get("limits", {})


def test_nothing_said_is_the_chart_saying_nothing() -> None:
    assert told() == PLAIN == parse(["--image=x"]).jobs
    assert jobs(a_run()) == jobs(a_run(), told(env=[], labels={}, tolerations=[]))


# -- GPUs --------------------------------------------------------------------------------------------------------------


def test_gpus_are_asked_for_by_the_resource_that_the_platform_names() -> None:
    made = jobs(a_run(), told(gpu={"resource": "amd.com/gpu"}))
    assert limits(made["finetune"]) == {"amd.com/gpu": 8}
    assert limits(made["prune-width"]) == {"amd.com/gpu": 1}
    assert limits(made["prepare"]) == {}


def test_a_run_and_a_phase_name_another_resource() -> None:
    mig = "nvidia.com/mig-3g.40gb"
    run = a_run(
        jobTemplate={"gpuResource": "amd.com/gpu"},
        phases={"prune": {"gpuResource": mig}, "distill": {"gpusPerNode": 2, "resources": {"requests": {mig: 1}}}},
    )
    made = jobs(run, told(gpu={"resource": "intel.com/gpu"}))
    assert limits(made["finetune"]) == {"amd.com/gpu": 8}
    assert limits(made["prune-width"]) == {mig: 1}
    assert limits(made["distill-width"]) == {"amd.com/gpu": 2}
    assert made["finetune"]["spec"]["nprocPerNode"] == "8"


def test_a_phase_without_a_gpu_sees_none() -> None:
    """NVIDIA's images say NVIDIA_VISIBLE_DEVICES=all: where its runtime is the node's default, that gives them all."""
    made = jobs(a_run(phases={"distill": {"gpusPerNode": 0}, "prune": {"gpusPerNode": 0}}))
    hidden = {name for name, job in made.items() if VOID in container(pods(job)[0])["env"]}
    assert hidden == made.keys() - {"finetune"}
    seen = jobs(a_run())
    assert {name for name, job in seen.items() if VOID in container(pods(job)[0])["env"]} == {"prepare", "export-width"}


@pytest.mark.parametrize("kind", ["limits", "requests"])
@pytest.mark.parametrize("resource", ["nvidia.com/mig-3g.40gb", "amd.com/gpu", "volcano.sh/vgpu-number"])
def test_a_device_that_is_asked_for_by_hand_is_seen(kind: str, resource: str) -> None:
    run = a_run(phases={"prune": {"gpusPerNode": 0, "resources": {kind: {resource: 1, "cpu": 4}}}})
    made = jobs(run)["prune-width"]
    assert VOID not in container(pods(made)[0])["env"]
    assert container(pods(made)[0])["resources"] == {kind: {resource: 1, "cpu": 4}}


def test_memory_and_huge_pages_are_no_devices() -> None:
    amounts = {"cpu": 4, "memory": "8Gi", "hugepages-2Mi": "1Gi", "ephemeral-storage": "9Gi"}
    made = jobs(a_run(phases={"prune": {"gpusPerNode": 0, "resources": {"limits": amounts}}}))
    assert VOID in container(pods(made["prune-width"])[0])["env"]


def test_what_is_seen_may_be_said_by_run_and_platform() -> None:
    mine = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "0"}
    template = {"spec": {"containers": [{"name": "pytorch", "env": [mine]}]}}
    assert environment(jobs(a_run(jobTemplate={"podTemplate": template}))["prepare"])[mine["name"]] == "0"
    assert environment(jobs(a_run(), told(env=[mine]))["prepare"])[mine["name"]] == "0"


@pytest.mark.parametrize(
    ("given", "on_gpus", "elsewhere"),
    [
        ({"runtimeClassName": "kata"}, "kata", "kata"),
        ({"gpu": {"runtimeClassName": "nvidia"}}, "nvidia", None),
        ({"runtimeClassName": "kata", "gpu": {"runtimeClassName": "nvidia"}}, "nvidia", "kata"),
        ({}, None, None),
    ],
)
def test_pods_with_gpus_may_have_a_runtime_of_their_own(
    given: dict[str, Any], on_gpus: str | None, elsewhere: str | None
) -> None:
    made = jobs(a_run(), told(**given))
    found = {name: pods(job)[0]["spec"].get("runtimeClassName") for name, job in made.items()}
    assert (found["finetune"], found["prune-width"], found["prepare"]) == (on_gpus, on_gpus, elsewhere)
    mine = a_run(jobTemplate={"podTemplate": {"spec": {"runtimeClassName": "runc"}}})
    assert pods(jobs(mine, told(**given))["finetune"])[0]["spec"]["runtimeClassName"] == "runc"


# -- environment, certificates, secrets --------------------------------------------------------------------------------


def test_every_job_has_the_platforms_environment() -> None:
    secret = {"secretKeyRef": {"name": "proxy", "key": "address"}}
    given = [{"name": "HF_ENDPOINT", "value": "https://hub.example"}, {"name": "HTTPS_PROXY", "valueFrom": secret}]
    for job in jobs(a_run(), told(env=given)).values():
        for pod in pods(job):
            assert [entry for entry in container(pod)["env"] if entry in given] == given


def test_a_runs_own_variable_counts_more_and_the_operators_most() -> None:
    template = {"spec": {"containers": [{"name": "pytorch", "env": [{"name": "HF_ENDPOINT", "value": "mine"}]}]}}
    run = a_run(jobTemplate={"podTemplate": template})
    found = environment(jobs(run, told(env=[{"name": "HF_ENDPOINT", "value": "theirs"}]))["prepare"])
    assert (found["HF_ENDPOINT"], found["HOME"]) == ("mine", "/tmp")


def test_variables_may_refer_to_what_stands_before_them() -> None:
    """Kubernetes expands $(NAME) by what comes earlier: the operator's own, then the platform's, then the run's."""
    given = [{"name": "A_HOST", "value": "proxy"}, {"name": "B", "value": "theirs"}, {"name": "C", "value": "$(HOME)"}]
    mine = [{"name": "HTTPS_PROXY", "value": "http://$(A_HOST):3128"}, {"name": "B", "value": "mine"}]
    template = {"spec": {"containers": [{"name": "pytorch", "env": mine}]}}
    for job in jobs(a_run(jobTemplate={"podTemplate": template}), told(env=given)).values():
        env = container(pods(job)[0])["env"]
        names = [entry["name"] for entry in env]
        assert names.index("HOME") < names.index("A_HOST") < names.index("C") < names.index("HTTPS_PROXY")
        assert names[0] == "COMPRESSION_CONFIG" and len(set(names)) == len(names)
        assert [entry for entry in env if entry["name"] in ("HTTPS_PROXY", "B")] == mine


def test_nothing_in_a_jobs_config_is_expanded() -> None:
    column = "$$(HOME) $(HOME)"
    run = a_run(dataset={"source": "hf://a/b", "sequenceLength": 8192, "textColumn": column})
    text = environment(jobs(run)["prepare"])["COMPRESSION_CONFIG"]
    assert "$$$$(HOME) $$(HOME)" in text
    assert json.loads(text.replace("$$", "$"))["dataset"]["textColumn"] == column


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HOME", "COMPRESSION_CONFIG", "HF_HUB_OFFLINE"])
def test_what_is_the_operators_cannot_be_set_for_all(name: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"{name} is set by the operator; remove it"):
        told(env=[{"name": name, "value": "x"}])


def test_a_bundle_of_authorities_is_mounted_and_named() -> None:
    defaults = told(caBundle={"configMap": "corporate-ca", "key": "bundle.pem"})
    for job in jobs(a_run(), defaults).values():
        (pod, *_) = pods(job)
        (volume,) = [v for v in pod["spec"]["volumes"] if "configMap" in v]
        assert volume["configMap"] == {"name": "corporate-ca"}
        (mount,) = [m for m in container(pod)["volumeMounts"] if m["name"] == volume["name"]]
        assert mount["readOnly"] is True
        found = environment(job)
        assert {found[name] for name in CA_VARIABLES} == {f"{mount['mountPath']}/bundle.pem"}


def test_pull_secrets_are_added_to_the_runs() -> None:
    run = a_run(jobTemplate={"imagePullSecrets": [{"name": "mine"}, {"name": "both"}]})
    made = jobs(run, told(imagePullSecrets=[{"name": "both"}, {"name": "theirs"}]))
    names = [secret["name"] for secret in pods(made["prepare"])[0]["spec"]["imagePullSecrets"]]
    assert names == ["mine", "both", "theirs"]


# -- where pods run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["jobTemplate", "podTemplate"])
def test_tolerations_are_added_to_the_runs(where: str) -> None:
    mine = {"key": "mine", "operator": "Exists"}
    theirs = {"key": "theirs", "operator": "Equal", "value": "x", "effect": "NoSchedule"}
    template = {"tolerations": [mine]}
    run = a_run(jobTemplate=template if where == "jobTemplate" else {"podTemplate": {"spec": template}})
    found = pods(jobs(run, told(tolerations=[theirs, mine]))["prepare"])[0]["spec"]["tolerations"]
    assert found == [mine, theirs]


# -- labels and annotations --------------------------------------------------------------------------------------------

MINE = {
    "labels": {"team": "nlp", "cost-center": "42", "kueue.x-k8s.io/queue-name": "gpus"},
    "annotations": {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
        "modelcompression.io/retry": "1",
    },
}


def both(job: dict[str, Any], kind: str) -> list[dict[str, str]]:
    """Labels or annotations of a job and of its pods."""
    return [job["metadata"].get(kind, {}), *(pod["metadata"].get(kind, {}) for pod in pods(job))]


@pytest.mark.parametrize(
    ("patterns", "handed_down"),
    [
        ([], set()),
        (["team"], {"team"}),
        (["cost-*", "nobody"], {"cost-center"}),
        (["*"], {"team", "cost-center"}),
    ],
)
def test_a_runs_labels_are_handed_down_by_a_list(patterns: list[str], handed_down: set[str]) -> None:
    job = jobs(named(**MINE), told(inheritLabels=patterns))["distill-width"]
    for found in both(job, "labels"):
        assert {name: value for name, value in found.items() if name in ("team", "cost-center")} == {
            name: MINE["labels"][name] for name in handed_down
        }
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert not [name for pod in pods(job) for name in pod["metadata"]["labels"] if name.startswith("kueue")]


def test_a_runs_annotations_are_handed_down_but_for_those_about_itself() -> None:
    job = jobs(named(**MINE), told(inheritAnnotations=["*"]))["prepare"]
    expected = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    assert both(job, "annotations") == [expected, expected]
    assert both(jobs(named(**MINE))["prepare"], "annotations") == [{}, {}]


def test_what_platform_and_run_say_is_on_job_and_pods_and_the_run_counts_more() -> None:
    run = a_run(jobTemplate={"labels": {"tier": "run"}, "annotations": {"note": "run"}})
    defaults = told(labels={"tier": "platform", "owner": "platform"}, annotations={"note": "platform", "policy": "x"})
    job = jobs(run, defaults)["distill-width"]
    for found in both(job, "labels"):
        assert (found["tier"], found["owner"]) == ("run", "platform")
    assert both(job, "annotations") == [{"note": "run", "policy": "x"}] * 3


def test_what_jobs_are_found_by_is_nobodys_to_set() -> None:
    theirs = {"app.kubernetes.io/managed-by": "me", "modelcompression.io/run": "another"}
    run = a_run(jobTemplate={"labels": theirs})
    for defaults in (told(labels=theirs), told(inheritLabels=["*"])):
        job = jobs(named(labels=theirs) if defaults.inherit_labels else run, defaults)["prepare"]
        for found in both(job, "labels"):
            assert found["app.kubernetes.io/managed-by"] == "compression-operator"
            assert found["modelcompression.io/run"] == "llama"


# -- who the pods are --------------------------------------------------------------------------------------------------

IDS = ("runAsUser", "runAsGroup", "fsGroup")


def ids(job: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in pods(job)[0]["spec"]["securityContext"].items() if name in IDS}


def test_the_platform_names_a_user() -> None:
    assert ids(jobs(a_run())["prepare"]) == dict.fromkeys(IDS, 1000)
    defaults = told(user={"runAsUser": 2000, "runAsGroup": 3000, "fsGroup": 4000})
    assert ids(jobs(a_run(), defaults)["prepare"]) == {"runAsUser": 2000, "runAsGroup": 3000, "fsGroup": 4000}


def test_a_cluster_that_chooses_ids_is_told_none() -> None:
    """OpenShift's restricted-v2 refuses any id that is not in the namespace's range."""
    defaults = told(user={"ids": "Cluster"})
    for job in jobs(a_run(), defaults).values():
        assert ids(job) == {}
        (pod, *_) = pods(job)
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert not set(IDS) & container(pod)["securityContext"].keys()
    mine = a_run(jobTemplate={"podTemplate": {"spec": {"securityContext": {"fsGroup": 5000}}}})
    assert ids(jobs(mine, defaults)["prepare"]) == {"fsGroup": 5000}


# -- where they come from ----------------------------------------------------------------------------------------------

WRONG = [
    ("gpus: 1", "gpus: Extra inputs are not permitted"),
    ("gpu: {resource: gpu}", "gpu.resource: String should"),
    ("user: {runAsUser: 0}", "user.runAsUser: Input should be greater than or equal to 1"),
    ("user: {ids: Nobody}", "user.ids: Input should be 'Fixed' or 'Cluster'"),
    ("env: [{name: A B}]", "env.0.name: String should match pattern"),
    ("env: {", "while parsing"),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG)
def test_wrong_settings_are_refused_by_name(text: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--image=x", f"--jobs={text}"])
    assert sentence in capsys.readouterr().err


def test_render_shows_what_a_platform_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, values = tmp_path / "run.yaml", tmp_path / "jobs.yaml"
    body = a_run().model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"status"})
    kept = {"name": "llama", "namespace": "research"}
    spec = yaml.safe_dump(body["spec"])
    manifest.write_text(
        yaml.safe_dump({"apiVersion": "modelcompression.io/v1alpha1", "kind": "CompressionRun", "metadata": kept})
        + f"spec:\n{spec}".replace("\n", "\n  ").rstrip()
    )
    values.write_text("labels: {owner: platform}")
    assert main(["render", str(manifest), "--jobs", str(values)]) == 0
    first = next(found for found in yaml.safe_load_all(capsys.readouterr().out) if found)
    assert first["metadata"]["labels"]["owner"] == "platform"
    values.write_text("labels: 1")
    assert main(["render", str(manifest), "--jobs", str(values)]) == 2
    assert f"{values}: labels: Input should be" in capsys.readouterr().err
