"""The CRD on a real API server: it takes what is right, refuses what is wrong in our words, and explains itself."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from api import CRD, RUNS, Api, Body, Refused
from operators import manifest
from tests.cluster.up import Cluster
from tests.support.faults import faults_of

MANIFESTS = Path(__file__).parents[1] / "operator"
CLUSTER = "# world: cluster\n"
INVALID = [path for path in sorted((MANIFESTS / "invalid").glob("*.yaml")) if CLUSTER in path.read_text()]
VALID = [path for path in sorted((MANIFESTS / "valid").glob("*.yaml")) if CLUSTER in path.read_text()]
EXAMPLES = [
    path
    for path in sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
    if "kind: CompressionRun" in path.read_text() and ": file:" not in path.read_text()
]

TYPES = {
    "integer": "an integer",
    "integer,string": "an integer or a string",
    "string": "a string",
    "object": "an object",
    "array": "a list",
    "boolean": "true or false",
}


def submit(api: Api, text: str) -> None:
    """`kubectl create --dry-run=server` without kubectl. Raises Refused."""
    path = f"{RUNS}/namespaces/default/compressionruns"
    api.call("POST", path, text, kind="application/yaml", dryRun="All", fieldValidation="Strict")


def causes(refused: Refused) -> dict[str, str]:
    """What the API server finds wrong: path -> its words."""
    told: dict[str, str] = {}
    for cause in (refused.status.get("details") or {}).get("causes") or ():
        told.setdefault(cause["field"], cause["message"])  # the type first; what follows from it comes after
    # Unknown fields are found before the schema is looked at, and told in one sentence.
    return told | dict.fromkeys(re.findall(r'unknown field "([^"]+)"', str(refused)), "unknown field")


def in_our_words(field: str, words: str) -> str:
    """What our own check says of the constraint that the API server names; a CEL rule's message is ours already."""
    if words in ("unknown field", "Required value"):
        return {"Required value": "is required"}.get(words, words)
    if words.startswith("Duplicate value: "):
        return "is given twice"
    if found := re.fullmatch(r"Too long: may not be more than (\d+) bytes", words):
        return f"should be at most {found[1]} characters long"
    if found := re.fullmatch(r"Unsupported value: (.+): supported values: (.+)", words):
        return f"{found[1]} is not supported, supported: {found[2].replace(chr(34), '')}"
    told = re.sub(r'^Invalid value: (?:"[^"]*"|\S+): ', "", words)
    if not told.startswith(f"{field} in body "):
        return told
    told = told.removeprefix(f"{field} in body ")
    if found := re.fullmatch(r'must be of type (\S+): "\w+"', told):
        return f"must be {TYPES[found[1]]}"
    if found := re.fullmatch(r"should match '(.+)'", told):
        return f"should match {found[1]}"
    return re.sub(r"\b(\d+) (?:chars|items).*", r"\1 ", told)


def test_enough_is_compared() -> None:
    assert len(INVALID) >= 60 and len(VALID) >= 2


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_a_wrong_manifest_is_refused_with_our_paths_and_sentences(api: Api, path: Path) -> None:
    with pytest.raises(Refused) as caught:
        submit(api, path.read_text())
    told = causes(caught.value)
    faults = faults_of(path)
    if unknown := [path for path, words in told.items() if words == "unknown field"]:
        # The API server looks no further then. It calls the fields of an object that stands for a list unknown, too.
        lists = [fault.partition(": ")[0] for fault in faults if fault.endswith(" must be a list")]
        assert all(any(path.startswith(f"{field}.") for path in unknown) for field in lists)
        faults = [fault for fault in faults if "unknown field" in fault]
        if lists and not faults:
            return
    assert faults
    for fault in faults:
        where, _, what = fault.partition(": ")
        assert where in told, told
        words = in_our_words(where, told[where])
        if words == "unknown field" or "in body" in told[where] or not told[where].startswith("Invalid value: "):
            assert words in what  # the same constraint; ours adds the value, and what was meant
        else:
            assert words == what  # a CEL rule: the very sentence


