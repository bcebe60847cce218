"""documentAttention: Isolated. A token's logits do not depend on the documents before its own, in any pass."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from engine_models import architecture, randomize
from hypothesis import given
from hypothesis import strategies as st
from pruned import PRUNED, pruned_store
from stores import TEACHER, save_text
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from compression_pipeline.artifact import Store
from compression_pipeline.config import Axis, DistillConfig, DocumentAttention, FinetuneConfig, ImportanceConfig
from compression_pipeline.context import Context
from compression_pipeline.events import Events
from compression_pipeline.huggingface import conversion
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.importance import Samples, measure, scorers
from compression_pipeline.megatron import attention
from compression_pipeline.megatron.attention import FusedAttention
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.megatron.validation import validation_loss
from compression_pipeline.phases.ranking import Calibration
from compression_pipeline.text import isolation
from compression_pipeline.text.batches import Batch, TrainingData, ValidationData
from compression_pipeline.text.isolation import mask_of, positions_in

LENGTH, DOCUMENT = 32, 13
ISOLATED = DocumentAttention.ISOLATED


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("isolated")
    save_text(folder, 1300, 260, document=DOCUMENT)  # token 0 ends documents and is nowhere else
    return folder


@pytest.fixture
def model(engine: Runtime) -> Any:
    made = build(architecture(), engine, sequence_length=LENGTH)
    randomize(made)
    return made.eval()


def positions_after(ends: torch.Tensor) -> list[list[int]]:
    """Positions that begin anew behind each token 0: [sequences, length] -> the same."""
    found: list[list[int]] = []
    for row in ends.tolist():
        place, positions = 0, list[int]()
        for token in row:
            positions.append(place)
            place = 0 if token == 0 else place + 1
        found.append(positions)
    return found


def alone(model: Any, batch: Batch) -> list[torch.Tensor]:
    """The logits of each document of the batch, by a plain causal pass of its own."""
    found: list[torch.Tensor] = []
    for row, positions in zip(batch.tokens, batch.positions, strict=True):
        begins = [*(positions == 0).nonzero().flatten().tolist(), len(row)]
        for start, end in pairwise(begins):
            found.append(model(row[None, start:end], torch.arange(end - start)[None], None)[0])
    return found


@given(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=40))
def test_mask_and_positions_are_megatrons(tokens: list[int]) -> None:
    from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids

    mask, _, positions = _get_ltor_masks_and_position_ids(torch.tensor(tokens), 0, True, True, False, True)
    begins = [0, *(place + 1 for place, token in enumerate(tokens) if token == 0)]
    mine = positions_in(numpy.array(begins), 0, len(tokens))
    assert mine.tolist() == positions.tolist()
    found = mask_of(mine[None])
    assert mask is not None
    causal = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)
    assert torch.equal(causal if found is None else found[0, 0], mask[0])


def test_batches_know_where_documents_begin(text: Path, engine: Runtime) -> None:
    settings = FinetuneConfig(steps=20, global_batch_size=4, micro_batch_size=2, seed=3)
    context = Context(Store(text), Events(silent=True), text)
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    for step in (0, 30):
        data = TrainingData(text, settings, engine, sequence_length=LENGTH, attention=ISOLATED)
        shared = TrainingData(text, settings, engine, sequence_length=LENGTH)
        for batch, plain in zip(data.batches(step), shared.batches(step), strict=True):
            assert torch.equal(batch.tokens, plain.tokens) and torch.equal(batch.labels, plain.labels)
            assert plain.mask is None and plain.positions.tolist() == [[*range(LENGTH)]] * 2
            assert batch.mask is not None
            batches.append((batch.tokens, batch.positions))
    held_out = ValidationData(text, sequence_length=LENGTH, samples=8, attention=ISOLATED).batch(
        range(8), torch.device("cpu")
    )
    assert held_out.mask is not None
    batches.append((held_out.tokens, held_out.positions))
    batches.extend(Calibration(text, engine, LENGTH, 8, attention=ISOLATED).batches(context))
    for tokens, positions in batches:
        assert positions.tolist() == positions_after(tokens)


def test_logits_do_not_depend_on_the_document_before(model: Any) -> None:
    tokens = torch.randint(1, 320, (1, LENGTH))
    other = torch.cat([(tokens[:, :DOCUMENT] + 7) % 320, tokens[:, DOCUMENT:]], dim=1)
    positions = positions_in(numpy.array([0, DOCUMENT]), 0, LENGTH)[None]
    with torch.no_grad():
        one, two = (model(text, positions, mask_of(positions))[0, DOCUMENT:] for text in (tokens, other))
        seen = [model(text, positions, None)[0, DOCUMENT:] for text in (tokens, other)]
    assert torch.equal(one, two)
    assert not torch.allclose(*seen)


def test_the_validation_loss_is_that_of_each_document_alone(text: Path, engine: Runtime, model: Any) -> None:
    data = ValidationData(text, sequence_length=LENGTH, samples=6, attention=ISOLATED)
    batch = data.batch(range(6), engine.device)
    with torch.no_grad():
        expected = cross_entropy(torch.cat(alone(model, batch)), batch.labels.flatten())
    context = Context(Store(text), Events(silent=True), text)
    found = validation_loss(model, data, engine, context, batch_size=4)
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    plain = ValidationData(text, sequence_length=LENGTH, samples=6)
    assert validation_loss(model, plain, engine, context, batch_size=4).loss != pytest.approx(found.loss, rel=1e-5)


def test_importance_is_measured_on_documents_alone(model: Any) -> None:
    tokens = torch.randint(1, 320, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    positions = positions_in(numpy.array([0, LENGTH // 2]), 0, LENGTH).expand(2, -1)
    halves = [(half, torch.arange(LENGTH // 2).expand(2, -1)) for half in tokens.chunk(2, dim=1)]
    found, expected, shared = (
        measure(model, architecture(), Samples(data), scorers(ImportanceConfig()))[Axis.LAYERS]
        for data in ([(tokens, positions)], halves, [(tokens, torch.arange(LENGTH).expand(2, -1))])
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(shared, expected, rtol=1e-3)


def test_the_bias_is_made_once_for_all_layers_and_blocks(
    text: Path, engine: Runtime, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.Size] = []
    original = isolation.as_bias

    def counted(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        made.append(mask.shape)
        return original(mask, dtype)

    monkeypatch.setattr(isolation, "as_bias", counted)
    monkeypatch.setattr(attention, "as_bias", counted)
    data = ValidationData(text, sequence_length=LENGTH, samples=6, attention=ISOLATED)
    validation_loss(model, data, engine, Context(Store(text), Events(silent=True), text), batch_size=4)
    assert len(made) == 2, "of two passes"
    batch = data.batch(range(4), engine.device)
    samples = Samples([(batch.tokens, batch.positions)], held_out=[batch], dropped=1)
    for depth in ("BlockInfluence", "LMLoss"):
        made.clear()
        measure(model, architecture(), samples, scorers(ImportanceConfig(depth=depth), [Axis.LAYERS]))
        assert len(made) == 1, depth


@pytest.mark.usefixtures("shared_engine")
def test_teacher_and_student_see_the_same_of_a_text(tmp_path: Path, engine: Runtime) -> None:
    from compression_pipeline.megatron.distillation import DistillationLoss, combine
    from compression_pipeline.megatron.objective import Objective

    store = pruned_store(tmp_path)
    shapes = {name: read_architecture(store.open(name).model) for name in (TEACHER, PRUNED)}
    models: dict[str, Any] = {}
    for name, shape in shapes.items():
        models[name] = build(shape, engine, sequence_length=LENGTH).eval()
        conversion.load_into(models[name], shape, store.open(name).model)
    tokens = torch.randint(1, 320, (2, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    positions = torch.stack([positions_in(numpy.array([0, at]), 0, LENGTH) for at in (DOCUMENT, 20)])
    batch = Batch(tokens[:, :-1].contiguous(), positions, tokens[:, 1:].contiguous(), isolated=True)
    with torch.no_grad():
        target, found = (log_softmax(torch.cat(alone(models[name], batch)), -1) for name in (TEACHER, PRUNED))
    expected = kl_div(found, target, reduction="none", log_target=True).sum(-1).mean()

    losses = DistillConfig(steps=1, warmup_steps=0).losses
    objective = Objective.of(losses, shapes[TEACHER], shapes[PRUNED], engine, seed=1)
    loss = DistillationLoss(combined := combine(models[PRUNED], models[TEACHER], objective), objective)
    combined.train()
    biases: list[torch.Tensor] = []

    def see(attention: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        biases.extend(one for one in (*inputs, *named.values()) if isinstance(one, torch.Tensor) and one.size(1) == 1)

    for module in combined.modules():
        if isinstance(module, FusedAttention):
            module.register_forward_pre_hook(see, with_kwargs=True)
    with torch.no_grad():
        values = [loss.reduce(loss.forward(combined, one), one) for one in (batch, replace(batch, isolated=False))]
    torch.testing.assert_close(values[0], expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(values[1], expected, rtol=1e-3)
    layers = sum(shape.layers for shape in shapes.values())
    assert len(biases) == layers and all(bias is biases[0] for bias in biases), "one bias for all layers of both models"
    assert biases[0].dtype is torch.float32 and biases[0].shape == (2, 1, LENGTH, LENGTH)
