"""The training loop: what it learns, what it publishes, what it refuses."""

import dataclasses
import hashlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import (
    SETTINGS,
    Stopping,
    correct,
    history_of,
    job_in,
)
from stores import DATA, TEACHER, context, publish

from compression_pipeline.artifact import Store
from compression_pipeline.config import FinetuneConfig, FinetuneResult, ValidationConfig
from compression_pipeline.context import Context
from compression_pipeline.engines.history import History, Scalars, StepEntry
from compression_pipeline.engines.schedule import learning_rate
from compression_pipeline.errors import Interrupted, UserError
from compression_pipeline.huggingface import conversion
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.megatron.checkpoint import Checkpoints
from compression_pipeline.megatron.loss_function import LanguageModelLoss
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.optimizer import Optimizer
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.megatron.training import train
from compression_pipeline.sizing import training_flops
from compression_pipeline.text.batches import Batch, TrainingData, ValidationLoss


class TestWhatIsPublished:
    def test_the_loss_falls_and_the_result_says_so(self, uninterrupted: Store) -> None:
        manifest = uninterrupted.open("finetune-" + "0" * 32).manifest
        history = history_of(uninterrupted)
        assert manifest.result["correctedTeacherLoss"] < manifest.result["teacherLoss"] - 0.05
        assert manifest.result["teacherLoss"] == history["validation"][0]["loss"]
        assert manifest.result["correctedTeacherLoss"] == history["validation"][-1]["loss"]
        assert manifest.inputs == {"data": DATA, "teacher": TEACHER}
        assert [entry["step"] for entry in history["train"]] == list(range(1, 13))
        assert [entry["step"] for entry in history["validation"]] == [0, 5, 10, 12]
        # Before the first update the training loss is a sample of what validation measures.
        assert history["train"][0]["loss"] == pytest.approx(history["validation"][0]["loss"], abs=0.3)

    def test_transformers_measures_the_published_loss(self, uninterrupted: Store) -> None:
        from transformers import AutoModelForCausalLM

        from compression_pipeline.text.batches import ValidationData

        artifact = uninterrupted.open("finetune-" + "0" * 32)
        model = AutoModelForCausalLM.from_pretrained(artifact.model, dtype=torch.float32).eval()
        data = ValidationData(uninterrupted.open(DATA).data, sequence_length=16, samples=256)
        batch = data.batch(range(len(data)), torch.device("cpu"))
        with torch.no_grad():
            logits = model(batch.tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()).item()
        assert loss == pytest.approx(artifact.manifest.result["correctedTeacherLoss"], abs=1e-4)

    def test_tensorboard_reads_the_scalars(self, uninterrupted: Store) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        artifact = uninterrupted.open("finetune-" + "0" * 32)
        events = EventAccumulator(str(artifact.path / "tensorboard"), {"tensors": 0}).Reload()
        history = history_of(uninterrupted)
        losses = [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors("train/loss")]
        assert [step for step, _ in losses] == list(range(1, 13))
        assert [loss for _, loss in losses] == pytest.approx([entry["loss"] for entry in history["train"]])
        assert [event.step for event in events.Tensors("validation/loss")] == [0, 5, 10, 12]
        flops = training_flops(read_architecture(artifact.model), 16)
        speeds, rates = (
            [event.tensor_proto.float_val[0] for event in events.Tensors(f"train/{name}")]
            for name in ("teraflops_per_device", "tokens_per_second")
        )
        assert len(speeds) == 12 and speeds == pytest.approx([rate * flops / 1e12 for rate in rates])
        assert "train/model_flops_utilization" not in events.Tags()["tensors"]  # of a CPU nobody knows the peak


def test_tensorboard_shows_the_share_of_a_known_peak(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    entry = StepEntry(step=1, loss=2.0, learning_rate=1e-4, gradient_norm=1.0, tokens_per_second=50.0)
    Scalars(tmp_path, History(1, [entry]), flops_per_token=4e12, peak=1e15).close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"tensors": 0}).Reload()
    [share] = [event.tensor_proto.float_val[0] for event in events.Tensors("train/model_flops_utilization")]
    assert share == pytest.approx(0.2)


def test_who_publishes_second_reports_what_the_first_found(store: Store, engine: Runtime) -> None:
    """Two jobs made it, for one was taken for dead."""
    current, _ = context(store)
    first = FinetuneResult(teacher_loss=2.0, corrected_teacher_loss=1.0)

    def publish_first() -> None:
        publish(store, "finetune-" + "0" * 32, lambda path: (path / "model").mkdir(), result=first)

    current.events = Stopping(SETTINGS.steps, publish_first)
    manifest = store.artifacts / f"finetune-{'0' * 32}" / "manifest.json"
    found = correct(job_in(store), current, engine)
    assert found == first.model_copy(update={"digest": hashlib.sha256(manifest.read_bytes()).hexdigest()})


