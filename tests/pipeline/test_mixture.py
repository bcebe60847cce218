"""Several texts as one: Megatron's blend, whatever the ranks, and losses of each."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy
import pytest
import torch
from engine_models import architecture, randomize
from hypothesis import given
from hypothesis import strategies as st
from stores import save_text

from compression_pipeline.artifact import Store
from compression_pipeline.config import FinetuneConfig, ParallelLayout, Passes, Share, repetitions
from compression_pipeline.context import Context
from compression_pipeline.errors import UserError
from compression_pipeline.events import Events
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.megatron.validation import validation_loss
from compression_pipeline.phases.ranking import Calibration
from compression_pipeline.text import mixture
from compression_pipeline.text.batches import TrainingData, ValidationData
from compression_pipeline.text.indexed import IndexedWriter
from compression_pipeline.text.mixture import Blend, Part, sample

LENGTH = 16
WEIGHTS = (0.7, 0.25, 0.05)
TOKENS = (3001, 801, 65)
weights = st.lists(st.floats(0.01, 1), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    for number, tokens in enumerate(TOKENS):
        save_text(folder / str(number), tokens, 10 * LENGTH + 1, seed=number)
    parts = [Part(folder / str(n), weight) for n, weight in enumerate(WEIGHTS)]
    mixture.write(folder, parts)
    named = [replace(part, source=f"dataset.sources[{n}]") for n, part in enumerate(parts)]
    assert list(mixture.parts(folder)) == named
    return folder


def training_data(text: Path, engine: Runtime, rank: int = 0, ranks: int = 1, *, micro: int = 2) -> TrainingData:
    settings = FinetuneConfig(steps=20, global_batch_size=8, micro_batch_size=micro, seed=3)
    place = replace(engine, rank=rank, data_rank=rank, layout=ParallelLayout(nodes=1, per_node=ranks))
    return TrainingData(text, settings, place, sequence_length=LENGTH)


def rows_of(data: TrainingData, step: int) -> list[list[int]]:
    return [row for batch in data.batches(step) for row in batch.tokens.tolist()]


@given(weights, st.integers(1, 5000))
def test_the_blend_is_megatrons(told: list[float], size: int) -> None:
    from megatron.core.datasets.helpers_cpp import build_blending_indices

    texts, numbers = numpy.zeros(size, numpy.int16), numpy.zeros(size, numpy.int64)
    shares = numpy.array([weight / sum(told) for weight in told])
    build_blending_indices(texts, numbers, shares, len(told), size, False)
    blend = Blend(told)
    assert [blend[index] for index in range(size)] == list(zip(texts.tolist(), numbers.tolist(), strict=True))


@given(weights, st.lists(st.integers(0, 12_000), min_size=1, max_size=8))
def test_a_place_of_the_blend_is_the_same_in_whatever_order_it_is_asked_for(
    told: list[float], places: list[int]
) -> None:
    blend, again = Blend(told), Blend(told)
    found = {place: blend[place] for place in places}
    assert {place: again[place] for place in reversed(places)} == found


@given(weights, st.data(), st.integers(0, 60))
def test_a_sample_has_nothing_twice_and_begins_with_the_smaller_ones(
    told: list[float], data: st.DataObject, size: int
) -> None:
    available = data.draw(st.lists(st.integers(0, 20), min_size=len(told), max_size=len(told)))
    found = sample(told, available, size)
    assert len(found) == len(set(found)) == min(size, sum(available))
    assert all(number < available[text] for text, number in found)
    assert sample(told, available, size // 2) == found[: size // 2]


class TestTraining:
    def test_the_sources_have_their_shares(self, tmp_path: Path, engine: Runtime) -> None:
        parts = [Part(tmp_path / str(n), weight) for n, weight in enumerate(WEIGHTS)]
        for number, part in enumerate(parts):  # of which every token says where it is from
            part.folder.mkdir()
            writer = IndexedWriter(part.folder / "train", numpy.dtype(numpy.uint16))
            writer.add(numpy.full(TOKENS[number], number, numpy.uint16).tobytes(), [TOKENS[number]])
            writer.finish()
        mixture.write(tmp_path, parts)
        data = training_data(tmp_path, engine)
        rows = [row for step in range(25) for row in rows_of(data, step)]
        assert all(len(set(row)) == 1 for row in rows)
        assert [sum(row[0] == number for row in rows) for number in range(3)] == [140, 50, 10]

    @pytest.mark.parametrize(("ranks", "micro"), [(2, 2), (4, 1), (1, 8)])
    def test_a_step_is_the_same_sequences_on_any_number_of_ranks(
        self, text: Path, engine: Runtime, ranks: int, micro: int
    ) -> None:
        for step in (0, 13):
            alone = rows_of(training_data(text, engine), step)
            shared = [
                row
                for rank in range(ranks)
                for row in rows_of(training_data(text, engine, rank, ranks, micro=micro), step)
            ]
            assert shared == alone

    def test_a_small_source_is_repeated_and_that_is_said(self, text: Path, engine: Runtime) -> None:
        data = training_data(text, engine)
        assert data.remarks(20) == []  # 8 sequences of 4: two epochs
        [said] = data.remarks(100)
        assert said.startswith("dataset.sources[2] is repeated for 10.0 epochs, and beyond 4 repeated text")
        assert data.passes(20).tokens == 20 * 8 * LENGTH
        assert data.passes(20).unique_tokens == (112 + 40 + 4) * LENGTH

    def test_a_source_that_is_too_short_is_named(self, text: Path, engine: Runtime) -> None:
        settings = FinetuneConfig(steps=20, global_batch_size=8, seed=3)
        with pytest.raises(UserError, match=r"65 training tokens of dataset.sources\[2\] are less than one"):
            TrainingData(text, settings, engine, sequence_length=65)


def test_the_only_source_is_never_called_repeated() -> None:
    one = [Share("", 1.0, 1000)]
    assert repetitions(one, sequence_length=16, sequences=100_000) == []
    assert Passes.over(one, sequence_length=16, sequences=124).epochs == 2


class TestValidation:
    def test_each_source_has_its_share_and_one_at_least(self, text: Path) -> None:
        def shares(samples: int) -> list[int]:
            data = ValidationData(text, sequence_length=LENGTH, samples=samples)
            texts = data.texts_of(range(len(data)))
            return [texts.count(number) for number in range(3)]

        assert shares(12) == [8, 3, 1]
        assert shares(1) == [1, 1, 1]
        assert shares(1000) == [10, 10, 10]

    @pytest.mark.parametrize("batch_size", [1, 4, 99])
    def test_the_loss_is_the_mean_by_weight_of_those_of_the_sources(
        self, text: Path, engine: Runtime, batch_size: int
    ) -> None:
        model = build(architecture(), engine, sequence_length=LENGTH)
        randomize(model)
        context = Context(Store(text), Events(silent=True), text)
        data = ValidationData(text, sequence_length=LENGTH, samples=30)
        found = validation_loss(model, data, engine, context, batch_size=batch_size)
        for number, loss in enumerate(found.by_source):
            alone = ValidationData(text / str(number), sequence_length=LENGTH, samples=30)
            single = validation_loss(model, alone, engine, context, batch_size=7)
            assert single.by_source == ()
            assert loss == pytest.approx(single.loss, rel=1e-6)
        expected = sum(weight * loss for weight, loss in zip(WEIGHTS, found.by_source, strict=True))
        assert found.loss == pytest.approx(expected, rel=1e-12)


def test_calibration_takes_each_source_by_its_weight_and_nothing_twice(text: Path, engine: Runtime) -> None:
    context = Context(Store(text), Events(silent=True), text)
    rows = [tuple(row) for tokens, _ in Calibration(text, engine, LENGTH, 1000).batches(context) for row in tokens]
    assert len(rows) == sum((tokens - 1) // LENGTH for tokens in TOKENS)
    few = Calibration(text, engine, LENGTH, 20)
    assert few.count == 20
    [(tokens, positions)] = islice(few.batches(context), 1)
    assert tokens.shape == positions.shape == (20, LENGTH)
    assert torch.equal(tokens, torch.stack([torch.stack(row) for row in rows[:20]]))


def test_the_list_of_texts_names_no_absolute_path(text: Path) -> None:
    assert [one["folder"] for one in json.loads((text / mixture.FILE).read_text())] == ["0", "1", "2"]
