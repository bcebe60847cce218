"""Steps, their order and their fingerprints."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs_world import manifest, student

from compression_operator.api.resolved import Resolved, ResolvedTasks
from compression_operator.api.run import SOURCES_ANNOTATION
from compression_operator.core.names import job_name
from compression_operator.core.plan import Plan, plan
from compression_pipeline.config import (
    PHASES,
    DistillJob,
    ExportJob,
    FinetuneJob,
    JobConfig,
    Parallelism,
    Phase,
    Precision,
    PruneJob,
)

FP = "0123456789abcdef" * 2
TEXT = {"source": "hf://owner/text", "sequenceLength": 64}
EVALUATE = {"tasks": [{"name": "hellaswag"}]}
DISCOVERED = {"tasks": ResolvedTasks(key="t" * 32, harness="0.4.13")}


def resolved(key: str = "k" * 32) -> Resolved:
    source = {"source": "hf://owner/x", "revision": "abc", "digest": "d"}
    return Resolved.model_validate({"key": key, "teacher": source, "dataset": source})


def planned(key: str = "k" * 32, **spec: Any) -> Plan:
    return plan(manifest(**spec).spec, discovered={**DISCOVERED, "prepare": resolved(key)})


def marks(of: Plan) -> dict[str, str | None]:
    return {step.name: step.fingerprint for step in of.steps}


def changed(before: Plan, after: Plan) -> set[str]:
    old, new = marks(before), marks(after)
    assert old.keys() == new.keys()
    return {name for name in old if old[name] != new[name]}


ALL = {step.name for step in planned().steps}


def test_every_student_is_pruned_before_the_first_is_distilled() -> None:
    steps = planned().steps
    assert [step.name for step in steps] == [
        "prepare",
        "finetune",
        "prune-width",
        "prune-depth",
        "distill-width",
        "distill-depth",
        "export-width",
        "export-depth",
    ]
    for place, step in enumerate(steps):
        assert set(step.dependencies) <= {before.name for before in steps[:place]}


def test_arithmetic_that_is_left_to_the_machine_is_settled_in_key_and_job() -> None:
    """A CPU computes in float32, a GPU in bfloat16: other weights, so other artifacts."""
    spec = manifest(finetune={"steps": 300}, distill={"steps": 100}).spec
    on_gpu = plan(spec, discovered={"prepare": resolved()})
    on_cpu = plan(spec, discovered={"prepare": resolved()}, gpus=False)
    assert changed(on_gpu, on_cpu) == ALL - {"prepare"}
    for of, precision in ((on_gpu, Precision.BF16), (on_cpu, Precision.FP32)):
        assert _arithmetic(of) == [precision] * 3


def test_arithmetic_follows_what_each_phase_asks_for() -> None:
    spec = manifest(distill={"steps": 100}, phases={"distill": {"gpusPerNode": 0}}).spec
    of = plan(spec, discovered={"prepare": resolved()})
    assert _arithmetic(of) == [Precision.BF16] + [Precision.FP32] * 2


def test_arithmetic_that_is_told_holds_everywhere() -> None:
    single = {"steps": 100, "warmupSteps": 1, "precision": "FP32"}
    spec = manifest(finetune=single, distill=single).spec
    told, by_machine = (plan(spec, discovered={"prepare": resolved()}, gpus=gpus) for gpus in (True, False))
    assert changed(told, by_machine) >= {"prune-width"}
    assert marks(told)["finetune"] == marks(by_machine)["finetune"]
    left = manifest(finetune=single | {"precision": "Auto"}, distill=single).spec
    assert marks(plan(left, discovered={"prepare": resolved()}, gpus=False))["finetune"] == marks(told)["finetune"]


def _arithmetic(of: Plan) -> list[Precision]:
    """What the jobs of finetune and distill are told to train in."""
    found: list[Precision] = []
    for step in of.steps:
        match of.job(step, run="demo", attempt=1).config:
            case FinetuneJob(finetune=training) | DistillJob(distill=training):
                found.append(training.precision)
            case _:
                pass
    return found


def test_inputs() -> None:
    steps = {step.name: step.inputs for step in planned().steps}
    common = {"data": "prepare", "teacher": "finetune"}
    assert steps["prepare"] == {}
    assert steps["finetune"] == {"data": "prepare", "teacher": "prepare"}
    assert steps["prune-depth"] == common
    assert steps["distill-depth"] == common | {"pruned": "prune-depth"}
    assert steps["export-depth"] == common | {"pruned": "prune-depth", "distilled": "distill-depth"}


def test_without_finetune_the_teacher_is_prepares() -> None:
    steps = planned("a" * 32, finetune=None)
    prune = steps.get("prune-width")
    assert prune and prune.inputs == {"data": "prepare", "teacher": "prepare"}
    config = steps.job(prune, run="demo", attempt=1).config
    assert isinstance(config, PruneJob)
    assert config.teacher == config.data == "prepare-" + "a" * 32


def test_only_prepares_fingerprint_is_known_before_prepare_has_looked() -> None:
    steps = plan(manifest().spec)
    assert [step.name for step in steps.steps if step.fingerprint] == ["prepare"]
    assert all(step.artifact is None for step in steps.steps)
    with pytest.raises(ValueError, match="finetune are not known yet"):
        steps.job(steps.steps[1], run="demo", attempt=1)


@pytest.mark.parametrize(
    ("edit", "runs_again"),
    [
        ({"distill": {"steps": 101}}, {"distill-width", "distill-depth", "export-width", "export-depth"}),
        ({"finetune": {"steps": 201}}, ALL - {"prepare"}),
        ({"export": {"dtype": "float16"}}, {"export-width", "export-depth"}),
        ({"export": {"sampleTokens": 24}}, {"export-width", "export-depth"}),
        ({"validation": {"samples": 3}}, {"finetune", "distill-width", "distill-depth"}),
        ({"teacher": {"model": "hf://owner/other"}}, {"prepare"}),
        ({"teacher": {"model": "hf://owner/teacher", "revision": "v2"}}, {"prepare"}),
        ({"dataset": {"source": "hf://owner/text", "sequenceLength": 64, "textColumn": "body"}}, {"prepare"}),
        ({"dataset": {"source": "hf://owner/text", "sequenceLength": 128}}, ALL - {"prepare"}),
        ({"dataset": TEXT | {"documentAttention": "Isolated"}}, ALL - {"prepare"}),
        ({"dataset": TEXT | {"tokens": 1000}}, {"prepare"}),
        (
            {"students": [student("width", hiddenSize=64), student("depth", dropLayers=[3])]},
            {"prune-width", "distill-width", "export-width"},
        ),
        (
            {"students": [student("width", hiddenSize=128), student("depth", {"steps": 7}, dropLayers=[3])]},
            {"distill-depth", "export-depth"},
        ),
    ],
)
def test_an_edit_runs_just_what_depends_on_it_again(edit: dict[str, Any], runs_again: set[str]) -> None:
    assert changed(planned(), planned(**edit)) == runs_again


@pytest.mark.parametrize("spec", [{}, {"finetune": None}])
def test_what_only_measures_makes_nothing_anew(spec: dict[str, Any]) -> None:
    before, after = planned(**spec), planned(**spec, validation={"samples": 3})
    assert [step.artifact for step in after.steps] == [step.artifact for step in before.steps]
    assert changed(before, after) == {"finetune", "distill-width", "distill-depth"} & marks(before).keys()
    for step in after.steps[1:]:
        config = after.job(step, run="demo", attempt=1).config
        assert f"{step.phase}-{config.artifact_key}" == step.artifact
        assert config.fingerprint == step.fingerprint


@pytest.mark.parametrize(
    ("spec", "known"),
    [
        (
            {},
            {
                "prepare": "2466c6bf",
                "finetune": "2b1a977a",
                "prune-width": "0c8b9f81",
                "distill-depth": "00a5ff51",
                "export-width": "6aed9f75",
            },
        ),
        (
            {"validation": {"samples": 3}},
            {
                "finetune": "c05d0be8",
                "prune-width": "0c8b9f81",
                "distill-depth": "82a7528e",
                "export-width": "6aed9f75",
            },
        ),
        (
            {"students": [student("depth", {"steps": 7, "learningRate": 0.0002}, layers=2, calibrationSamples=8)]},
            {
                "finetune": "2b1a977a",
                "prune-depth": "29ba84e7",
                "distill-depth": "d12b2f29",
                "export-depth": "87e763fe",
            },
        ),
    ],
)
def test_keys_are_those_of_earlier_versions(spec: dict[str, Any], known: dict[str, str]) -> None:
    """Literal keys, written down by the version of SCHEMA_VERSION 2 that first had them: a store is still good."""
    found = {name: mark and mark[:8] for name, mark in marks(planned(**spec)).items()}
    assert {name: found[name] for name in known} == known


def test_layers_to_drop_are_a_set() -> None:
    one, other = (planned(students=[student("depth", dropLayers=layers)]) for layers in ([4, 2], [2, 4]))
    assert changed(one, other) == set()
    twice = planned(students=[student("depth", dropLayers=[4, 2, 4])])
    assert changed(one, twice) == set()


LAYERS = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@given(LAYERS, LAYERS, st.integers(1, 3), st.integers(1, 3))
def test_keys_are_equal_where_contents_are_and_nowhere_else(
    dropped: list[int], others: list[int], samples: int, more: int
) -> None:
    def of(layers: list[int], count: int) -> Plan:
        return planned(students=[student("depth", dropLayers=layers)], validation={"samples": count})

    one, other = of(dropped, samples), of(others, more)
    artifacts = {a.name for a, b in zip(one.steps, other.steps, strict=True) if a.artifact != b.artifact}
    students = {"prune-depth", "distill-depth", "export-depth"} if set(dropped) != set(others) else set[str]()
    assert artifacts == students
    assert changed(one, other) == students | ({"finetune", "distill-depth"} if samples != more else set())


@pytest.mark.parametrize(
    "edit",
    [
        {"teacher": {"model": "hf://owner/teacher", "secretRef": {"name": "hub", "key": "token"}}},
        {"distill": {"steps": 100, "microBatchSize": 2, "checkpointInterval": 7, "deterministic": True}},
        {"distill": {"steps": 100, "learningRate": 1e-4, "globalBatchSize": 1152}},  # the defaults, said aloud
        {"phases": {"distill": {"nodes": 4, "retryLimit": 0, "resources": {"limits": {"memory": "1Gi"}}}}},
        {"maxParallelJobs": 7, "suspend": True},
        {"jobTemplate": {"image": "registry/other:1"}},
        {"storage": {"persistentVolumeClaim": {"claimName": "other"}}},
        {"dataset": {"source": "hf://owner/text", "sequenceLength": 64, "workers": 3}},
    ],
)
def test_what_shapes_no_artifact_changes_no_fingerprint(edit: dict[str, Any]) -> None:
    assert changed(planned(), planned(**edit)) == set()


def test_content_decides_not_where_it_came_from() -> None:
    elsewhere = {"teacher": {"model": "hf://mirror/teacher"}, "dataset": {"source": "hf://m/t", "sequenceLength": 64}}
    assert changed(planned("a" * 32), planned("a" * 32, **elsewhere)) == {"prepare"}
    assert changed(planned("a" * 32), planned("b" * 32)) == ALL - {"prepare"}


def test_local_files_that_changed_run_prepare_again() -> None:
    spec = manifest().spec
    found = {"prepare": resolved()}
    one, other, none = (
        plan(spec, discovered=found, sources=sources)
        for sources in ({SOURCES_ANNOTATION: "a"}, {SOURCES_ANNOTATION: "b"}, {})
    )
    assert changed(one, other) == {"prepare"}
    assert changed(none, one) == {"prepare"}
    assert changed(none, plan(spec, discovered={"prepare": resolved()}, sources={SOURCES_ANNOTATION: ""})) == set()


def test_names_of_students_are_no_part_of_what_they_are() -> None:
    twins = planned(students=[student("one", hiddenSize=128), student("two", {"steps": 100}, hiddenSize=128)])
    named = marks(twins)
    for phase in ("prune", "distill", "export"):
        assert named[f"{phase}-one"] == named[f"{phase}-two"]
    assert twins.steps[-1].name == "export-two"


def test_fingerprints_that_stand_are_kept() -> None:
    spec = manifest().spec
    steps = plan(spec, discovered={"prepare": resolved()}, kept={"prepare": "1" * 32, "finetune": "2" * 32})
    named = marks(steps)
    assert (named["prepare"], named["finetune"]) == ("1" * 32, "2" * 32)
    assert {step.artifact for step in steps.steps[:2]} == {"prepare-" + "k" * 32, "finetune-" + "2" * 32}
    assert changed(planned(), steps) == ALL, "what follows rests on the keys of its inputs"


def test_a_step_without_its_inputs_has_no_fingerprint_though_it_had_one() -> None:
    assert marks(plan(manifest().spec, kept={"finetune": "2" * 32}))["finetune"] is None


def test_a_job_is_told_everything() -> None:
    settings = {"gpusPerNode": 4, "nodes": 2, "parallelism": {"tensor": 2}, "terminationGracePeriodSeconds": 77}
    steps = planned(phases={"distill": settings})
    named = marks(steps)
    distill = steps.get("distill-depth")
    assert distill
    job = steps.job(distill, run="demo", attempt=3)
    assert (job.name, job.step, job.phase, job.student, job.attempt, job.fingerprint) == (
        job_name("demo", "depth", Phase.DISTILL, str(distill.fingerprint), 3),
        "distill-depth",
        Phase.DISTILL,
        "depth",
        3,
        distill.fingerprint,
    )
    assert job.settings.nodes == 2
    config = job.config
    assert isinstance(config, DistillJob)
    assert (config.run, config.step, config.student, config.attempt) == ("demo", "distill-depth", "depth", 3)
    assert (config.processes_per_node, config.grace_period_seconds, config.sequence_length) == (4, 77, 64)
    assert config.parallelism == Parallelism(tensor=2)
    assert (config.data, config.teacher, config.pruned) == (
        "prepare-" + "k" * 32,
        f"finetune-{named['finetune']}",
        f"prune-{named['prune-depth']}",
    )
    wanted = manifest().spec.distill
    assert wanted
    assert config.distill == wanted.model_copy(update={"precision": Precision.BF16})


def test_jobs_without_gpus_have_their_processes() -> None:
    steps = planned(phases={"finetune": {"gpusPerNode": 0, "processesPerNode": 3}})
    config = steps.job(steps.steps[1], run="demo", attempt=1).config
    assert isinstance(config, FinetuneJob)
    assert config.processes_per_node == 3


def test_a_students_own_distillation_replaces_the_common_one() -> None:
    steps = planned(students=[student("width", {"steps": 7}, hiddenSize=128)])
    step = steps.get("distill-width")
    assert step
    config = steps.job(step, run="demo", attempt=1).config
    assert isinstance(config, DistillJob)
    assert config.distill.steps == 7
    assert config.distill.global_batch_size == 1152


def test_all_that_a_job_is_told_of_its_artifact_enters_the_fingerprint() -> None:
    """A field added to a phase's job is either an input, or configuration, or said here to shape nothing."""
    filled_in_by_backends = {"source_roots", "aside"}
    of_students = {"dtype"}
    # One that has all that only some students have: a searched shape, layers ranked by a task, a teacher's logits.
    small = {
        "name": "small",
        "prune": {"target": {"tokensPerSecond": 9, "rank": "Task"}, "importance": {"depth": "Task"}},
    }
    watched = {"steps": 100, "taskInterval": 50, "teacherLogits": "Cached"}
    for step in planned(students=[small], evaluate=EVALUATE, distill=watched).steps:
        told = set(PHASES[step.phase].job.model_fields) - set(JobConfig.model_fields) - filled_in_by_backends
        told -= of_students if step.phase in (Phase.BASELINE, Phase.BASELINE_CORRECTED) else set()
        assert told == set(step.inputs) | set(step.configuration), step.name


def test_export_knows_all_that_its_card_tells_of() -> None:
    steps = planned()
    config = steps.job(steps.steps[-1], run="demo", attempt=1).config
    assert isinstance(config, ExportJob)
    assert config.distilled == steps.steps[-3].artifact
