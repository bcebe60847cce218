"""Losses are means over what is learned: in training, in every loss, in validation and in a sweep over layers."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from engine_models import architecture, randomize
from finetuning import SETTINGS, correct, history_of, job_in
from hypothesis import given
from hypothesis import strategies as st
from pruned import PRUNED, distill_job, pruned_store
from stores import DATA, TEACHER, context, make_store, save_text
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from compression_pipeline.artifact import Store
from compression_pipeline.config import Axis, DistillConfig, FinetuneConfig, ImportanceConfig, ParallelLayout
from compression_pipeline.config.losses import LOSSES
from compression_pipeline.context import Context
from compression_pipeline.errors import UserError
from compression_pipeline.events import Events
from compression_pipeline.huggingface import conversion
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.importance import Samples, measure, scorers
from compression_pipeline.losses import weighted_sum
from compression_pipeline.megatron.engine import MegatronEngine
from compression_pipeline.megatron.loss_function import LanguageModelLoss
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.megatron.validation import validation_loss
from compression_pipeline.phases import distill
from compression_pipeline.text import mixture
from compression_pipeline.text.batches import TrainingData, ValidationData
from compression_pipeline.text.mixture import Part

LENGTH = 32
BY_LOSS = ImportanceConfig(depth="LMLoss")


def masked(folder: Path, *, every: int = 3) -> Path:
    """A mask beside the text of `save_text`: a token is learned unless `every` divides it. Token 0 ends documents."""
    for name in ("train", "validation"):
        tokens = numpy.fromfile(folder / f"{name}.bin", numpy.uint16)
        (folder / f"{name}.mask").write_bytes((tokens % every != 0).astype(numpy.uint8).tobytes())
    return folder


def is_learned(labels: Tensor, every: int = 3) -> Tensor:
    return labels % every != 0


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    save_text(folder, 1300, 400)
    return masked(folder)


@pytest.fixture
def model(engine: Runtime) -> Any:
    made = build(architecture(), engine, sequence_length=LENGTH)
    randomize(made)
    return made.eval()


def training_data(text: Path, engine: Runtime, rank: int = 0, ranks: int = 1, *, micro: int = 2) -> TrainingData:
    settings = FinetuneConfig(steps=20, global_batch_size=8, micro_batch_size=micro, seed=3)
    place = replace(engine, rank=rank, data_rank=rank, layout=ParallelLayout(nodes=1, per_node=ranks))
    return TrainingData(text, settings, place, sequence_length=LENGTH)


@pytest.mark.parametrize(("ranks", "micro"), [(1, 8), (1, 2), (2, 2), (4, 1)])
def test_the_learned_tokens_of_a_global_batch_count_alike(text: Path, engine: Runtime, ranks: int, micro: int) -> None:
    for step in (0, 4, 5):  # an epoch has 40 sequences: a step of the first, and two of which one begins the next
        of_each = [training_data(text, engine, rank, ranks, micro=micro).batches(step) for rank in range(ranks)]
        batches = list(chain.from_iterable(of_each))
        weights = torch.cat([batch.weights for batch in batches if batch.weights is not None])
        labels = torch.cat([batch.labels for batch in batches])
        learned = is_learned(labels)
        assert weights.dtype == torch.float32 and torch.equal(weights > 0, learned)
        assert weights[learned].tolist() == pytest.approx([labels.numel() / int(learned.sum())] * int(learned.sum()))


def test_a_source_without_a_mask_is_learned_whole(tmp_path: Path, engine: Runtime) -> None:
    for number in (0, 1):
        save_text(tmp_path / str(number), 1300, 400, seed=number)
    masked(tmp_path / "1")
    mixture.write(tmp_path, [Part(tmp_path / str(number), 0.5) for number in (0, 1)])
    [batch] = training_data(tmp_path, engine, micro=8).batches(0)
    assert batch.weights is not None
    shares = (batch.weights > 0).float().mean(1)
    assert sorted(shares.tolist())[4:] == [1.0] * 4 and max(sorted(shares.tolist())[:4]) < 0.9
    held_out = ValidationData(tmp_path, sequence_length=LENGTH, samples=8)
    found = held_out.batch(range(8), torch.device("cpu"))
    assert found.weights is not None
    expected = is_learned(found.labels) | torch.tensor([source == 0 for source in held_out.texts_of(range(8))])[:, None]
    assert torch.equal(found.weights.bool(), expected)


def test_a_batch_of_prompts_alone_is_worth_nothing(tmp_path: Path, engine: Runtime) -> None:
    save_text(tmp_path, 1300, 400)
    masked(tmp_path, every=1)
    for batch in training_data(tmp_path, engine).batches(0):
        assert batch.weights is not None and not batch.weights.any()
    with pytest.raises(UserError, match=r"^validation.samples: the 5 validation sequences hold prompts alone .*raise"):
        ValidationData(tmp_path, sequence_length=LENGTH, samples=5)


def test_steps_of_prompts_alone_are_counted_before_the_first(tmp_path: Path, engine: Runtime) -> None:
    store = make_store(tmp_path)
    folder = store.open(DATA).data
    masked(folder)
    mask = numpy.fromfile(folder / "train.mask", numpy.uint8)
    mask[37 * 20 :] = 0  # of the documents, each of 37 tokens, all but 20 are prompts alone
    mask.tofile(folder / "train.mask")
    settings = SETTINGS.model_copy(update={"global_batch_size": 2, "micro_batch_size": 2, "steps": 12})
    data = TrainingData(folder, settings, engine, sequence_length=LENGTH)
    weights = [torch.cat([w for one in data.batches(step) if (w := one.weights) is not None]) for step in range(12)]
    silent = sum(not found.any() for found in weights)
    assert 0 < silent < 12
    assert data.remarks(12)[-1].startswith(f"{silent} of 12 steps learn nothing, because their global batch holds")
    assert len(data.remarks(12)) == 1
    told, events = context(store)
    correct(job_in(store, settings=settings), told, engine)
    warnings = [seen["message"] for seen in events.seen if seen["event"] == "warning"]
    assert len([said for said in warnings if "steps learn nothing" in said]) == 1
    (folder / "train.mask").write_bytes(bytes(len(mask)))
    with pytest.raises(UserError, match=r"^12 of 12 steps learn nothing.*raise globalBatchSize"):
        TrainingData(folder, settings, engine, sequence_length=LENGTH).remarks(12)


def test_the_loss_of_a_correction_is_the_mean_over_the_learned(text: Path, engine: Runtime, model: Any) -> None:
    loss, found = LanguageModelLoss(), list[float]()
    for micro in (8, 2):
        batches = training_data(text, engine, micro=micro).batches(0)
        with torch.no_grad():
            found.append(float(torch.stack([loss.reduce(loss.forward(model, one), one) for one in batches]).mean()))
    with torch.no_grad():
        logits = torch.cat([model(one.tokens, one.positions, None) for one in batches]).double()
    labels = torch.cat([one.labels for one in batches])
    expected = cross_entropy(logits[is_learned(labels)], labels[is_learned(labels)])
    assert found == pytest.approx([float(expected)] * 2, rel=1e-6)
    assert found[0] != pytest.approx(float(cross_entropy(logits.flatten(0, 1), labels.flatten())), rel=1e-6)


TERMS = st.lists(st.tuples(st.sampled_from(sorted(LOSSES)), st.floats(0.1, 10), st.booleans()), max_size=3)


@given(terms=TERMS, parts=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**20))
def test_every_loss_is_a_mean_over_the_learned(terms: list[tuple[str, float, bool]], parts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    learned = torch.rand(4, 6, generator=generator) < 0.4
    learned[0, 0] = True
    weights = learned * (learned.numel() / int(learned.sum()))
    told = [LOSSES["LogitsKL"].model_validate({})]
    told += [
        LOSSES["Embeddings" if dynamic else name].model_validate(
            {"weight": weight, **({"balance": "Dynamic"} if dynamic else {})} | _needed(name, dynamic)
        )
        for name, weight, dynamic in terms
    ]
    values = [torch.rand(6, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in told]
    rows = [value.T for value in values]

    def of_each(row: Tensor) -> Tensor:
        return (row * learned).sum(1).detach()

    dynamic = [loss.balance.value == "Dynamic" for loss in told]
    compared = [loss for loss, d in zip(told, dynamic, strict=True) if loss.compares_logits and not d]
    on_logits = sum(of_each(row) for loss, row in zip(told, rows, strict=True) if loss in compared)
    others = sum((of_each(row) for row, d in zip(rows, dynamic, strict=True) if d), torch.zeros(4))
    factor = torch.where(others > 0, torch.as_tensor(on_logits) / others, 1.0)[:, None]
    expected = sum(
        loss.weight * (row * (factor if d else 1.0))[learned].mean()
        for loss, row, d in zip(told, rows, dynamic, strict=True)
    )
    of_parts = zip(*(value.chunk(parts, dim=1) for value in values), weights.chunk(parts), strict=True)
    found = torch.stack([weighted_sum(told, each[:-1], each[-1]) for each in of_parts]).mean()
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found, values)
    assert all(not gradient.T[~learned].any() for gradient in gradients)


def _needed(name: str, dynamic: bool) -> dict[str, Any]:
    """Fields that a loss must be given."""
    required = {"LogitsTopKKL": {"topK": 4}}
    return {} if dynamic else required.get(name, {})


def test_the_validation_loss_is_the_mean_over_the_learned(text: Path, engine: Runtime, model: Any) -> None:
    data = ValidationData(text, sequence_length=LENGTH, samples=6)
    batch = data.batch(range(6), engine.device)
    with torch.no_grad():
        logits = model(batch.tokens, batch.positions, None).double()
    learned = is_learned(batch.labels)
    expected = float(cross_entropy(logits[learned], batch.labels[learned]))
    events = Context(Store(text), Events(silent=True), text)
    for size in (1, 4):
        assert validation_loss(model, data, engine, events, batch_size=size).loss == pytest.approx(expected, rel=1e-6)

    held_out = [data.batch(range(start, start + 2), engine.device) for start in (0, 2, 4)]
    samples = Samples((), held_out, lambda done, total: None, dropped=1)
    blocks = measure(model, architecture(), samples, scorers(BY_LOSS, [Axis.LAYERS]))["layers.blocks"]
    assert float(blocks[0, 2]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("shared_engine")
def test_a_distillation_lowers_the_divergence_of_what_is_learned(tmp_path: Path, engine: Runtime) -> None:
    store = pruned_store(tmp_path)
    masked(store.open(DATA).data)
    settings = DistillConfig(
        steps=2, warmup_steps=0, global_batch_size=4, micro_batch_size=2, learning_rate=1e-4, validation_interval=1
    )
    job = distill_job(store, settings)
    current, events = context(store, job.fingerprint)
    shapes = {name: read_architecture(store.open(name).model) for name in (TEACHER, PRUNED)}
    distilled = distill.distill(job, current, MegatronEngine(engine, current), shapes[TEACHER], shapes[PRUNED])

    batches = TrainingData(store.open(DATA).data, settings, engine, sequence_length=LENGTH).batches(0)
    logs: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        plain = build(shape, engine, sequence_length=LENGTH).eval()
        conversion.load_into(plain, shape, store.open(name).model)
        with torch.no_grad():
            logs[name] = log_softmax(
                torch.cat([plain(one.tokens, one.positions, None) for one in batches]).double(), -1
            )
    learned = is_learned(torch.cat([one.labels for one in batches]))
    each = kl_div(logs[PRUNED], logs[TEACHER], reduction="none", log_target=True).sum(-1)
    first = next(event for event in events.seen if event["event"] == "progress" and event.get("step") == 1)
    assert first["loss"] == pytest.approx(float(each[learned].mean()), rel=1e-4)
    assert first["loss"] != pytest.approx(float(each.mean()), rel=1e-3)
    assert distilled.distilled_loss < distilled.pruned_loss


def test_a_correction_does_not_depend_on_micro_batches(tmp_path: Path, engine: Runtime) -> None:
    found: list[Any] = []
    for micro in (4, 1, None):
        store = make_store(tmp_path / str(micro))
        if micro is not None:
            masked(store.open(DATA).data)
        settings = SETTINGS.model_copy(update={"micro_batch_size": micro or 4})
        result = correct(job_in(store, settings=settings), context(store)[0], engine)
        found.append([entry["loss"] for entry in history_of(store)["train"]] + [result.corrected_teacher_loss])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] != pytest.approx(found[2], rel=1e-3), "of all tokens"
