"""The product as its users have it: images, helm install, kubectl apply, the real pipeline in real pods, students that
load.

README's "On a cluster" is the script: each of its lines is typed, from the images to the report. In place of the
internet stand a `docker` of ours and the training operator's manifests from its Go module (see readme.py). The image of
the pipeline lacks the packages of several gigabytes; by a patch of `jobTemplate.podTemplate` before the run is let go,
they come from this machine (see pipeline_image.py).
"""

import hashlib
import html
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pipeline_image
import pytest
import readme
import yaml
from api import JOBS, Api, Body
from operators import FINAL
from story import RELEASE, SYSTEM, Console, Story
from tests.cluster.paths import REPOSITORY, State
from tests.cluster.up import Cluster
from tests.support.matchers import has_condition, verdicts
from tests.support.waiting import until

from compression_pipeline.config import SCORES

EXAMPLE = "examples/demo-cluster.yaml"
VOLUME = "examples/demo/node-volume.yaml"
STUDENTS = ("width", "depth")
STEPS = ["prepare", "finetune", *(f"{phase}-{name}" for phase in ("prune", "distill", "export") for name in STUDENTS)]
TIMES = '{range .status.steps[*]}{.name}{"\\t"}{.startTime}{"\\t"}{.completionTime}{"\\n"}{end}'
WATCH = ["get", "compressionrun", "demo", "--watch"]
PATIENCE = 1500
"""Seconds for what takes some three minutes on two idle processors."""

pytestmark = [pytest.mark.own_cluster, pytest.mark.timeout(2 * PATIENCE)]


@pytest.fixture(scope="session")
def state() -> State:
    """Of a cluster of its own, because it takes nearly as long as all tests that share one."""
    given = os.environ.get("COMPRESSION_CLUSTER_STATE")
    return State.at(Path(given or tempfile.mkdtemp(prefix="co-end-to-end-")))


@pytest.fixture(scope="module")
def console(cluster: Cluster, state: State, installable: None, tmp_path_factory: pytest.TempPathFactory) -> Console:
    """A terminal whose kubectl is in a namespace of the test's own, as `kubectl config set-context` would have it."""
    folder = tmp_path_factory.mktemp("console")
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    for context in config["contexts"]:
        context["context"]["namespace"] = f"demo-{secrets.token_hex(3)}"
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    assert cluster.bin is not None
    path = [str(readme.programs(folder / "programs")), str(Path(sys.prefix) / "bin"), os.environ["PATH"]]
    exported = {"PATH": os.pathsep.join(path), "STATE": str(state.root)}
    return Console(cluster.bin, folder / "kubeconfig", folder / "console.txt", exported)


@pytest.fixture(scope="module")
def dataset() -> Path:
    """The demo's text, where README's command puts it."""
    subprocess.run([sys.executable, "examples/demo/corpus.py"], cwd=REPOSITORY, check=True, capture_output=True)
    return REPOSITORY / "out" / "demo-input" / "dataset"


@pytest.fixture(scope="module")
def story(api: Api, console: Console) -> Iterator[Story]:
    """The run, from the images to its end and what it leaves."""
    name = yaml.safe_load(console.kubeconfig.read_text())["contexts"][0]["context"]["namespace"]
    volume = yaml.safe_load((REPOSITORY / VOLUME).read_text())
    store = Path(volume["spec"]["hostPath"]["path"])
    shutil.rmtree(store, ignore_errors=True)
    heavy = pipeline_image.volumes(name)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    told = Story(api, console, name, store)
    try:
        api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        for body in heavy:
            scope = "" if body["kind"] == "PersistentVolume" else f"/namespaces/{name}"
            api.create(f"/api/v1{scope}/{body['kind'].lower()}s", body)
        _type(told)
        yield told
    finally:
        console.run("helm", "uninstall", RELEASE, "--namespace", SYSTEM, "--wait", check=False)
        console.kubectl("delete", "namespace", SYSTEM, name, check=False)
        for body in (*heavy, volume):
            if body["kind"] == "PersistentVolume":
                api.delete(f"/api/v1/persistentvolumes/{body['metadata']['name']}")
        shutil.rmtree(store, ignore_errors=True)


def _type(told: Story) -> None:
    """Type README's commands, one after the other."""
    for command in readme.commands():
        if command.startswith("kubectl patch "):
            told.api.merge(told.path, {"spec": {"jobTemplate": {"podTemplate": pipeline_image.pod_template()}}})
            _let_it_run(told, command)
        elif " --watch" in command:
            assert shlex.split(command, comments=True)[1:] == WATCH  # it has been watched since before it was let go
        elif command.startswith("helm "):
            # The cluster may have the CRD from other tests, and little time.
            told.console.shell(f"{command} --timeout=600s --take-ownership")
        else:
            told.console.shell(readme.without_internet(command))


