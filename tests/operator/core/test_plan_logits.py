"""A teacher's logits are a step of their own, which students share that learn from the same."""

from typing import Any

import pytest
from jobs_world import manifest, student
from test_sizes import ARCHITECTURE, known

from compression_operator.api.resolved import Resolved
from compression_operator.api.run import CompressionRun
from compression_operator.api.status import StudentStatus, TeacherStatus
from compression_operator.cli.teacher_logits import logits_in_words, logits_to_json
from compression_operator.core.plan import Plan, PlannedStep, plan
from compression_operator.core.sizes import Hardware, run_sizes, with_sizes
from compression_operator.core.student_faults import faults_by_student
from compression_pipeline.config import Architecture, DistillJob, LogitsJob
from compression_pipeline.sizing import GPUS, forward_flops

CACHED: dict[str, Any] = {"steps": 100, "globalBatchSize": 8, "teacherLogits": "Cached"}


def planned(**spec: Any) -> Plan:
    source = {"source": "hf://owner/x", "revision": "abc", "digest": "d"}
    resolved = Resolved.model_validate({"key": "k" * 32, "teacher": source, "dataset": source})
    return plan(manifest(**{"distill": CACHED, **spec}).spec, discovered={"prepare": resolved})


def step(of: Plan, name: str) -> PlannedStep:
    found = of.get(name)
    assert found is not None
    return found


def test_students_that_learn_from_the_same_share_them() -> None:
    of = planned()
    width, depth = step(of, "logits-width"), step(of, "logits-depth")
    assert width.artifact == depth.artifact and width.dependencies == ("prepare", "finetune")
    distill = of.job(step(of, "distill-depth"), run="demo", attempt=1).config
    assert isinstance(distill, DistillJob) and distill.logits == depth.artifact
    job = of.job(width, run="demo", attempt=1)
    assert isinstance(job.config, LogitsJob) and job.config.logits.sequences == 800
    assert "logits-width" not in {one.name for one in planned(distill={"steps": 100}).steps}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"microBatchSize": 4}, True),
        ({"learningRate": 3e-5}, True),
        ({"steps": 50, "globalBatchSize": 16}, True),  # the same sequences
        ({"losses": [{"type": "LogitsKL", "weight": 2}, {"type": "CrossEntropy"}]}, True),
        ({"steps": 101}, False),
        ({"seed": 7}, False),
        ({"precision": "FP32"}, False),
        ({"cachedTopK": 32}, False),
        ({"losses": [{"type": "LogitsKL", "temperature": 2}]}, False),
    ],
)
def test_they_are_named_by_what_they_are(change: dict[str, Any], same: bool) -> None:
    before, after = planned(), planned(distill={**CACHED, **change})
    assert (step(before, "logits-width").artifact == step(after, "logits-width").artifact) == same


def test_another_order_of_the_text_and_the_steps_of_a_gate_are_in_them() -> None:
    before = step(planned(), "logits-width")
    shorter = step(planned(dataset={"source": "hf://owner/text", "sequenceLength": 32}), "logits-width")
    assert shorter.artifact != before.artifact
    gate = {"maxValidationLoss": 2, "extendSteps": 20}
    assert step(planned(accept=gate), "logits-width").configuration["logits"].sequences == 960
    measured = step(planned(validation={"samples": 7}), "logits-width")
    assert measured.artifact == before.artifact and measured.fingerprint != before.fingerprint


def test_the_plan_tells_what_they_take() -> None:
    of, length = planned(), manifest().spec.dataset.sequence_length
    first, second = logits_in_words(of)
    assert f"after each of {800 * length:,} tokens, 324 bytes a token" in first
    assert second == "logits-depth: the same as logits-width, which is read"
    told = logits_to_json(of)["logits-width"]
    assert told["bytes"] == 800 * length * 324 and told["topK"] == 64


def run_of(spec: dict[str, Any] | None = None, **distill: Any) -> CompressionRun:
    return manifest(
        **(spec or {}),
        distill={**CACHED, "globalBatchSize": 64, **distill},
        students=[student("width", hiddenSize=3072), student("narrow", hiddenSize=2048)],
    )


