"""A student that reads its teacher's logits learns what it would beside the teacher, whatever text and batch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from finetuning import Stopping
from pruned import DISTILLED, distill_job, pruned_store
from safetensors.torch import load_file
from stores import DATA, TEACHER, VOCABULARY, common, context, save_text

from compression_pipeline import teacher_logits
from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import (
    DistillConfig,
    DocumentAttention,
    LogitsConfig,
    LogitsJob,
    LogitsResult,
    Precision,
    ValidationConfig,
    measuring,
)
from compression_pipeline.errors import Interrupted, UserError
from compression_pipeline.losses.others import others_as_one
from compression_pipeline.phases import distill, logits
from compression_pipeline.teacher_logits import CachedLogits, Likeliest
from compression_pipeline.text import mixture

pytestmark = pytest.mark.usefixtures("shared_engine")

CACHED = "3" * 32
WORDS = VOCABULARY
"""Of the teacher's vocabulary."""

SETTINGS: dict[str, Any] = {
    "steps": 20,  # of 8 sequences, and the text has 124
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "learning_rate": 3e-3,
    "warmup_steps": 1,
    "checkpoint_interval": 3,
}


def settings(**fields: Any) -> DistillConfig:
    return DistillConfig(**(SETTINGS | fields))


def cached(top_k: int = WORDS, **fields: Any) -> DistillConfig:
    return settings(teacher_logits="Cached", cached_top_k=top_k, **fields)


def write_job(store: Store, of: DistillConfig, attempt: int = 1, **fields: Any) -> LogitsJob:
    return LogitsJob(
        **common(store, "logits-width", CACHED, attempt),
        data=DATA,
        teacher=TEACHER,
        sequence_length=32,
        logits=LogitsConfig.of(of, None),
        validation=ValidationConfig(samples=6),
        **fields,
    )


def written(store: Store, of: DistillConfig, **fields: Any) -> LogitsResult:
    return logits.run(write_job(store, of, **fields), context(store, CACHED)[0])


def distilled(store: Store, of: DistillConfig, **fields: Any) -> list[float]:
    """Losses of all steps, and the validation loss after them."""
    if of.cached:
        fields["logits"] = f"logits-{CACHED}"
    told, recorder = context(store, DISTILLED)
    result = distill.run(distill_job(store, of, **fields), told)
    steps = [event["loss"] for event in recorder.seen if event["event"] == "progress"]
    return [*steps, result.distilled_loss]


def lose_teacher(store: Store) -> None:
    """Nobody can load it any more."""
    weights = store.open(TEACHER).model / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))


def shared(root: Path) -> Store:
    return pruned_store(root)


def masked(root: Path) -> Store:
    store = pruned_store(root)
    for name in ("train", "validation"):
        tokens = (store.open(DATA).data / f"{name}.bin").stat().st_size // 2
        learned = numpy.random.default_rng(3).random(tokens) < 0.6
        (store.open(DATA).data / f"{name}.mask").write_bytes(learned.astype(numpy.uint8).tobytes())
    return store


def blended(root: Path) -> Store:
    store = pruned_store(root)
    data = store.open(DATA).data
    save_text(data / "0", 2000, 200)
    save_text(data / "1", 1500, 200, seed=5)
    mixture.write(data, [mixture.Part(data / "0", 0.7), mixture.Part(data / "1", 0.3)])
    return store


TEXTS: dict[str, tuple[Callable[[Path], Store], dict[str, Any]]] = {
    "two epochs": (shared, {}),
    "isolated documents": (shared, {"document_attention": DocumentAttention.ISOLATED}),
    "prompts": (masked, {}),
    "several sources": (blended, {}),
}


@pytest.mark.parametrize("text", TEXTS)
def test_with_all_tokens_kept_it_is_the_live_teacher(tmp_path: Path, text: str) -> None:
    """The order of sequences, what counts and what is seen are the same; stored logits are rounded."""
    make, fields = TEXTS[text]
    live = distilled(make(tmp_path / "live"), settings(), **fields)
    store = make(tmp_path / "cached")
    told = written(store, cached(), **fields)
    assert told.mass_kept == pytest.approx(1)
    assert distilled(store, cached(), **fields) == pytest.approx(live, abs=2e-4)


