"""A teacher's logits are a step of their own, which students share that learn from the same."""

from typing import Any

import pytest
from jobs_world import manifest, student
from test_sizes import ARCHITECTURE

from compression_operator.api.resolved import Resolved
from compression_operator.api.run import CompressionRun
from compression_operator.api.status import TeacherStatus
from compression_operator.cli.teacher_logits import logits_in_words, logits_to_json
from compression_operator.core.plan import Plan, PlannedStep, plan
from compression_operator.core.sizes import Hardware, run_sizes
from compression_operator.core.student_faults import faults_by_student
from compression_pipeline.config import Architecture, DistillJob, LogitsJob

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
    assert step(planned(dataset={"source": "hf://owner/text", "sequenceLength": 32}), "logits-width") != before
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


def run_of(**distill: Any) -> CompressionRun:
    return manifest(
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


def test_more_tokens_than_the_teacher_knows_are_a_fault_of_the_manifest() -> None:
    teacher = Architecture.model_validate({**ARCHITECTURE, "vocabulary_size": 48})
    found = faults_by_student(run_of().spec, teacher)
    assert found["width"] == [
        ("spec.distill.cachedTopK", "64 is more than the 48 tokens of the teacher's vocabulary; lower it")
    ]
