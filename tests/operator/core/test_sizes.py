"""What a run will need: from the spec and the teacher's sizes, told in the status before a GPU is asked for."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.runs import a_run as build

from compression_operator.api.planned import PlannedTraining
from compression_operator.api.resolved import Resolved
from compression_operator.api.run import GPUS_ANNOTATION, CompressionRun
from compression_operator.api.status import CompressionRunStatus, StepState, StudentStatus, TeacherStatus
from compression_operator.core.events_diff import events_between
from compression_operator.core.jobs import Decision
from compression_operator.core.plan import plan
from compression_operator.core.reconcile import reconcile
from compression_operator.core.sizes import Hardware, Sizes, quantity_bytes, run_sizes, with_sizes
from compression_operator.core.student_faults import faults_by_student
from compression_pipeline.config import Recomputation, ResolvedSource
from compression_pipeline.sizing import GPUS, training_flops

NOW = datetime(2026, 11, 28, tzinfo=UTC)
ARCHITECTURE: dict[str, Any] = {
    "family": "Llama",
    "layers": 32,
    "hidden_size": 4096,
    "ffn_hidden_size": 14336,
    "attention_heads": 32,
    "query_groups": 8,
    "head_dim": 128,
    "vocabulary_size": 128256,
    "max_position_embeddings": 131072,
}


def a_run(**spec: Any) -> CompressionRun:
    """Llama-3.1-8B to Minitron's 4 B width; `spec` is merged into the manifest's."""
    body = (
        build(length=8192)
        .distill(steps=100, globalBatchSize=1152)
        .student("width", hiddenSize=3072, ffnHiddenSize=9216)
    )
    return CompressionRun.model_validate(body.spec(**spec).body())


def known(run: CompressionRun) -> CompressionRun:
    """The run after prepare, as far as the figures ask."""
    source = ResolvedSource(source="hf://a/b", digest="d")
    resolved = Resolved(key="0" * 32, teacher=source, dataset=source)
    teacher = TeacherStatus(**ARCHITECTURE, parameter_count=8_030_261_248)
    return run.model_copy(update={"status": CompressionRunStatus(teacher=teacher, resolved=resolved)})


def first_pass(run: CompressionRun) -> Decision:
    return reconcile(run.model_copy(update={"status": CompressionRunStatus()}), [], NOW)


def after_prepare(run: CompressionRun) -> CompressionRun:
    """The `known` run once it has been seen, and prepare has ended."""
    [prepare, *others] = first_pass(run).status.steps
    done = prepare.model_copy(update={"state": StepState.SUCCEEDED, "attempt": 1, "artifact": "prepare-" + "0" * 32})
    seen = {"steps": [done, *others], "observed_generation": run.metadata.generation}
    return run.model_copy(update={"status": run.status.model_copy(update=seen)})


def sizes(run: CompressionRun, **hardware: Any) -> Sizes:
    return run_sizes(run.spec, plan(run.spec), TeacherStatus(**ARCHITECTURE, parameter_count=1), Hardware(**hardware))


def distillation(run: CompressionRun, **hardware: Any) -> PlannedTraining:
    return sizes(run, **hardware).trainings["distill-width"]


def test_a_student_s_distillation() -> None:
    found = distillation(a_run(), gpu=GPUS["H200"], mfu=0.5)
    assert found.parameters == 4_512_746_496
    assert (found.ranks, found.tokens) == (8, 100 * 1152 * 8192)
    assert found.flops / found.tokens == pytest.approx(48.3e9, rel=0.01)
    assert found.gpu_hours == pytest.approx(found.flops / 989.4e12 / 0.5 / 3600, rel=0.001)
    memory = found.memory_per_gpu
    assert memory.optimizer == pytest.approx(12 * 4_512_746_496 / 8, rel=1e-6)
    parts = memory.model_dump()
    assert parts.pop("total") == sum(parts.values())
    # pruned, distilled in float32, exported in bfloat16; three checkpoints of 14 bytes
    assert found.store_bytes == 4_512_746_496 * (4 + 4 + 2 + 3 * 14)
    assert not found.warnings


def test_the_node_selector_names_the_gpu() -> None:
    assert distillation(a_run()).gpu is None
    labelled = {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}
    found = distillation(a_run(jobTemplate=labelled))
    assert found.gpu == "H100" and found.gpu_hours
    assert found.recomputation is Recomputation.SELECTIVE and not found.warnings
    assert distillation(a_run(jobTemplate=labelled, phases={"distill": {"nodeSelector": {}}})).gpu is None


def test_what_does_not_fit_is_told_with_what_would() -> None:
    labelled = {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}

    def of(what: str) -> PlannedTraining:
        return distillation(a_run(jobTemplate=labelled, distill={"steps": 100, "activationRecomputation": what}))

    assert of("Auto") == of("Selective")
    [warning] = of("None").warnings
    assert warning.startswith("distill-width needs about") and (
        "H100 has 85.5 GB; set activationRecomputation: Full, or lower microBatchSize" in warning
    )
    kept, mlps, layers = (of(what).memory_per_gpu.activations for what in ("None", "Selective", "Full"))
    assert kept > 1.5 * mlps > 3 * layers


def test_what_activations_do_not_decide_wants_other_gpus() -> None:
    [warning] = distillation(a_run(phases={"distill": {"gpusPerNode": 1}}), gpu=GPUS["H100"]).warnings
    assert warning.endswith("use more GPUs, which share the optimizer's state, or use larger GPUs")
    [warning] = distillation(a_run(), gpu=GPUS["L4"]).warnings
    assert "; raise phases.distill.parallelism.tensor, so that GPUs of a node share the weights" in warning
    shared = distillation(a_run(phases={"distill": {"parallelism": {"tensor": 8}}}), gpu=GPUS["L4"])
    assert not shared.warnings


def test_a_pod_s_limit_is_compared_with_what_it_needs() -> None:
    limited = {"distill": {"resources": {"limits": {"memory": "16Gi"}}}}
    [warning] = distillation(a_run(phases=limited)).warnings
    assert warning.startswith("phases.distill.resources.limits.memory is 16Gi and a pod of distill-width needs about")
    assert warning.endswith("raise it to 41Gi")
    assert not distillation(a_run(phases={"distill": {"resources": {"limits": {"memory": "41Gi"}}}})).warnings


@pytest.mark.parametrize(
    ("split", "needed"),
    [
        ({}, {"finetune": 24, "distill": 41}),
        # A whole teacher in bfloat16; a whole student in float32, beside the parts of it that the ranks have.
        ({"tensor": 8}, {"finetune": 39, "distill": 58}),
        ({"pipeline": 2}, {"finetune": 39, "distill": 58}),
    ],
)
def test_a_pod_whose_gpus_share_a_model_holds_all_of_its_weights(split: dict[str, int], needed: dict[str, int]) -> None:
    limited = {"resources": {"limits": {"memory": "16Gi"}}, "parallelism": split}
    run = a_run(finetune={"steps": 100, "warmupSteps": 1}, phases={"finetune": limited, "distill": limited})
    for phase, training in zip(needed, sizes(run).trainings.values(), strict=True):
        [warning] = training.warnings
        assert warning.endswith(f"raise it to {needed[phase]}Gi")
    on_cpu = {"gpusPerNode": 0, "processesPerNode": 2, "resources": {"limits": {"memory": "1Gi"}}}
    plain, shared = (
        distillation(a_run(phases={"distill": on_cpu | {"parallelism": {"tensor": tensor}}})) for tensor in (1, 2)
    )

    def beside(training: PlannedTraining) -> float:
        """GiB that are not of the ranks themselves."""
        [warning] = training.warnings
        return int(warning.rpartition(" ")[2][:-2]) - 2 * (1 + training.memory_per_gpu.total / 2**30)

    assert 0 <= beside(plain) <= 1
    assert 0 <= beside(shared) - training.parameters * 4 / 2**30 <= 1


def test_on_a_cpu_the_pod_holds_everything() -> None:
    on_cpu = {"distill": {"gpusPerNode": 0, "processesPerNode": 2, "resources": {"limits": {"memory": "64Gi"}}}}
    found = distillation(a_run(phases=on_cpu), gpu=GPUS["H100"])
    assert found.gpu is None and found.ranks == 2
    assert found.memory_per_gpu.weights == 4 * 4_512_746_496
    assert len(found.warnings) == 1
    here = distillation(a_run(), gpus=0)
    assert here.ranks == 1, "a machine without GPUs has no eight ranks"


@pytest.mark.parametrize(
    ("settings", "gpus", "planned"),
    [
        ({"gpusPerNode": 2, "parallelism": {"tensor": 4}}, 16, (2, 2, 1)),
        ({"gpusPerNode": 8, "parallelism": {"tensor": 8}}, 2, (2, 2, 1)),
        ({"gpusPerNode": 8, "parallelism": {"tensor": 2, "pipeline": 4}}, 6, (6, 2, 3)),
        ({"nodes": 2, "gpusPerNode": 8}, 8, (8, 1, 1)),
        ({"gpusPerNode": 8}, 5, (4, 1, 1)),  # over which the batch splits evenly
        ({"gpusPerNode": 8, "parallelism": {"tensor": 8}}, 0, (1, 1, 1)),
    ],
)
def test_a_machine_splits_a_copy_over_the_gpus_that_it_has(
    settings: dict[str, Any], gpus: int, planned: tuple[int, int, int]
) -> None:
    """As its jobs do; the rules of a cluster's layout do not hold there."""
    found = distillation(a_run(phases={"distill": settings}), gpus=gpus, gpu=GPUS["H100"])
    assert (found.ranks, found.tensor, found.pipeline) == planned


