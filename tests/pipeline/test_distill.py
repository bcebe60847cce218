"""distill: the gradient is that of the plain recipe, the teacher stays what it is, an interruption changes nothing."""

import copy
import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_model
from finetuning import Stopping
from pruned import DISTILLED, PRUNED, distill_job, pruned_store
from safetensors.torch import load_file, save_file
from stores import DATA, TEACHER, common, context, make_store, publish
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import (
    DistillConfig,
    DistillJob,
    DistillResult,
    ExportDtype,
    PruneConfig,
    PruneJob,
    won_back,
)
from compression_pipeline.errors import Interrupted, MissingArtifact, UserError
from compression_pipeline.huggingface import conversion
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.megatron.model import build
from compression_pipeline.phases import distill as phase
from compression_pipeline.phases import prune
from compression_pipeline.random_order import permutation
from compression_pipeline.reference_logits import Reference, kept_positions, relative_error

SETTINGS = {
    "steps": 8,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "learning_rate": 3e-3,
    "warmup_steps": 1,
    "checkpoint_interval": 3,
    "validation_interval": 4,
}


pytestmark = pytest.mark.usefixtures("shared_engine")


def job(store: Store, attempt: int = 1, **settings: Any) -> DistillJob:
    return distill_job(store, DistillConfig(**(SETTINGS | settings)), attempt)