def test_half_of_the_tokens_are_nearly_the_live_teacher(tmp_path: Path) -> None:
    """A random teacher, whose likeliest half has 80 % of the probability, is the hardest: a trained one has more."""
    live = distilled(shared(tmp_path / "live"), settings())
    store = shared(tmp_path / "cached")
    told = written(store, cached(WORDS // 2))
    found = distilled(store, cached(WORDS // 2))
    assert 0.5 < told.mass_kept < 0.95 and told.bytes_per_token == WORDS // 2 * 5 + 4
    assert all(one < other for one, other in zip(found[:-1], live[:-1], strict=True))  # log-sum inequality
    assert found[-1] == pytest.approx(live[-1], rel=0.01)
    assert live[-1] < 0.99 * distilled(shared(tmp_path / "short"), settings(steps=2))[-1]  # which says something


def logs_by_token(made: Artifact) -> torch.Tensor:
    """Of the first part, in steps, [sequences, tokens, vocabulary]: of tokens that are not kept the least that is."""
    part = load_file(made.path / "logits" / "000000.safetensors")
    logs, tokens = part["logs"].to(torch.int64), part["low"].to(torch.int64)
    return logs[..., -1:].repeat(1, 1, WORDS).scatter(-1, tokens, logs)


def test_logits_do_not_depend_on_the_micro_batch(tmp_path: Path) -> None:
    stores = [shared(tmp_path / str(size)) for size in (1, 8)]
    for store, size in zip(stores, (1, 8), strict=True):
        written(store, cached(8, micro_batch_size=size))
    one, other = (logs_by_token(store.open(f"logits-{CACHED}")) for store in stores)
    assert (one - other).abs().max() <= 1  # tokens that are equally likely may change places, and the last one leave
    assert one.min() < one.max() - 100


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_logits, "PART", 16 * 32 * (8 * 5 + 4))  # 16 of the 160 sequences


def contents(store: Store) -> dict[str, bytes]:
    folder = store.open(f"logits-{CACHED}").path / "logits"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.usefixtures("small_parts")
def test_who_is_interrupted_goes_on_behind_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, store, reference = cached(8), shared(tmp_path / "cut"), shared(tmp_path / "whole")
    written(reference, of)
    current, _ = context(store, CACHED)

    def stop() -> None:
        current.stop.raised = True

    with pytest.raises(Interrupted):
        logits.run(write_job(store, of), replace(current, events=Stopping(48, stop)))
    parts = current.folder / "logits"
    assert store.find(f"logits-{CACHED}") is None
    # What a kill -9 leaves: a part that is not told of, one that is cut short, and a file that has no name yet.
    (parts / "000000.json").unlink()
    (parts / "000001.safetensors").write_bytes(b"half")
    (parts / ".000003.safetensors.77.aa").write_bytes(b"half")

    made: list[str] = []
    write = logits.write
    monkeypatch.setattr(logits, "write", lambda path, *told: (made.append(path.stem), write(path, *told))[1])
    logits.run(write_job(store, of, attempt=2), context(store, CACHED, attempt=2)[0])
    assert made == [f"{number:06}" for number in range(10) if number != 2]
    assert contents(store) == contents(reference) and len(contents(store)) == 10


@pytest.mark.usefixtures("small_parts")
def test_parts_of_another_teacher_or_size_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is made again under its key while the logits are written, or an image cuts them otherwise."""
    of, store = cached(8), shared(tmp_path)

    def cut(attempt: int) -> None:
        current, _ = context(store, CACHED, attempt)
        told = Stopping(48, lambda: setattr(current.stop, "raised", True))
        with pytest.raises(Interrupted):
            logits.run(write_job(store, of, attempt), replace(current, events=told))

    made: list[int] = []
    write = logits.write
    monkeypatch.setattr(logits, "write", lambda path, *told: (made.append(int(path.stem)), write(path, *told))[1])
    cut(1)
    cut(2)
    assert made == [0, 1, 2], "of the same teacher they are taken"
    manifest = store.open(TEACHER).path / "manifest.json"
    content = store.open(TEACHER).manifest.files["model/config.json"]
    manifest.write_text(manifest.read_text().replace(content.sha256, "f" * 64))
    cut(3)
    assert made[3:] == [0, 1, 2]
    monkeypatch.setattr(teacher_logits, "PART", teacher_logits.PART * 2)
    logits.run(write_job(store, of, attempt=4), context(store, CACHED, attempt=4)[0])
    assert made[6:] == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("small_parts")
def test_a_distillation_goes_on_to_the_last_bit_without_its_teacher(tmp_path: Path) -> None:
    of, store, reference = cached(8), shared(tmp_path / "cut"), shared(tmp_path / "whole")
    for one in (store, reference):
        written(one, of)
        lose_teacher(one)
    fields: dict[str, Any] = {"logits": f"logits-{CACHED}"}
    distill.run(distill_job(reference, of, **fields), context(reference, DISTILLED)[0])
    current, _ = context(store, DISTILLED)

    def stop() -> None:
        current.stop.raised = True

    with pytest.raises(Interrupted):
        distill.run(distill_job(store, of, **fields), replace(current, events=Stopping(7, stop)))
    distill.run(distill_job(store, of, attempt=2, **fields), context(store, DISTILLED, attempt=2)[0])
    one, other = (
        load_file(each.open(f"distill-{DISTILLED}").model / "model.safetensors") for each in (store, reference)
    )
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_another_number_of_validation_samples_writes_nothing_anew(tmp_path: Path) -> None:
    store, of, fewer = shared(tmp_path), cached(8), ValidationConfig(samples=3)
    first = written(store, of)
    step = measuring(CACHED, {"evaluate": fewer})  # as the plan names it
    again = write_job(store, of).model_copy(update={"fingerprint": step, "key": CACHED, "validation": fewer})
    second = logits.run(again, context(store, step)[0])
    assert (second.teacher.validation_sequences, second.mass_kept) == (3, first.mass_kept)
    assert second.teacher.loss != first.teacher.loss
    # The teacher's loss over other sequences than any step has measured is measured where it is needed.
    job = distill_job(store, of, logits=f"logits-{CACHED}")
    other = job.model_copy(update={"validation": ValidationConfig(samples=2), "fingerprint": "5" * 32})
    assert distill.run(other, context(store, "5" * 32)[0]).teacher_loss not in (first.teacher.loss, second.teacher.loss)
    lose_teacher(store)
    found = distill.run(job.model_copy(update={"validation": fewer}), context(store, DISTILLED)[0])
    assert found.teacher_loss == second.teacher.loss
    # Nor is it loaded where the student was distilled before and is measured alone.
    made = job.model_copy(update={"fingerprint": "6" * 32, "key": DISTILLED})
    measured = distill.run(made, context(store, "6" * 32)[0])
    assert measured.teacher_loss == first.teacher.loss and measured.read_in_place == found.read_in_place


@pytest.mark.parametrize(
    ("loss", "others"),
    [({"type": "LogitsKL"}, True), ({"type": "LogitsTopKKL", "topK": 4}, False), ({"type": "CrossEntropy"}, False)],
)
def test_a_result_says_what_became_of_other_tokens(tmp_path: Path, loss: dict[str, Any], others: bool) -> None:
    of, store = cached(8, steps=2, losses=[loss]), shared(tmp_path)
    written(store, of)
    result = distill.run(distill_job(store, of, logits=f"logits-{CACHED}"), context(store, DISTILLED)[0])
    assert result.read_in_place is not None and result.read_in_place.startswith("the teacher's 8 likeliest tokens")
    assert ("others" in result.read_in_place) == others


def test_more_tokens_than_the_teacher_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cachedTopK: 321 is more than the 320 tokens of the teacher's vocabulary"):
        written(shared(tmp_path), cached(WORDS + 1))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_value_and_gradient_are_those_of_the_formula(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    teacher = 3 * torch.randn(6, 1, 50, generator=generator, dtype=torch.float64)
    student = 3 * torch.randn(6, 1, 50, generator=generator, dtype=torch.float64)
    known = Likeliest.of(teacher, 7, [temperature])
    mine, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    found = others_as_one(mine, known, temperature)

    def bundled(logits: torch.Tensor) -> torch.Tensor:
        likely = torch.softmax(logits / temperature, -1)
        kept = likely.gather(-1, known.tokens)
        return torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1)

    expected = (bundled(teacher) * (bundled(teacher).log() - bundled(theirs).log())).sum(-1)
    assert torch.allclose(found, expected, atol=1e-9)
    found.sum().backward()
    expected.sum().backward()
    assert mine.grad is not None and theirs.grad is not None
    assert torch.allclose(mine.grad, theirs.grad, atol=1e-9)


def test_sequences_are_read_across_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = LogitsConfig(sequences=5, top_k=3, temperatures=(1.0,), seed=1, precision=Precision.FP32, micro_batch_size=1)
    monkeypatch.setattr(teacher_logits, "PART", 2 * 4 * of.bytes_per_token)
    parts = teacher_logits.Parts.of(of, 4)
    known = Likeliest.of(torch.randn(5, 4, 70_000, generator=torch.Generator().manual_seed(2)), 3, [1.0])
    for number in range(len(parts)):
        part = parts.sequences(number)
        tokens, logs, rest = (each[part.start : part.stop] for each in (known.tokens, known.logs, known.rest))
        teacher_logits.write(parts.file(tmp_path, number), Likeliest(tokens, logs, rest, (1.0,)), "files")
    read = CachedLogits(tmp_path, of, parts.size)[range(1, 5)]
    assert torch.equal(read.tokens, known.tokens[1:]) and int(known.tokens.max()) >= 2**16
    assert torch.equal(read.rest, known.rest[1:])
    assert torch.allclose(read.logs, known.logs[1:], atol=1 / 4096 + 1e-6)