def test_the_status_of_a_local_run_tells_what_its_machine_does() -> None:
    run = known(a_run(phases={"distill": {"gpusPerNode": 2, "parallelism": {"tensor": 4}}}))
    noted = run.metadata.model_copy(update={"annotations": {GPUS_ANNOTATION: "2"}})
    here = run.model_copy(update={"metadata": noted})
    status = here.status.model_copy(update={"students": [StudentStatus(name="width")]})
    planned = with_sizes(status, here, plan(here.spec)).students
    assert [(one.planned.ranks, one.planned.tensor) for one in planned if one.planned] == [(2, 2)]


def test_a_student_that_cannot_be_is_left_out() -> None:
    wide = {"name": "wide", "prune": {"hiddenSize": 8192}}
    run = a_run()
    spec = run.spec.model_copy(update={"students": [*run.spec.students, type(run.spec.students[0])(**wide)]})
    found = sizes(run.model_copy(update={"spec": spec}))
    assert list(found.shapes) == ["width"] and "distill-wide" not in found.trainings


def test_the_store_needs_all_artifacts_and_the_checkpoints_of_what_runs_at_once() -> None:
    found = sizes(a_run())
    assert found.store["prepare"] == (2 * 8_030_261_248, 0)
    kept = sum(artifact for artifact, _ in found.store.values())
    assert found.peak == kept + found.store["distill-width"][1]