def test_training_is_what_plain_torch_makes_of_it(store: Store, engine: Runtime) -> None:
    """The same batches through transformers, torch's AdamW and torch's clipping give the same losses."""
    from transformers import AutoModelForCausalLM

    settings = SETTINGS.model_copy(update={"steps": 8, "clip_gradient": 0.5})
    current, _ = context(store)
    correct(job_in(store, settings=settings), current, engine)
    found = history_of(store)["train"]

    data = TrainingData(store.open(DATA).data, settings, engine, sequence_length=16)
    model = AutoModelForCausalLM.from_pretrained(store.open(TEACHER).model, dtype=torch.float32)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    adam = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(settings.adam_beta1, settings.adam_beta2),
    )
    for step, entry in enumerate(found):
        total = 0.0
        for batch in data.batches(step):
            logits = model(batch.tokens).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()) / data.micro_batches
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_gradient).item()
        assert total == pytest.approx(entry["loss"], rel=2e-4)
        assert norm == pytest.approx(entry["gradientNorm"], rel=2e-3)
        assert norm > settings.clip_gradient  # clipping is at work
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, settings)
        adam.step()
        adam.zero_grad()


class Poisoned(LanguageModelLoss):
    """The language model's loss until batch `at` (counted from 0), whose loss or gradient is then not finite."""

    def __init__(self, at: int, *, gradient: bool) -> None:
        self._left = at
        self._gradient = gradient

    def reduce(self, output: torch.Tensor, batch: Batch) -> torch.Tensor:
        loss = super().reduce(output, batch)
        self._left -= 1
        if self._left >= 0:
            return loss
        # The square root's slope at zero is infinite, its value is not.
        return loss + (loss - loss.detach()).abs().sqrt() if self._gradient else loss * math.nan


def train_with(
    loss: LanguageModelLoss,
    settings: FinetuneConfig,
    store: Store,
    current: Context,
    engine: Runtime,
    finished: Callable[[Optimizer], None] = lambda optimizer: None,
) -> tuple[torch.nn.Module, Callable[[], History]]:
    """A model, and the call that trains it."""
    teacher = store.open(TEACHER).model
    shape = read_architecture(teacher)
    model = build(shape, engine, sequence_length=16)
    conversion.load_into(model, shape, teacher)
    data = TrainingData(store.open(DATA).data, settings, engine, sequence_length=16)
    checkpoints = Checkpoints(current, "0" * 32, engine, keep=2)
    return model, lambda: train(
        model,
        loss=loss,
        settings=settings,
        data=data,
        validate=lambda: ValidationLoss(1.0),
        check=lambda loss: None,
        flops_per_token=1.0,
        runtime=engine,
        context=current,
        checkpoints=checkpoints,
        finished=finished,
    )


def test_what_is_handed_on_are_the_float32_weights(store: Store, engine: Runtime) -> None:
    """On a GPU the model's own are their bfloat16 roundings."""
    current, _ = context(store)
    half = dataclasses.replace(engine, dtype=torch.bfloat16)
    settings = SETTINGS.model_copy(update={"steps": 2, "checkpoint_interval": 2})
    found: dict[str, torch.Tensor] = {}
    model, run = train_with(
        LanguageModelLoss(), settings, store, current, half, lambda optimizer: found.update(optimizer.weights())
    )
    run()
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parameter.dtype is torch.bfloat16
        assert found[name].dtype is torch.float32
        assert torch.equal(found[name].bfloat16(), parameter), name
    assert any(not torch.equal(found[name], each.float()) for name, each in model.named_parameters())


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_weights_are_touched(store: Store, engine: Runtime, gradient: bool) -> None:
    settings = SETTINGS.model_copy(update={"micro_batch_size": 8})
    current, _ = context(store)
    model, run = train_with(Poisoned(6, gradient=gradient), settings, store, current, engine)
    what = "gradient norm" if gradient else "loss"
    kept = current.folder / "checkpoints" / "step-00000004"
    with pytest.raises(UserError) as caught:
        run()
    assert f"the {what} is {'inf' if gradient and 'inf' in str(caught.value) else 'nan'} at step 7" in str(caught.value)
    assert f"the checkpoint {kept} is kept" in str(caught.value)

    again, _ = context(store, fingerprint="1" * 32)
    six = settings.model_copy(update={"steps": 12})
    expected, run = train_with(LanguageModelLoss(), six, store, again, engine)

    def stop() -> None:
        again.stop.raised = True

    again.events = Stopping(5, stop)
    with pytest.raises(Interrupted):
        run()
    for (name, parameter), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_a_nan_before_any_checkpoint_says_so(store: Store, engine: Runtime) -> None:
    _, run = train_with(Poisoned(0, gradient=False), SETTINGS, store, context(store)[0], engine)
    with pytest.raises(UserError, match=r"the loss is nan at step 1; .* there is no checkpoint yet"):
        run()