@pytest.mark.parametrize("path", [*VALID, *EXAMPLES], ids=lambda path: path.stem)
def test_a_right_manifest_is_taken(cluster: Cluster, api: Api, path: Path) -> None:
    found = re.search(r"^  namespace: (\S+)$", path.read_text(), re.MULTILINE)
    if found and api.get(f"/api/v1/namespaces/{found[1]}") is None:
        api.create("/api/v1/namespaces", {"metadata": {"name": found[1]}})
    kubectl(cluster, "create", "--dry-run=server", "--validate=strict", "--filename", str(path))


def kubectl(cluster: Cluster, *arguments: str) -> str:
    program = str(cluster.bin / "kubectl") if cluster.bin else "kubectl"
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_server_side_apply_merges_by_name(api: Api) -> None:
    """Two managers, a student each: lists of named things are merged, not replaced."""
    path = f"{RUNS}/namespaces/default/compressionruns/applied"

    def apply(body: Body, manager: str) -> Body:
        return api.call("PATCH", path, body, kind="application/apply-patch+yaml", fieldManager=manager)

    first, second = manifest("applied"), manifest("applied")
    second["spec"] = {"students": [{"name": "thin", "prune": {"ffnHiddenSize": 256}}]}
    try:
        apply(first, "one")
        students = apply(second, "two")["spec"]["students"]
        assert [student["name"] for student in students] == ["width", "depth", "thin"]
        first["spec"]["students"] = first["spec"]["students"][:1]
        students = apply(first, "one")["spec"]["students"]
        assert [student["name"] for student in students] == ["width", "thin"]
    finally:
        api.delete(path)


def test_kubectl_explains_it(cluster: Cluster) -> None:
    told = kubectl(cluster, "explain", "compressionrun.spec.students.prune.hiddenSize")
    assert (
        "GROUP:      modelcompression.io" in told and "FIELD: hiddenSize <integer>" in told and "DESCRIPTION:" in told
    )
    told = kubectl(cluster, "explain", "compressionrun.spec.distill.learningRate")
    assert "Peak learning rate, reached after warm-up. Default: 1e-4." in " ".join(told.split())


def test_numbers_below_their_bounds_are_told_once_each(api: Api) -> None:
    body = manifest("zero")
    zero = {"finetune": {"steps": 0, "microBatchSize": 0}, "distill": {"steps": 0, "globalBatchSize": 0}}
    phases = {"phases": {"distill": {"gpusPerNode": 0, "processesPerNode": 0}}}
    with pytest.raises(Refused) as caught:
        submit(api, yaml.safe_dump({**body, "spec": {**body["spec"], **zero, **phases}}))
    told = [cause["field"] for cause in caught.value.status["details"]["causes"]]
    given = [f"spec.{phase}.{field}" for phase, fields in zero.items() for field in fields]
    assert sorted(told) == sorted([*given, "spec.phases.distill.processesPerNode"])


def test_kubectl_applies_the_crd_from_the_client(cluster: Cluster) -> None:
    """It keeps the whole as JSON in an annotation, and the server takes 256 KiB of annotations at most."""
    kept = kubectl(cluster, "apply", "--dry-run=server", "--output", "json", "--filename", str(CRD))
    annotations = json.loads(kept)["metadata"]["annotations"]
    crd = yaml.safe_load(CRD.read_text())
    assert json.loads(annotations["kubectl.kubernetes.io/last-applied-configuration"])["spec"] == crd["spec"]


def test_a_status_cannot_be_given_with_the_resource(api: Api) -> None:
    """It is a subresource: who may create runs does not thereby say what the operator has seen."""
    path = f"{RUNS}/namespaces/default/compressionruns"
    made = api.call("POST", path, {**manifest("forged"), "status": {"phase": "Succeeded"}}, dryRun="All")
    assert "status" not in made