def test_the_status_tells_it_once_the_teacher_is_known() -> None:
    run = known(a_run(phases={"distill": {"resources": {"limits": {"memory": "16Gi"}}}}))
    assert first_pass(run).status.students[0].planned is None
    run = after_prepare(run)
    decision = reconcile(run, [], NOW)
    planned = decision.status.students[0].planned
    assert planned is not None and planned.parameters == 4_512_746_496
    told = [event for event in decision.events if event.reason == "MayNotFit"]
    assert [event.message for event in told] == planned.warnings and told[0].type == "Warning"
    # An older CRD drops it from what is written: it is no news in the next pass.
    kept = [student.model_copy(update={"planned": None}) for student in decision.status.students]
    dropped = decision.status.model_copy(update={"students": kept})
    again = reconcile(run.model_copy(update={"status": dropped}), [], NOW)
    assert again.status.students[0].planned == planned
    assert not [event for event in again.events if event.reason == "MayNotFit"]


def test_finetune_is_told_of_the_teacher_and_nothing_while_that_is_not_known() -> None:
    limited = {"finetune": {"resources": {"limits": {"memory": "1Gi"}}}}
    run = known(a_run(finetune={"steps": 100}, phases=limited))
    edited = run.status.model_copy(update={"observed_generation": 1})
    status = with_sizes(edited, run, plan(run.spec))
    planned = status.teacher and status.teacher.planned
    assert planned and planned.parameters == 8_030_261_248
    [event] = events_between(run.status, status)
    assert (event.reason, [event.message]) == ("MayNotFit", planned.warnings)
    looked_at_again = with_sizes(status.model_copy(update={"resolved": None}), run, plan(run.spec))
    assert looked_at_again.teacher and looked_at_again.teacher.planned is None


UNITS = {"": 1, "k": 1000, "M": 1000**2, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3}


@given(st.integers(1, 10**6), st.sampled_from(list(UNITS)))
def test_quantities(number: int, unit: str) -> None:
    assert quantity_bytes(f"{number}{unit}") == number * UNITS[unit]


NOT_KNOWN = ("many", ".", "1ki", "1e999")


@pytest.mark.parametrize(
    ("text", "found"), [("1e3", 1000), ("1.5Gi", 3 * 2**29), (7, 7), *((text, None) for text in NOT_KNOWN)]
)
def test_other_quantities(text: str | int, found: int | None) -> None:
    assert quantity_bytes(text) == found


