"""examples/gitops: what kustomize makes of it, and Argo CD's health check run by Lua over the operator's statuses."""

import subprocess
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime
from tests.cluster import build
from tests.cluster.paths import REPOSITORY
from tests.packaging.helm import CHART, Body, only, render

from compression_operator.api.attempts import AttemptRecord
from compression_operator.api.documents import read_documents
from compression_operator.api.rules import World
from compression_operator.api.status import CompressionRunStatus, Step, StepState
from compression_operator.api.validate import inspect
from compression_operator.core.conditions import Situation, summarized
from compression_operator.core.problems import FORBIDDEN, QUOTA_EXCEEDED, Problem, with_problem
from compression_pipeline.config import Phase

GITOPS = REPOSITORY / "examples" / "gitops"
HEALTH = "resource.customizations.health.modelcompression.io_CompressionRun"
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def kustomized(folder: str) -> list[Any]:
    build.build((build.KUBERNETES,), print)
    command = [build.KUBERNETES.built() / "kubectl", "kustomize", GITOPS / folder]
    return read_documents(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


# -- manifests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["base", "overlays/production"])
def test_runs_are_good_manifests(folder: str) -> None:
    bodies = kustomized(folder)
    run, claim = only(bodies, "CompressionRun"), only(bodies, "PersistentVolumeClaim")
    _, faults = inspect(run, World.CLUSTER)
    assert faults == []
    assert run["spec"]["storage"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert "Prune=false" in claim["metadata"]["annotations"]["argocd.argoproj.io/sync-options"]


def test_production_says_only_what_differs() -> None:
    base, production = (only(kustomized(folder), "CompressionRun") for folder in ("base", "overlays/production"))
    assert production["metadata"]["namespace"] == "models"
    assert production["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    assert [student["name"] for student in production["spec"]["students"]] == ["width", "depth"]
    assert production["spec"]["distill"] == base["spec"]["distill"] | {
        "steps": 1800,
        "globalBatchSize": 1152,
        "warmupSteps": 40,
    }
    for field in ("teacher", "dataset", "storage"):
        assert production["spec"][field] == base["spec"][field]


def test_applications_point_at_what_is_there() -> None:
    bodies = kustomized("argocd")
    operator, runs = (only(bodies, "Application", name) for name in ("compression-operator", "compression-runs"))
    assert {body["metadata"]["namespace"] for body in bodies} == {"argocd"}
    assert REPOSITORY / operator["spec"]["source"]["path"] == CHART
    assert (REPOSITORY / runs["spec"]["source"]["path"] / "kustomization.yaml").exists()
    given = operator["spec"]["source"]["helm"]["valuesObject"]
    assert only(render(given), "Deployment")["spec"]["replicas"] == given["replicas"]
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    assert operator["spec"]["source"]["targetRevision"] == f"v{version}"
    runs_namespace = only(kustomized("overlays/production"), "CompressionRun")["metadata"]["namespace"]
    assert runs["spec"]["destination"]["namespace"] == runs_namespace


# -- health ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> str:
    """The health check as Argo CD gets it."""
    return only(kustomized("argocd"), "ConfigMap", "argocd-cm")["data"][HEALTH]


def health(script: str, run: Body) -> tuple[str, str]:
    """What Argo CD would show, by the Lua 5.1 that it speaks, with nothing but the run to go by."""
    # Argo CD gives scripts no way out of the sandbox: none of these may be needed.
    lua = LuaRuntime(unpack_returned_tuples=True)
    lua.execute("io = nil; os = nil; package = nil; require = nil; debug = nil; dofile = nil; loadfile = nil")
    result: Any = lua.execute("obj = ...\n" + script, lua.table_from(run, recursive=True))
    assert set(result) == {"status", "message"}
    return result["status"], result["message"]


def resource(status: CompressionRunStatus | None, generation: int = 3) -> Body:
    run: Body = {"apiVersion": "modelcompression.io/v1alpha1", "kind": "CompressionRun", "spec": {}}
    run["metadata"] = {"name": "llama", "namespace": "models", "generation": generation}
    return run if status is None else run | {"status": status.to_json()}


def summary(*steps: Step, suspended: bool = False, live_jobs: int = 0, faults: tuple[str, ...] = ()) -> Body:
    """A run whose steps stand like this, summarized as the operator would."""
    situation = Situation(generation=3, suspended=suspended, live_jobs=live_jobs, faults=faults)
    return resource(summarized(CompressionRunStatus(steps=list(steps)), situation, NOW))


def step(phase: Phase, state: StepState, student: str | None = None, **fields: Any) -> Step:
    name = phase.value if student is None else f"{phase.value}-{student}"
    attempt = 0 if state is StepState.PENDING else 1
    return Step(**({"name": name, "phase": phase, "student": student, "state": state, "attempt": attempt} | fields))


PREPARED = step(Phase.PREPARE, StepState.SUCCEEDED)
PRUNED = step(Phase.PRUNE, StepState.SUCCEEDED, "width")
FORBIDS = Problem(FORBIDDEN, "the operator may not create pytorchjobs")
FULL = Problem(QUOTA_EXCEEDED, "the namespace's quota is used up")


def troubled(run: Body, problem: Problem, edits: int = 0) -> Body:
    """The run once the operator has met with a problem after so many more edits, and no pass has gone through since."""
    generation = run["metadata"]["generation"] + edits
    status = with_problem(run.get("status", {}), problem, generation=generation, now=NOW)
    return run | {"metadata": run["metadata"] | {"generation": generation}, "status": status}


WAITS = step(Phase.EXPORT, StepState.PENDING, "width", message="waits for distill-width")
LOST = AttemptRecord(attempt=1, job_name="llama-width-distill-abcdef-1", exit_class="Transient", message="NCCL timeout")

HEALTHS: dict[str, tuple[Body, str, str]] = {
    "no status": (resource(None), "Progressing", "Waiting for the operator to look at the run"),
    "an empty status": (resource(CompressionRunStatus()), "Progressing", "Waiting for the operator"),
    "pending": (
        summary(step(Phase.PREPARE, StepState.PENDING, message="waits for a slot")),
        "Progressing",
        "Pending: 0 of 1 steps are done; prepare waits for a slot",
    ),
    "under way": (
        summary(PREPARED, PRUNED, step(Phase.DISTILL, StepState.RUNNING, "width"), WAITS),
        "Progressing",
        "Distilling: 2 of 4 steps are done; under way: distill-width",
    ),
    "retrying": (
        summary(
            PREPARED,
            PRUNED,
            step(Phase.DISTILL, StepState.RUNNING, "width", attempt=2, failures=1, last_failure=LOST),
            WAITS,
        ),
        "Progressing",
        "under way: distill-width (Retrying: distill-width: attempt 1 failed: NCCL timeout)",
    ),
    "waiting for GPUs": (
        summary(
            step(Phase.PREPARE, StepState.STARTING, message="pod p cannot be scheduled", waiting_reason="Unschedulable")
        ),
        "Progressing",
        "Preparing: 0 of 1 steps are done; under way: prepare (pod p cannot be scheduled) (Unschedulable: prepare:",
    ),
    "one student lost, the other under way": (
        summary(
            PREPARED,
            PRUNED,
            step(Phase.DISTILL, StepState.FAILED, "width", message="loss is not a number"),
            step(Phase.DISTILL, StepState.RUNNING, "depth"),
        ),
        "Progressing",
        "(DistillFailed: distill-width: loss is not a number)",
    ),
    "succeeded": (
        summary(PREPARED, PRUNED, step(Phase.EXPORT, StepState.SUCCEEDED, "width")),
        "Healthy",
        "1 student is exported",
    ),
    "failed": (
        summary(PREPARED, step(Phase.PRUNE, StepState.FAILED, "width", message="hiddenSize 97 is odd")),
        "Degraded",
        "prune-width: hiddenSize 97 is odd",
    ),
    "problem from the first": (
        troubled(resource(None), FORBIDS),
        "Degraded",
        "Forbidden: the operator may not create pytorchjobs",
    ),
    "a quota that is full": (
        troubled(resource(None), FULL),
        "Progressing",
        "QuotaExceeded: the namespace's quota is used up",
    ),
    "problem after an edit": (
        troubled(summary(PREPARED, PRUNED, step(Phase.DISTILL, StepState.RUNNING, "width")), FORBIDS, edits=1),
        "Degraded",
        "Forbidden: the operator may not create pytorchjobs",
    ),
    "problem once it has succeeded": (
        troubled(summary(PREPARED, PRUNED, step(Phase.EXPORT, StepState.SUCCEEDED, "width")), FORBIDS),
        "Healthy",
        "1 student is exported",
    ),
    "problem after an edit of one that had succeeded": (
        troubled(summary(PREPARED, PRUNED, step(Phase.EXPORT, StepState.SUCCEEDED, "width")), FORBIDS, edits=1),
        "Degraded",
        "Forbidden: the operator may not create pytorchjobs",
    ),
    "suspended": (
        summary(PREPARED, step(Phase.PRUNE, StepState.PENDING, "width"), suspended=True),
        "Suspended",
        "1 of 2 steps are done; set spec.suspend to false to continue",
    ),
    "suspending": (
        summary(PREPARED, step(Phase.DISTILL, StepState.RUNNING, "width"), suspended=True, live_jobs=1),
        "Suspended",
        "1 job writes a checkpoint and will end",
    ),
}


@pytest.mark.parametrize("case", HEALTHS)
def test_health(script: str, case: str) -> None:
    run, status, message = HEALTHS[case]
    found, said = health(script, run)
    assert found == status
    assert message in said


@pytest.mark.parametrize("case", ["succeeded", "failed", "suspended", "under way"])
def test_an_edit_makes_every_run_progress(script: str, case: str) -> None:
    run = HEALTHS[case][0]
    edited = run | {"metadata": run["metadata"] | {"generation": 4}}
    assert health(script, edited) == ("Progressing", "Waiting for the operator to look at the newest edit")
