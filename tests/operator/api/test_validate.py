"""Manifests: the wrong ones get one line per fault, the right ones become runs."""

import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from tests.support.faults import MEMBERS, faults_of, header

from compression_operator.api.check import findings, with_defaults
from compression_operator.api.manifest import InvalidManifest, World, load
from compression_operator.api.overrides import InvalidOverride, override
from compression_operator.api.run import CompressionRun
from compression_operator.api.schema import structural_schema
from compression_operator.api.validate import validate
from compression_pipeline.config import DistillConfig, Phase, Rule

HERE = Path(__file__).parents[1]
INVALID = sorted((HERE / "invalid").glob("*.yaml"))
VALID = sorted((HERE / "valid").glob("*.yaml"))
EXAMPLES = sorted((HERE.parents[1] / "examples").glob("*.yaml"))
MINIMAL = (HERE / "valid" / "minimal.yaml").read_text()


@pytest.mark.parametrize("broken", ["stepz", "steps.bit_length.nothing"])
def test_a_bug_in_a_rule_is_no_manifest_that_is_valid(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    rule = Rule("steps", lambda distill: attrgetter(broken)(distill))
    monkeypatch.setattr(DistillConfig, "rules", (*DistillConfig.rules, rule))
    with pytest.raises(AttributeError):
        load(HERE / "valid" / "minimal.yaml", World.LOCAL)


def test_there_are_many_ways_to_be_wrong() -> None:
    assert len(INVALID) >= 80


def test_members_that_sentences_list() -> None:
    places = {"hf://owner/name", "pvc://claim/path (on a cluster)", "file:path (local runs)"}
    assert places <= set(re.split(", | or ", MEMBERS["models"])) and "pvc://" not in MEMBERS["local_models"]
    assert {"hf://owner/name", "file:path"} <= set(re.split(", | or ", MEMBERS["local_models"]))


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_a_wrong_manifest_gets_these_lines(path: Path) -> None:
    with pytest.raises(InvalidManifest) as caught:
        load(path, World(header(path, "world")[0]))
    expected = [f"{path}: {fault}" for fault in faults_of(path)]
    assert [str(fault) for fault in caught.value.faults] == expected
    assert str(caught.value) == "\n".join(expected)


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_right_manifest_becomes_a_run(path: Path) -> None:
    assert load(path, World(header(path, "world")[0])).metadata.name.startswith(path.stem)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_right(path: Path) -> None:
    local = ": file:" in path.read_text()
    load(path, World.LOCAL if local else World.CLUSTER)


def test_the_sentence_of_the_promise() -> None:
    text = MINIMAL.replace("3072", "200")
    faults = validate(text, "run.yaml", World.LOCAL)
    assert isinstance(faults, list)
    assert [str(fault) for fault in faults] == [
        "run.yaml: spec.students[0].prune.hiddenSize: 200 is not divisible by 64, nearest: 192 or 256"
    ]


def test_what_is_given_arrives_typed_and_the_rest_has_defaults() -> None:
    run = load(HERE / "valid" / "everything.yaml", World.CLUSTER)
    spec = run.spec
    assert run.metadata.labels["kueue.x-k8s.io/queue-name"] == "gpus"
    assert spec.finetune is not None and spec.finetune.learning_rate == 2e-5 and spec.finetune.deterministic is True
    assert spec.finetune.checkpoint_interval == 100 and spec.finetune.steps == 1000
    assert spec.students[1].distill is not None and spec.students[1].distill.steps == 2000
    assert spec.distill is not None and spec.distill.warmup_steps == 40
    assert spec.job_template.pod_template is not None
    phases = spec.phases
    assert [phases.of(phase).gpus_per_node for phase in (Phase.PREPARE, Phase.FINETUNE, Phase.PRUNE)] == [0, 8, 1]
    assert phases.of(Phase.PREPARE).resources == {"requests": {"cpu": 8, "memory": "64Gi"}}


def test_faults_come_in_the_order_of_their_paths() -> None:
    students = "".join(f"  - {{name: s{i}, prune: {{layers: 0}}}}\n" for i in range(12))
    text = MINIMAL.replace("  - name: width\n    prune:\n      hiddenSize: 3072\n", students)
    faults = validate(text, "run.yaml", World.CLUSTER)
    assert isinstance(faults, list)
    assert [fault.path for fault in faults] == [f"spec.students[{i}].prune.layers" for i in range(12)]


def test_a_faulty_field_does_not_hide_the_faults_of_others() -> None:
    text = MINIMAL.replace("hiddenSize: 3072", "hiddenSize: wide, ffnHiddenSize: 100").replace(
        "prune:\n      ", "prune: {"
    )
    text = text.replace("ffnHiddenSize: 100", "ffnHiddenSize: 100}").replace("steps: 100", "steps: 10")
    faults = validate(text, "run.yaml", World.CLUSTER)
    assert isinstance(faults, list)
    assert [fault.path for fault in faults] == [
        "spec.distill.warmupSteps",
        "spec.students[0].prune.ffnHiddenSize",
        "spec.students[0].prune.hiddenSize",
    ]


def test_a_status_in_the_file_is_left_alone() -> None:
    run = validate(MINIMAL + "status: {phase: Nonsense, anything: [1]}\n", "run.yaml", World.CLUSTER)
    assert isinstance(run, CompressionRun)
    assert run.status.steps == []


def test_null_counts_as_absent() -> None:
    run = validate(MINIMAL.replace("steps: 100", "steps: 100\n    seed: null") + "  finetune:\n", "x", World.CLUSTER)
    assert isinstance(run, CompressionRun)
    assert run.spec.finetune is None
    assert run.spec.distill is not None and run.spec.distill.seed == 1234


def test_a_pattern_ends_where_the_text_ends() -> None:
    schema = structural_schema(CompressionRun)["properties"]["spec"]["properties"]["students"]["items"]
    assert [path for path, _ in findings(schema, with_defaults(schema, {"name": "a\n", "prune": {}}))] == ["name"]


def test_long_values_are_shortened() -> None:
    faults = validate(MINIMAL.replace("steps: 100", f"steps: {'x' * 5000}"), "run.yaml", World.CLUSTER)
    assert isinstance(faults, list)
    assert len(str(faults[0])) < 200


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    for name, words in (
        ("missing.yaml", "cannot be read: no such file or directory"),
        (".", "cannot be read: is a directory"),
        ("latin.yaml", "is not UTF-8 text; a manifest is a YAML file"),
    ):
        with pytest.raises(InvalidManifest) as caught:
            load(tmp_path / name, World.LOCAL)
        assert str(caught.value) == f"{tmp_path / name}: {words}"


def overridden(*overrides: str) -> CompressionRun | list[str]:
    run = validate(MINIMAL, "run.yaml", World.CLUSTER, overrides)
    return run if isinstance(run, CompressionRun) else [str(fault) for fault in run]


def test_overrides_change_the_run() -> None:
    run = overridden(
        "distill.steps=200",
        "spec.distill.learningRate=1e-3",
        "students[0].prune.ffnHiddenSize=9216",
        "students[width].name=narrow",
        "metadata.name=other",
        "dataset.documents=Rows",
        "export={dtype: float32, samplePrompt: 'a=b'}",
        "finetune.steps=500",
        "distill.seed=null",
        "suspend=yes",
    )
    assert isinstance(run, CompressionRun)
    assert run.metadata.name == "other"
    assert run.spec.distill is not None and run.spec.distill.steps == 200
    assert run.spec.distill.learning_rate == 1e-3 and run.spec.distill.seed == 1234
    assert run.spec.students[0].name == "narrow" and run.spec.students[0].prune.ffn_hidden_size == 9216
    assert run.spec.export.sample_prompt == "a=b"
    assert run.spec.finetune is not None and run.spec.suspend is True


def test_overrides_are_judged_like_the_file() -> None:
    assert overridden("students[0].prune.hiddenSize=200", "distill.stepz=1") == [
        "run.yaml: spec.distill.stepz: unknown field, did you mean steps?",
        "run.yaml: spec.students[0].prune.hiddenSize: 200 is not divisible by 64, nearest: 192 or 256",
    ]


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("distill.steps", "should be path=value, e.g. distill.steps=200"),
        ("=5", "should be path=value, e.g. distill.steps=200"),
        ("students[1].name=a", "spec.students has no item 1: it has 1, counted from 0"),
        ("students[deep].name=a", "spec.students has no item named deep; it has width"),
        ("students.name=a", "spec.students is a list, so it has no name; write spec.students[0] for its first item"),
        ("distill.steps.x=a", "spec.distill.steps is not an object, so it has no x"),
        ("distill[0]=a", "spec.distill is no list"),
        ("distill..steps=a", "distill..steps is not a path; write it like students[0].prune.hiddenSize"),
        ("distillsteps]=a", "distillsteps] is not a path; write it like students[0].prune.hiddenSize"),
        ("distill.steps=.nan", ".nan is not a valid JSON number; give a finite one"),
        ("export={dtype", "is not YAML"),
    ],
)
def test_overrides_that_cannot_be_applied(assignment: str, words: str) -> None:
    faults = overridden(assignment)
    assert isinstance(faults, list)
    assert len(faults) == 1
    assert faults[0].startswith(f"--set {assignment}: {words}")


def test_an_override_leaves_its_document_as_it_is() -> None:
    document: dict[str, Any] = {"spec": {"students": [{"name": "a"}, {"name": "b"}]}}
    assert override(document, "students[a]=null") == {"spec": {"students": [{"name": "b"}]}}
    assert document == {"spec": {"students": [{"name": "a"}, {"name": "b"}]}}
    with pytest.raises(InvalidOverride):
        override(document, "students[c]=null")