def run(store: Store, **settings: Any) -> tuple[DistillResult, Artifact, list[dict[str, Any]]]:
    told, recorder = context(store, DISTILLED)
    result = phase.run(job(store, **settings), told)
    return result, store.open(f"distill-{DISTILLED}"), recorder.seen


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def validation_tokens(store: Store, samples: int = 6, length: int = 32) -> torch.Tensor:
    """The sample of validation sequences, read without the code under test."""
    import numpy

    tokens = numpy.fromfile(store.open(DATA).data / "validation.bin", dtype=numpy.uint16)
    drawn = permutation((len(tokens) - 1) // length, "validation", len(tokens), length)[:samples]
    rows = [tokens[index * length : index * length + length + 1] for index in drawn]
    return torch.from_numpy(numpy.stack(rows).astype(numpy.int64))


def plain_loss(model: Path, store: Store, dtype: torch.dtype = torch.float32) -> float:
    """Validation loss by plain transformers, of the weights rounded to a type, in float32."""
    tokens = validation_tokens(store)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).float()(tokens[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


def test_the_student_learns(tmp_path: Path) -> None:
    store = pruned_store(tmp_path)
    result, artifact, seen = run(store, steps=30)
    assert result.teacher_loss == pytest.approx(plain_loss(store.open(TEACHER).model, store), abs=1e-5)
    assert result.pruned_loss == pytest.approx(plain_loss(store.open(PRUNED).model, store), abs=1e-5)
    assert result.distilled_loss == pytest.approx(plain_loss(artifact.model, store), abs=1e-5)
    for dtype in ExportDtype:
        rounded = plain_loss(artifact.model, store, getattr(torch, dtype.value))
        assert result.rounded_losses[dtype] == pytest.approx(rounded, abs=1e-6)
    assert len(set(result.rounded_losses.values())) == 3  # each type's own
    losses = [event["loss"] for event in seen if event["event"] == "progress"]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    history = json.loads((artifact.path / "history.json").read_text())
    assert [entry["loss"] for entry in history["train"]] == losses
    assert history["validation"][0]["loss"] == result.pruned_loss
    assert artifact.manifest.metrics.get("recovered") == won_back(
        result.teacher_loss, result.pruned_loss, result.distilled_loss
    )
    said = artifact.manifest.metrics
    # 30 steps of 8 sequences; the text has 124.
    assert (said["precision"], said["tokens"], said["uniqueTokens"]) == ("FP32", 30 * 8 * 32, 124 * 32)
    assert said["epochs"] == pytest.approx(240 / 124)
    assert read_architecture(artifact.model) == read_architecture(store.open(PRUNED).model)
    assert (artifact.path / "tensorboard").is_dir()
    assert (artifact.model / "tokenizer.json").is_file()


def test_auto_compares_states_too_where_depth_is_cut_a_lot(tmp_path: Path) -> None:
    result, artifact, seen = run(pruned_store(tmp_path, sizes={"layers": 1}), steps=30, losses=[{"type": "Auto"}])
    assert result.losses is not None
    assert result.losses.count("scaled in every sequence to the loss on the logits") == 2
    assert result.losses.endswith("(Auto, because the student keeps 1 of 3 layers)")
    losses = [event["loss"] for event in seen if event["event"] == "progress"]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert read_architecture(artifact.model).layers == 1


def poison(folder: Path, name: str, value: float = torch.nan) -> None:
    """Put one value into a tensor of a checkpoint, whose sizes stay as they are."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_teacher_that_computes_no_number_is_named_with_its_tensor(tmp_path: Path, value: float) -> None:
    store = pruned_store(tmp_path)
    bad = "model.layers.1.mlp.up_proj.weight"
    poison(store.open(TEACHER).model, bad, value)
    with pytest.raises(
        UserError, match=rf"the teacher computes nan: .* for its tensor {bad} holds values that are not"
    ):
        run(store)
    cut = PruneJob(
        **common(store, "prune-width", "4" * 32),
        data=DATA,
        teacher=TEACHER,
        sequence_length=32,
        # Other samples than those that were measured while the teacher was well.
        prune=PruneConfig(hidden_size=32, divisor=16, calibration_samples=4),
    )
    with pytest.raises(UserError, match=rf"the teacher computes nan: the importance of its \w+ is nan, .* {bad} "):
        prune.run(cut, context(store, "4" * 32)[0])


def test_a_student_that_computes_no_number_is_not_the_teacher(tmp_path: Path) -> None:
    store = pruned_store(tmp_path)
    poison(store.open(PRUNED).model, "model.norm.weight")
    with pytest.raises(UserError, match=r"the pruned student computes nan: .* tensor model\.norm\.weight"):
        run(store)


def test_finite_weights_that_overflow_are_told_apart(tmp_path: Path) -> None:
    store = pruned_store(tmp_path)
    poison(store.open(TEACHER).model, "model.embed_tokens.weight", 3e38)
    poison(store.open(TEACHER).model, "model.layers.0.input_layernorm.weight", 3e38)
    tensors = load_file(store.open(TEACHER).model / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"].fill_(3e38)
    save_file(tensors, store.open(TEACHER).model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the teacher computes nan: .* though all of its weights are finite"):
        run(store)


def test_the_teacher_is_measured_once_over_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compression_pipeline.megatron import validation

    store, real, measured = pruned_store(tmp_path), validation.validation_loss, 0

    def count(*arguments: Any, **named: Any) -> Any:
        nonlocal measured
        measured += 1
        return real(*arguments, **named)

    monkeypatch.setattr(validation, "validation_loss", count)
    stopped, _ = context(store, DISTILLED)
    stopped.events = Stopping(3, lambda: setattr(stopped.stop, "raised", True))
    with pytest.raises(Interrupted):
        phase.run(job(store), stopped)
    assert measured == 2  # the teacher, the pruned student
    resumed, recorder = context(store, DISTILLED, attempt=2)
    result = phase.run(job(store, attempt=2), resumed)
    assert measured == 6  # the student at steps 4 and 8, and rounded to each of the smaller types
    [told] = [event["value"] for event in recorder.seen if event.get("name") == "teacherLoss"]
    assert told == result.teacher_loss == pytest.approx(plain_loss(store.open(TEACHER).model, store), abs=1e-5)


def test_a_teacher_that_was_made_anew_is_measured_again(tmp_path: Path) -> None:
    """Under its key: what was damaged is made again, and on a GPU not to the last bit."""
    store = pruned_store(tmp_path)

    def stopped_attempt(number: int) -> float:
        told, _ = context(store, DISTILLED, attempt=number)
        told.events = recorder = Stopping(number, lambda: setattr(told.stop, "raised", True))
        with pytest.raises(Interrupted):
            phase.run(job(store, attempt=number), told)
        [loss] = [event["value"] for event in recorder.seen if event.get("name") == "teacherLoss"]
        return loss

    first = stopped_attempt(1)
    assert stopped_attempt(3) == first
    aside = store.open(TEACHER).path.rename(tmp_path / "aside")
    poison(aside / "model", "model.layers.1.mlp.up_proj.weight", 2.0)
    publish(store, TEACHER, lambda path: shutil.copytree(aside / "model", path / "model"))
    anew = stopped_attempt(5)
    assert anew != first
    assert anew == pytest.approx(plain_loss(store.open(TEACHER).model, store), abs=1e-5)


def test_the_optimizer_holds_nothing_for_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compression_pipeline.megatron.checkpoint import Checkpoints

    store = pruned_store(tmp_path)
    states: list[list[str]] = []
    save = Checkpoints.save

    def watch(self: Any, step: int, model: Any, optimizer: Any, history: Any) -> Path:
        states.append(sorted(_named(part) for part in optimizer.sharded_state()))
        return save(self, step, model, optimizer, history)

    monkeypatch.setattr(Checkpoints, "save", watch)
    run(store, steps=1)
    student = read_architecture(store.open(PRUNED).model)
    assert set(states[0]) == set(conversion.megatron_shapes(student))


def _named(part: Any) -> str:
    """The parameter that a part of the optimizer's state is of: layers lie in one tensor, by their number."""
    name = part.key.split(".", 2)[2].replace(".layers.", f".layers.{part.offset[0]}.")
    name = name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.")  # as Transformer Engine keeps it
    return name.replace("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm.")


def tensor_bytes() -> int:
    """Bytes of all tensors that are in memory, garbage that nobody has collected yet among them."""
    tensors = [found for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def test_teacher_and_optimizer_are_gone_before_the_reference_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that holds them may not hold a float32 model besides."""
    store = pruned_store(tmp_path)
    student = 4 * read_architecture(store.open(PRUNED).model).parameters
    seen: list[int] = []

    def watched(*arguments: Any, **named: Any) -> Any:
        seen.append(tensor_bytes() - before)
        return build(*arguments, **named)

    monkeypatch.setattr("compression_pipeline.megatron.engine.build", watched)
    gc.collect()
    before = tensor_bytes()
    run(store, steps=2)
    at_teacher, at_student, at_rounded, at_reference = seen
    assert at_teacher == pytest.approx(0, abs=0.1 * student)
    assert at_student > student  # the teacher is counted, so the student would be
    assert at_rounded == pytest.approx(student, rel=0.1)  # its weights alone
    assert at_reference == pytest.approx(student, rel=0.1)


def test_an_interruption_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pruned_store(tmp_path)
    whole = copy.deepcopy(run(store)[0])
    expected = weights(store.open(f"distill-{DISTILLED}").model)
    store.open(f"distill-{DISTILLED}").path.rename(tmp_path / "aside")
    shutil.rmtree(tmp_path / "work")  # as the launcher does

    told, recorder = context(store, DISTILLED)
    progress = recorder.progress

    def stop_after_four(step: int, total: int, **fields: Any) -> None:
        told.stop.raised = step == 4  # seen in the validation that follows
        progress(step, total, **fields)

    monkeypatch.setattr(recorder, "progress", stop_after_four)
    with pytest.raises(Interrupted, match="after step 4"):
        phase.run(job(store), told)
    assert store.find(f"distill-{DISTILLED}") is None
    told, recorder = context(store, DISTILLED, attempt=2)
    again = phase.run(job(store, attempt=2), told)
    assert [event["step"] for event in recorder.seen if event["event"] == "progress"] == [5, 6, 7, 8]
    assert again.model_copy(update={"digest": whole.digest, "tokens_per_second": whole.tokens_per_second}) == whole
    found = weights(store.open(f"distill-{DISTILLED}").model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("kind", ["llama31", "llama-wide-heads", "mistral", "qwen2", "qwen3", "nemotron"])
def test_reference_logits_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    store = pruned_store(tmp_path, kind)
    _, artifact, _ = run(store, steps=2)
    found = Reference.read(artifact.path)
    assert torch.equal(found.tokens, validation_tokens(store, samples=2)[:, :-1])
    assert found.positions.tolist() == list(range(32))
    for dtype in ExportDtype:
        model = AutoModelForCausalLM.from_pretrained(artifact.model, dtype=getattr(torch, dtype.value)).float().eval()
        with torch.no_grad():
            assert relative_error(model(found.tokens).logits, found.logits[dtype]) < 1e-5
    assert relative_error(found.logits[ExportDtype.BFLOAT16], found.logits[ExportDtype.FLOAT32]) > 1e-4


def test_positions_of_large_vocabularies_are_thinned_out() -> None:
    assert kept_positions(2, 128, 2048).tolist() == list(range(128))
    thin = kept_positions(2, 128, 128256).tolist()
    assert thin[-1] == 127
    assert len(thin) == len(set(thin)) == 65
    assert kept_positions(2, 128, 2**25).tolist() == [127]


def test_relative_error() -> None:
    expected = torch.tensor([0.0, -4.0, 2.0])
    assert relative_error(torch.tensor([0.1, -4.0, 2.0]), expected) == pytest.approx(0.025)
    assert relative_error(expected, torch.tensor([0.0, float("inf"), 2.0])) == float("inf")
    assert relative_error(torch.tensor([0.0, float("nan"), 2.0]), expected) == float("inf")


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    store = pruned_store(tmp_path)
    publish(store, "finetune-other", lambda path: save_model(path / "model", vocab_size=330))
    told, _ = context(store, DISTILLED)
    with pytest.raises(UserError, match=r"has 320 tokens and the teacher finetune-other 330"):
        phase.run(job(store).model_copy(update={"teacher": "finetune-other"}), told)


def test_a_missing_artifact_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression_pipeline.artifact.PATIENCE", 0)
    store = make_store(tmp_path)
    with pytest.raises(MissingArtifact, match=f"has no artifact {PRUNED}"):
        run(store)


def test_text_shorter_than_one_validation_sequence(tmp_path: Path) -> None:
    store = pruned_store(tmp_path, validation=20)
    with pytest.raises(UserError, match="validation tokens are less than one sequence of 32"):
        run(store)