def test_sizes_have_no_teacher_and_count_the_artifact_once() -> None:
    teacher = TeacherStatus(**ARCHITECTURE, parameter_count=1)
    found, live = (
        run_sizes(run.spec, plan(run.spec), teacher, Hardware()) for run in (run_of(), run_of(teacherLogits="Live"))
    )
    with_it, without = live.trainings["distill-width"], found.trainings["distill-width"]
    assert without.memory_per_gpu.teacher == 0 < with_it.memory_per_gpu.teacher
    assert without.memory_per_gpu.logits < with_it.memory_per_gpu.logits and without.flops < with_it.flops
    [kept] = {found.store[f"logits-{name}"][0] for name in ("width", "narrow")}
    assert found.peak - live.peak == kept > 0


def test_the_teacher_s_pass_is_counted_once_with_its_memory_and_hours() -> None:
    teacher, run = TeacherStatus(**ARCHITECTURE, parameter_count=1), run_of()
    length = run.spec.dataset.sequence_length
    found = run_sizes(run.spec, plan(run.spec), teacher, Hardware(gpu=GPUS["H100"])).trainings
    assert list(found) == ["finetune", "logits-width", "distill-width", "distill-narrow"], "narrow reads those of width"
    once = found["logits-width"]
    assert (once.ranks, once.tokens) == (8, 6400 * length)
    assert once.flops == once.tokens * forward_flops(teacher, length)
    assert once.gpu_hours == pytest.approx(once.flops / 989.4e12 / 0.4 / 3600, abs=0.001)
    memory = once.memory_per_gpu
    assert memory.teacher == 2 * teacher.parameters and not memory.weights + memory.gradients + memory.optimizer
    assert memory.logits == length * teacher.vocabulary_size * 6
    assert not once.warnings


def test_a_teacher_that_does_not_fit_one_gpu_is_warned_of_where_logits_are_cached() -> None:
    teacher = TeacherStatus(**ARCHITECTURE, parameter_count=1)

    def warned(of: CompressionRun, gpu: str) -> list[str]:
        return run_sizes(of.spec, plan(of.spec), teacher, Hardware(gpu=GPUS[gpu])).trainings["logits-width"].warnings

    [weights] = warned(run_of(precision="FP32"), "A10")
    assert weights.startswith("logits-width needs about") and weights.endswith(
        "; set distill.teacherLogits: Live and phases.distill.parallelism, which splits the teacher, or use larger GPUs"
    )
    long = run_of({"dataset": {"source": "hf://owner/text", "sequenceLength": 8192}}, microBatchSize=16)
    [logits] = warned(long, "H100")
    assert logits.endswith("H100 has 85.5 GB; lower microBatchSize or dataset.sequenceLength, or use larger GPUs")


def test_a_student_s_status_warns_of_the_logits_that_it_reads() -> None:
    run = known(run_of({"phases": {"logits": {"resources": {"limits": {"memory": "1Gi"}}}}}))
    status = run.status.model_copy(update={"students": [StudentStatus(name=name) for name in ("width", "narrow")]})
    width, narrow = (one.planned for one in with_sizes(status, run, plan(run.spec)).students)
    assert width and narrow
    assert 0 < width.parameters < TeacherStatus(**ARCHITECTURE, parameter_count=1).parameters, "of the distillation"
    [warning] = width.warnings
    assert "phases.logits.resources.limits.memory is 1Gi" in warning and not narrow.warnings


def test_more_tokens_than_the_teacher_knows_are_a_fault_of_the_manifest() -> None:
    teacher = Architecture.model_validate({**ARCHITECTURE, "vocabulary_size": 48})
    found = faults_by_student(run_of().spec, teacher)
    assert found["width"] == [
        ("spec.distill.cachedTopK", "64 is more than the 48 tokens of the teacher's vocabulary; lower it")
    ]