def test_gpus_that_share_matrices_have_a_part_of_each_model() -> None:
    """A layout is not told of what is made: the keys of its steps are the same."""
    plain, split = (a_run(phases={"distill": {"parallelism": {"tensor": tensor}}}) for tensor in (1, 4))
    alone, shared = (distillation(run, gpu=GPUS["H100"]) for run in (plain, split))
    assert (alone.tensor, shared.tensor, shared.ranks) == (1, 4, 8)
    for part in ("weights", "gradients", "teacher"):
        assert getattr(shared.memory_per_gpu, part) == pytest.approx(getattr(alone.memory_per_gpu, part) / 4, rel=0.001)
    # Two copies of four GPUs in place of eight: each GPU has as much of the optimizer's state as before.
    assert shared.memory_per_gpu.optimizer == pytest.approx(alone.memory_per_gpu.optimizer, rel=0.001)
    assert shared.recomputation is Recomputation.NONE
    assert [step.key for step in plan(plain.spec).steps] == [step.key for step in plan(split.spec).steps]


def test_a_gpu_has_one_stage_of_each_model() -> None:
    plain, split = (a_run(phases={"distill": {"parallelism": {"pipeline": stages}}}) for stages in (1, 4))
    alone, staged = (distillation(run, gpu=GPUS["H100"]) for run in (plain, split))
    assert (alone.pipeline, staged.pipeline, staged.ranks) == (1, 4, 8)
    for part in ("weights", "gradients", "teacher"):
        # A quarter but for rounding: layers are whole.
        assert getattr(staged.memory_per_gpu, part) == pytest.approx(getattr(alone.memory_per_gpu, part) / 4, rel=0.12)
    assert staged.memory_per_gpu.total < alone.memory_per_gpu.total
    assert not staged.warnings
    training = {"steps": 100, "globalBatchSize": 2, "microBatchSize": 1}
    few = a_run(distill=training, phases={"distill": {"parallelism": {"pipeline": 4}}})
    [warning] = distillation(few, gpu=GPUS["H100"]).warnings
    assert warning == (
        "distill-width has 1 micro-batch in each copy for 4 pipeline stages, so each stage idles 75% of the time; "
        "lower microBatchSize or phases.distill.parallelism.pipeline, or raise globalBatchSize"
    )


def test_hours_count_what_is_computed_again_and_that_stages_wait() -> None:
    def of(what: str = "None", **split: int) -> PlannedTraining:
        training = {"steps": 100, "globalBatchSize": 64, "microBatchSize": 1, "activationRecomputation": what}
        return distillation(a_run(distill=training, phases={"distill": {"parallelism": split}}), gpu=GPUS["H100"])

    plain, full, staged = of(), of("Full"), of(pipeline=4)
    assert plain.gpu_hours and full.gpu_hours and staged.gpu_hours
    student = sizes(a_run()).shapes["width"]
    again = training_flops(student, 8192, None, Recomputation.FULL) - training_flops(student, 8192)
    assert full.flops - plain.flops == pytest.approx(again * plain.tokens) and again > 0
    assert full.gpu_hours / plain.gpu_hours == pytest.approx(full.flops / plain.flops, rel=0.001)
    assert staged.flops == plain.flops, "waiting computes nothing"
    # 32 micro-batches in each of two copies, four stages: three of 35 parts of the time.
    assert staged.gpu_hours / plain.gpu_hours == pytest.approx(35 / 32, rel=0.001)


def test_the_student_that_is_scored_between_steps_is_planned_where_activations_leave_no_room() -> None:
    def of(interval: int | None, gpu: str, precision: str = "BF16", **split: int) -> PlannedTraining:
        tasks = {"evaluate": {"tasks": [{"name": "gsm8k"}]}} if interval else {}
        training = {"steps": 100, "globalBatchSize": 1152, "precision": precision}
        training |= {"taskInterval": interval} if interval else {}
        return distillation(a_run(distill=training, phases={"distill": {"parallelism": split}}, **tasks), gpu=GPUS[gpu])

    plain, scored = of(None, "H100", tensor=8), of(10, "H100", tensor=8)
    memory = scored.memory_per_gpu
    copy = 2 * scored.parameters
    assert 0 < memory.scoring == copy - memory.activations - memory.logits
    assert memory.total == plain.memory_per_gpu.total + memory.scoring and not scored.warnings
    assert of(10, "H200").memory_per_gpu == of(None, "H200").memory_per_gpu, "the copy takes the room of activations"
    assert not of(None, "L4", "FP32", tensor=8).warnings
    [warning] = of(10, "L4", "FP32", tensor=8).warnings
    assert "; remove taskInterval, by which rank 0 scores a copy of the whole student" in warning
    # Rank 0 is in the first stage, and another stage may need more than it does with the copy.
    staged = of(10, "H100", pipeline=2)
    assert staged.memory_per_gpu.total >= of(None, "H100", pipeline=2).memory_per_gpu.total