def _let_it_run(told: Story, go: str) -> None:
    console = told.console
    watch = console.watch(*WATCH)
    try:
        until(lambda: "Suspended" in console.watched(), "the run to wait")
        console.shell(go)
        until(lambda: told.look() in FINAL, "the run to end", seconds=PATIENCE, every=1)
        until(lambda: told.status["phase"] in console.watched(), "kubectl to show it, too")
    except TimeoutError as error:
        raise AssertionError(f"{error}\n\n{told.evidence()}") from error
    finally:
        watch.terminate()
        watch.wait()
    assert told.status["phase"] == "Succeeded", told.evidence()
    told.end()
    console.kubectl("get", "compressionrun,pytorchjobs,pods")
    console.kubectl("get", "compressionrun", "demo", f"--output=jsonpath={TIMES}")
    console.kubectl("describe", "compressionrun", "demo")


@pytest.fixture(scope="module")
def alone(story: Story, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a local run of the same manifest: two processes in the place of two pods.

    On two processors, of which its jobs get as many as the manifest's limits grant those in pods.
    """
    workdir = tmp_path_factory.mktemp("alone")
    differences = {
        "suspend": "false",
        "teacher.model": "file:demo/teacher",
        "dataset.source": f"file:{dataset}",
        "phases.distill.nodes": "1",
        "phases.distill.processesPerNode": "2",
    }
    command = [str(Path(sys.prefix) / "bin" / "compression"), "run", EXAMPLE, "--workdir", str(workdir)]
    done = subprocess.run(
        [*command, *(word for path, value in differences.items() for word in ("--set", f"{path}={value}"))],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2]),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir


def test_every_step_succeeded_at_its_first_attempt_with_one_job(story: Story) -> None:
    steps = story.status["steps"]
    assert [step["name"] for step in steps] == STEPS
    assert {(step["state"], step["attempt"], step.get("failures", 0)) for step in steps} == {("Succeeded", 1, 0)}
    assert not [step["name"] for step in steps if step.get("cached") or step.get("message")]
    seen = [step["progress"] for step in steps if "progress" in step]
    assert not [progress for progress in seen if progress["step"] != progress["totalSteps"] or "etaSeconds" in progress]
    assert {job["metadata"]["name"] for job in story.jobs} == {step["jobName"] for step in steps}
    assert len(story.jobs) == len(STEPS)
    assert has_condition(story.status, "Ready", "True")
    others = verdicts(story.status).keys() - {"Ready"}
    assert others
    assert all(has_condition(story.status, kind, "False") for kind in others), verdicts(story.status)


def test_events_tell_what_happened_and_of_no_trouble(story: Story) -> None:
    assert Counter(event["reason"] for event in story.events) == {
        "RunSuspended": 1,
        "RunResumed": 1,
        "JobCreated": len(STEPS),
        "StepSucceeded": len(STEPS),
        "RunSucceeded": 1,
        "ClaimOfOneNode": 1,  # a hint: the demo's claim is for one node, which is all that this cluster has
    }
    lines = [json.loads(line) for line in story.operators_log().splitlines()]
    assert lines and not [line for line in lines if line["level"] == "error"]


def test_kubectl_shows_where_it_stands(story: Story) -> None:
    header, *lines = [line.split() for line in story.console.watched().splitlines()]
    assert header == ["NAME", "PHASE", "READY", "REASON", "AGE"]
    if len(lines[0]) < len(header):
        del lines[0]  # the operator had not looked at it yet
    phases = ["Suspended", "Preparing", "Finetuning", "Pruning", "Distilling", "Exporting", "Succeeded"]
    assert list(dict.fromkeys(line[1] for line in lines)) == phases
    assert lines[-1][:4] == ["demo", "Succeeded", "True", "Succeeded"]


def test_each_distillation_trained_in_two_pods_and_all_else_in_one(story: Story) -> None:
    for step in STEPS:
        expected = {"master", "worker"} if step.startswith("distill") else {"master"}
        assert set(story.pods_of(step)) == expected, step
        (container,) = story.pods_of(step)["master"]["status"]["containerStatuses"]
        ended = container["state"]["terminated"]
        assert (container["restartCount"], ended["exitCode"], ended["reason"]) == (0, 0, "Completed")
        assert json.loads(ended["message"])["class"] == "Done"


def test_pods_are_nobody_and_hold_no_token(story: Story) -> None:
    """The namespace admits restricted pods alone; these are stricter."""
    for pod in story.pods.values():
        spec = pod["spec"]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsUser"] == 1000 and spec["automountServiceAccountToken"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert "serviceAccountToken" not in json.dumps(spec["volumes"])
        claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
        assert len(claims) == len(set(claims)), "a pod with one claim in two volumes never starts"


def test_prepare_alone_sees_the_sources_and_cannot_write_there(story: Story) -> None:
    """They are on the very claim that keeps the artifacts: one volume, mounted twice."""
    for step in STEPS:
        mounts = story.pods_of(step)["master"]["spec"]["containers"][0]["volumeMounts"]
        found = {m["mountPath"]: m.get("readOnly", False) for m in mounts if m["name"] == "store"}
        assert found == {"/compression": False} | ({"/sources/demo": True} if step == "prepare" else {})


def test_distillation_wins_back_of_what_pruning_cost(story: Story) -> None:
    for student in story.status["students"]:
        loss = student["validationLoss"]
        assert loss["correctedTeacher"] < loss["teacher"], "teacher correction corrects"
        assert loss["correctedTeacher"] < loss["distilled"]
        assert (loss["pruned"] - loss["distilled"]) / (loss["pruned"] - loss["correctedTeacher"]) > 0.5
        assert 0.4 <= student["compressionRatio"] <= 0.7


def test_the_students_load_and_write(story: Story, tmp_path: Path) -> None:
    """As a user gets hold of them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for student in story.status["students"]:
        folder = tmp_path / student["name"]
        story.console.kubectl("cp", f"demo-files:/compression/artifacts/{student['artifact']}/model", str(folder))
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert sum(parameter.numel() for parameter in model.parameters()) == student["parameters"]
        inputs = tokenizer("The function returns", return_tensors="pt")
        written = tokenizer.decode(model.float().generate(**inputs, max_new_tokens=24, do_sample=False)[0])
        assert written == student["sample"] and len(written) > 40
        card = (folder / "README.md").read_text()
        assert f"{student['validationLoss']['exported']:.4f}" in card  # of the weights beside it, in their type


def test_losses_and_weights_are_those_of_a_local_run(story: Story, alone: Path) -> None:
    """Equal to the bit: the same programs, data, order, threads, and a sum of two gradients, which has no order."""
    local = yaml.safe_load((alone / "run.yaml").read_text())["status"]
    assert story.status["teacher"] == local["teacher"]
    mine, theirs = ({s["name"]: s["artifact"] for s in status["steps"]} for status in (story.status, local))
    assert mine == theirs, "equal content has equal keys"
    figures = ("name", "parameters", "compressionRatio", "validationLoss", "artifact", "sample")
    for mine, theirs in zip(story.status["students"], local["students"], strict=True):
        assert {name: mine[name] for name in figures} == {name: theirs[name] for name in figures}

    def weights(store: Path) -> Body:
        files = sorted(store.glob("artifacts/*/model/*.safetensors"))
        return {str(f.relative_to(store)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    assert len(weights(story.store)) >= len(STEPS)
    assert weights(story.store) == weights(alone / "store")


def test_what_readme_copies_is_the_first_student_and_its_report(story: Story) -> None:
    student = story.status["students"][0]
    made = story.store / "artifacts" / student["artifact"]
    for copy, original in (("width/config.json", "model/config.json"), ("width.html", "report/index.html")):
        assert (REPOSITORY / "out" / copy).read_bytes() == (made / original).read_bytes()


def test_each_student_brought_its_report(story: Story, tmp_path: Path) -> None:
    """Drawn in its export's pod, which is nobody, has a read-only root and saw nothing but the volume."""
    for student in story.status["students"]:
        file = tmp_path / f"{student['name']}.html"
        page = f"demo-files:/compression/artifacts/{student['artifact']}/report/index.html"
        story.console.kubectl("cp", page, str(file))
        page = " ".join(html.unescape(file.read_text()).split())
        losses = student["validationLoss"]
        figures = [f"{losses[name]:.3f}" for name in ("teacher", "correctedTeacher", "pruned", "distilled")]
        figures += [f"{student['compressionRatio'] * 100:.0f} %", f"{student['tokensPerSecond']:,.0f}"]
        assert not [figure for figure in figures if f">{figure}<" not in page]
        assert " ".join(student["sample"].split()) in page
        steps = [step for step in story.status["steps"] if step.get("student") in (None, student["name"])]
        assert not [step["name"] for step in steps if step["artifact"] not in page]
        assert "left out" not in page, "all that led to it could be read"


def test_the_report_is_built_from_the_resource_and_the_volume(story: Story, tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(story.console.kubectl("get", "compressionrun", "demo", "--output=yaml"))
    command = [sys.executable, "-m", "compression_pipeline.report", "--run", str(run)]
    command += ["--store", str(story.store), "--output", str(tmp_path / "report")]
    subprocess.run(command, check=True, capture_output=True)
    page = (tmp_path / "report" / "index.html").read_text()
    assert all(f"{student['validationLoss']['distilled']:.3f}" in page for student in story.status["students"])


def test_deleting_the_run_takes_its_jobs_and_leaves_what_they_made(story: Story) -> None:
    kept = sorted(path.name for path in (story.store / "artifacts").iterdir())
    of_steps = [name for name in kept if not name.startswith(f"{SCORES}-")]
    assert len(of_steps) == len(STEPS) < len(kept), "and the importance that prune measured"
    story.console.kubectl("delete", "compressionrun", "demo")
    jobs = f"{JOBS}/namespaces/{story.namespace}/pytorchjobs"
    until(lambda: not story.api.items(jobs), "the jobs to go with their run")
    pods = f"/api/v1/namespaces/{story.namespace}/pods"
    names = {pod["metadata"]["name"] for pod in story.pods.values()}
    until(lambda: not names & {pod["metadata"]["name"] for pod in story.api.items(pods)}, "their pods to go")
    assert sorted(path.name for path in (story.store / "artifacts").iterdir()) == kept
