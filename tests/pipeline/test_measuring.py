"""A step whose weights exist only measures them: nothing is trained, and the figures are those that training gives."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import job_in
from safetensors.torch import load_file, save_file
from stores import DATA, TEACHER, common, context

from compression_pipeline.artifact import Store
from compression_pipeline.config import (
    DistillConfig,
    DistillJob,
    ExportDtype,
    FinetuneResult,
    ParallelLayout,
    ValidationConfig,
)
from compression_pipeline.errors import Interrupted, UserError
from compression_pipeline.huggingface import conversion
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.megatron.engine import MegatronEngine
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import distill, finetune, measuring
from compression_pipeline.text.batches import ValidationData, ValidationLoss

KEY = "0" * 32
OTHER = "1" * 32


@pytest.fixture(autouse=True)
def shared_engine(engine: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron is set up once, and the phases run in that."""
    from contextlib import nullcontext

    monkeypatch.setattr("compression_pipeline.megatron.engine.runtime", lambda *_, **__: nullcontext(engine))


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is trained, from here on."""
    from compression_pipeline.megatron import training

    found: list[str] = []
    real: Callable[..., Any] = training.train

    def train(*arguments: Any, **named: Any) -> Any:
        found.append(type(named["loss"]).__name__)
        return real(*arguments, **named)

    monkeypatch.setattr(training, "train", train)
    return found


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model" / "model.safetensors")


def test_another_measure_of_the_same_weights(store: Store, trains: list[str]) -> None:
    first = finetune.run(job_in(store, validation=ValidationConfig(samples=3)), context(store)[0])
    name = f"finetune-{KEY}"
    before = weights(store.open(name).path)
    again = job_in(store, fingerprint=OTHER, key=KEY, validation=ValidationConfig(samples=5))
    measured = finetune.run(again, context(store, OTHER)[0])
    assert trains == ["LanguageModelLoss"]
    assert measured.teacher_loss != first.teacher_loss
    assert measured.corrected_teacher_loss != first.corrected_teacher_loss
    # What a step of its own would have told.
    alone = job_in(store, fingerprint="2" * 32, validation=ValidationConfig(samples=5))
    trained = finetune.run(alone, context(store, "2" * 32)[0])
    assert measured.teacher_loss == trained.teacher_loss
    assert measured.corrected_teacher_loss == trained.corrected_teacher_loss
    assert (first.validation_sequences, measured.validation_sequences, trained.validation_sequences) == (3, 5, 5)

    for fingerprint, told in ((KEY, first), (OTHER, measured)):
        found = store.find_published("finetune", fingerprint)
        assert found is not None
        assert found.name == name
        assert found.result(FinetuneResult) == told
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(store.open(name).path).items())

    # The student's distillation from it, first with a measure of its own.
    def distilling(fingerprint: str, samples: int, key: str | None = None) -> DistillJob:
        settings = DistillConfig(steps=2, warmup_steps=1, global_batch_size=4)
        told = {"student": "width", "data": again.data, "teacher": name, "pruned": again.teacher, "distill": settings}
        common = again.model_dump(include={"run", "store", "attempt", "sequence_length"})
        measure = ValidationConfig(samples=samples)
        return DistillJob(**common, **told, step="distill-width", fingerprint=fingerprint, key=key, validation=measure)

    made = distill.run(distilling("4" * 32, 3, key="3" * 32), context(store, "4" * 32)[0])
    other = distill.run(distilling("3" * 32, 5), context(store, "3" * 32)[0])
    assert trains == ["LanguageModelLoss", "LanguageModelLoss", "DistillationLoss"]
    assert other.pruned_loss != made.pruned_loss
    assert (made.validation_sequences, other.validation_sequences) == (3, 5)
    assert other.rounded_losses[ExportDtype("float32")] == other.distilled_loss
    assert (
        len(
            {
                other.rounded_losses[ExportDtype("bfloat16")],
                made.rounded_losses[ExportDtype("bfloat16")],
                other.distilled_loss,
            }
        )
        == 3
    )
    assert other.teacher_loss == pytest.approx(measured.corrected_teacher_loss, abs=1e-6)
    for fingerprint, samples in (("4" * 32, made), ("3" * 32, other)):
        found = store.find_published("distill", fingerprint)
        assert found is not None and found.name == "distill-" + "3" * 32
        assert found.result(type(made)) == samples
    # Who has lost the note of its figures takes those of the artifact, and writes it again.
    note = store.work_folder("4" * 32) / "published.json"
    note.unlink()
    assert distill.run(distilling("4" * 32, 3, key="3" * 32), context(store, "4" * 32)[0]) == made
    assert len(trains) == 3
    assert note.exists()


def test_damaged_weights_are_not_measured(store: Store, engine: Runtime) -> None:
    with store.draft("finetune", KEY) as draft:
        (draft.path / "weights").write_text("y")
        draft.hashed(draft.path / "weights", "0" * 64)
        draft.publish(config={"fingerprint": KEY}, inputs={}, result={})
    job = job_in(store, fingerprint=OTHER, key=KEY)
    told, _ = context(store, OTHER)
    assert measuring.made_before(job, told, MegatronEngine(engine, told), "finetune") is None
    assert store.find(f"finetune-{KEY}") is None


def test_who_loses_the_race_to_another_measure_measures_at_the_next_attempt(store: Store) -> None:
    job = job_in(store, fingerprint=OTHER, key=KEY)
    with store.draft("finetune", KEY) as draft:
        other = draft.publish(config={"fingerprint": KEY}, inputs={}, result={})
    with pytest.raises(Interrupted, match="the next attempt measures those"):
        measuring.published_result(job, context(store, OTHER)[0], other, FinetuneResult)


def measuring_distillation(store: Store) -> DistillJob:
    """A distillation of the teacher from itself."""
    told = DistillConfig(steps=2, warmup_steps=1, global_batch_size=8, micro_batch_size=8)
    inputs = {"data": DATA, "teacher": TEACHER, "pruned": TEACHER, "sequence_length": 32}
    measured = ValidationConfig(samples=8)
    return DistillJob(**common(store, "distill-width", OTHER), **inputs, distill=told, validation=measured)


def test_every_figure_of_a_step_is_taken_with_as_many_sequences_a_pass(
    store: Store, engine: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The micro batch that fits a rank's share of the global batch; another one changes the last bits."""
    from compression_pipeline.megatron import validation
    from compression_pipeline.text.batches import TrainingData

    sizes: list[int] = []

    def measure(*_: Any, batch_size: int) -> ValidationLoss:
        sizes.append(batch_size)
        return ValidationLoss(1.0)

    monkeypatch.setattr(validation, "validation_loss", measure)
    job, (told, _) = measuring_distillation(store), context(store, OTHER)
    two = dataclasses.replace(engine, layout=ParallelLayout(nodes=1, per_node=2))
    text = store.open(DATA).data
    trained = TrainingData(text, job.distill, two, sequence_length=32).micro_batch_size
    measuring.losses(job, told, MegatronEngine(two, told), {"teacher": TEACHER}, measuring.validation_of(job, told))
    teacher = store.open(TEACHER).model
    reader = conversion.CheckpointReader(teacher)
    state = dict(conversion.to_megatron(reader.files.architecture, reader))
    data = ValidationData(text, sequence_length=32, samples=8)
    distill.rounded_losses(job, MegatronEngine(two, told), read_architecture(teacher), state, data, 1.0)
    assert sizes == [trained] * 3 == [4] * 3


def test_more_ranks_than_a_batch_has_sequences_can_still_measure(store: Store, engine: Runtime) -> None:
    many = dataclasses.replace(engine, layout=ParallelLayout(nodes=1, per_node=16))
    job, (told, _) = measuring_distillation(store), context(store, OTHER)
    ranks, data = MegatronEngine(many, told), measuring.validation_of(job, told)
    found = measuring.losses(job, told, ranks, {"teacher": TEACHER}, data)
    assert found["teacher"].loss > 0


@pytest.mark.parametrize(
    ("role", "whose"),
    [("teacher", "the teacher"), ("corrected", "the corrected teacher"), ("pruned", "the pruned student")],
)
def test_a_model_that_computes_no_number_is_named_where_it_is_only_measured(
    store: Store, engine: Runtime, role: str, whose: str
) -> None:
    file, name = store.open(TEACHER).model / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(file)
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    job, (told, _) = measuring_distillation(store), context(store, OTHER)
    with pytest.raises(UserError, match=rf"^{whose} computes nan: its validation loss is nan, for its tensor {name} "):
        measuring.losses(job, told, MegatronEngine(engine, told), {role: TEACHER}, measuring.validation_of(job, told))