def test_more_stages_than_layers_are_a_fault_of_their_field() -> None:
    teacher = TeacherStatus(**ARCHITECTURE, parameter_count=1)
    wrong = a_run(phases={"distill": {"nodes": 8, "parallelism": {"pipeline": 64}}})
    sentences = [
        f"64 stages are more than the {whose}'s {layers} layers, nearest: {layers}"
        for whose, layers in (("teacher", 32), ("student", 32))
    ]
    assert faults_by_student(wrong.spec, teacher) == {
        "width": [("spec.phases.distill.parallelism.pipeline", sentence) for sentence in sentences]
    }


def test_a_layout_that_does_not_fit_the_teacher_is_told_before_any_shape_is_found() -> None:
    teacher = TeacherStatus(**ARCHITECTURE, parameter_count=1)
    wrong = a_run(
        finetune={"steps": 100, "globalBatchSize": 1152},
        phases={"finetune": {"gpusPerNode": 16, "parallelism": {"tensor": 16}}},
        students=[{"name": "width", "prune": {"target": {"parameters": 4.5e9}}}],
    )
    assert [field for field, _ in faults_by_student(wrong.spec, teacher)["width"]] == [
        "spec.phases.finetune.parallelism.tensor"
    ]


def test_cached_logits_are_for_ranks_that_hold_a_whole_model() -> None:
    teacher = TeacherStatus(**ARCHITECTURE, parameter_count=1)
    cached = {"steps": 100, "globalBatchSize": 1152, "teacherLogits": "Cached"}
    split = {"distill": {"parallelism": {"tensor": 2, "pipeline": 4}}}
    found = faults_by_student(a_run(distill=cached, phases=split).spec, teacher)["width"]
    assert [field for field, _ in found] == [f"spec.phases.distill.parallelism.{one}" for one in ("tensor", "pipeline")]
    assert found[0][1].startswith("2 ranks share a model") and found[0][1].endswith(
        "set 1, or distill.teacherLogits: Live"
    )
    assert not faults_by_student(a_run(distill=cached).spec, teacher)


def test_a_layout_that_the_models_do_not_divide_by_is_a_fault_of_its_field() -> None:
    teacher = TeacherStatus(**ARCHITECTURE, parameter_count=1)
    wrong = a_run(
        finetune={"steps": 100, "warmupSteps": 1},
        phases={
            "finetune": {"gpusPerNode": 16, "parallelism": {"tensor": 16}},
            "distill": {"parallelism": {"tensor": 8}},
        },
    )
    said = "16 does not divide the teacher's 8 key/value heads, nearest: 8"
    assert faults_by_student(wrong.spec, teacher) == {"width": [("spec.phases.finetune.parallelism.tensor", said)]}


def test_a_machine_is_judged_by_how_its_jobs_split_a_model() -> None:
    teacher = TeacherStatus(**ARCHITECTURE, parameter_count=1)
    spec = a_run(phases={"distill": {"gpusPerNode": 16, "parallelism": {"tensor": 16}}}).spec
    assert faults_by_student(spec, teacher)["width"], "a cluster has 16 GPUs on a node"
    assert faults_by_student(spec, teacher, gpus=16)["width"]
    assert not faults_by_student(spec, teacher, gpus=2), "tensor 2"
    assert not faults_by_student(spec, teacher, gpus=0), "one rank on CPU"
    cached = {"steps": 100, "globalBatchSize": 1152, "teacherLogits": "Cached"}
    split = a_run(distill=cached, phases={"distill": {"parallelism": {"tensor": 8}}}).spec
    assert faults_by_student(split, teacher) and not faults_by_student(split, teacher, gpus=1)


def test_a_local_run_goes_on_with_a_split_that_its_machine_does_not_do() -> None:
    wide = after_prepare(known(a_run(phases={"distill": {"gpusPerNode": 16, "parallelism": {"tensor": 16}}})))
    here = wide.metadata.model_copy(update={"annotations": {GPUS_ANNOTATION: "0"}})
    cluster, local = (str(reconcile(run, [], NOW).status) for run in (wide, wide.model_copy(update={"metadata": here})))
    assert "16 does not divide the teacher's" in cluster and "does not divide" not in local