def test_weights_whose_validation_is_no_number_are_not_published(
    store: Store, engine: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step's loss is that of the weights before it, so validation alone can tell."""
    found = map(ValidationLoss, (2.0, 2.0, math.nan))
    monkeypatch.setattr("compression_pipeline.megatron.validation.validation_loss", lambda *_, **__: next(found))
    current, _ = context(store)
    settings = SETTINGS.model_copy(update={"steps": 6})
    kept = current.folder / "checkpoints" / "step-00000004"
    with pytest.raises(UserError, match=rf"the validation loss is nan after step 6; .* the checkpoint {kept} is kept"):
        correct(job_in(store, settings=settings), current, engine)
    assert store.find("finetune-" + "0" * 32) is None


def test_only_matrices_decay(store: Store, engine: Runtime) -> None:
    """Without a gradient AdamW does nothing but decay."""

    class Flat(LanguageModelLoss):
        def reduce(self, output: torch.Tensor, batch: Batch) -> torch.Tensor:
            return output.mean() * 0

    settings = SETTINGS.model_copy(update={"steps": 1, "warmup_steps": 0, "weight_decay": 0.5})
    model, run = train_with(Flat(), settings, store, context(store)[0], engine)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    run()
    rate = learning_rate(0, settings)
    for name, parameter in model.named_parameters():
        factor = 1 - rate * 0.5 if parameter.dim() > 1 else 1
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-6, atol=0)


def test_micro_batches_only_cut_the_memory(store: Store, engine: Runtime, tmp_path: Path) -> None:
    losses = []
    for number, size in enumerate((1, 3, 8)):  # 3 does not divide 8: 2 is taken
        folder = tmp_path / str(number)
        shutil.copytree(store.artifacts, folder / "artifacts")
        other = Store(folder)
        correct(
            job_in(other, settings=SETTINGS.model_copy(update={"micro_batch_size": size})), context(other)[0], engine
        )
        losses.append([entry["loss"] for entry in history_of(other)["train"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)


def test_progress_tells_speed_and_time_left(store: Store, engine: Runtime) -> None:
    current, events = context(store)
    correct(job_in(store, settings=SETTINGS.model_copy(update={"log_interval": 5})), current, engine)
    progress = [event for event in events.seen if event["event"] == "progress"]
    assert [event["step"] for event in progress] == [5, 10, 12]
    assert all(event["totalSteps"] == 12 and event["tokensPerSecond"] > 0 for event in progress)
    assert progress[0]["etaSeconds"] >= 0
    assert progress[-1]["etaSeconds"] == 0
    for event in progress:
        operations = event["tokensPerSecond"] * training_flops(read_architecture(store.open(TEACHER).model), 16)
        assert event["teraflopsPerDevice"] == pytest.approx(operations / 1e12, abs=1e-3)
        assert event["modelFlopsUtilization"] is None  # of a CPU nobody knows the peak
    metrics = [event for event in events.seen if event["event"] == "metric"]
    assert [(event["name"], event["step"]) for event in metrics] == [
        ("validationLoss", step) for step in (0, 5, 10, 12)
    ]


class TestBadInput:
    def test_nothing_but_warm_up_is_warned_of(self, store: Store, engine: Runtime) -> None:
        current, events = context(store)
        correct(job_in(store, settings=SETTINGS.model_copy(update={"steps": 2, "warmup_steps": 2})), current, engine)
        [warning] = [event["message"] for event in events.seen if event["event"] == "warning"]
        assert warning.startswith("warmupSteps: 2 of 2 steps are warm-up")

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"sequence_length": 512}, "dataset: 400 validation tokens are less than one sequence of 512"),
            (
                {"settings": SETTINGS.model_copy(update={"global_batch_size": 300})},
                "dataset: 4,000 training tokens are less than one batch of 300 sequences of 16",
            ),
        ],
    )
    def test_too_little_text_is_seen_before_a_model_is_built(
        self, store: Store, engine: Runtime, fields: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("compression_pipeline.megatron.engine.build", lambda *_, **__: pytest.fail("was built"))
        with pytest.raises(UserError, match=sentence):
            correct(job_in(store, **fields), context(store)[0], engine)

    def test_fewer_validation_sequences_than_asked_for_are_all_taken(self, store: Store, engine: Runtime) -> None:
        many = job_in(store, validation=ValidationConfig(samples=100_000))
        result = correct(many, context(store)[0], engine)
        assert math.isfinite(result.corrected_teacher_loss)
