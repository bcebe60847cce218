"""Training batches are a function of (seed, step); validation sequences are always the same ones."""

import itertools
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from engine_models import architecture, python, randomize
from hypothesis import given
from hypothesis import strategies as st
from meeting import Meeting
from stores import save_text

from compression_pipeline.artifact import Store
from compression_pipeline.config import FinetuneConfig, ParallelLayout
from compression_pipeline.context import Context
from compression_pipeline.errors import UserError
from compression_pipeline.events import Events
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.megatron.validation import validation_loss
from compression_pipeline.phases.ranking import Calibration
from compression_pipeline.random_order import permutation
from compression_pipeline.text.batches import TrainingData, ValidationData, largest_divisor
from compression_pipeline.text.indexed import IndexedWriter
from compression_pipeline.text.shuffled import ShuffledText

LENGTH = 16


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    save_text(folder, 4000, 403)
    return folder


def training_data(text: Path, engine: Runtime, rank: int = 0, ranks: int = 1, **fields: int) -> TrainingData:
    settings = FinetuneConfig(steps=20, global_batch_size=8, micro_batch_size=2, seed=3).model_copy(update=fields)
    place = replace(engine, rank=rank, data_rank=rank, layout=ParallelLayout(nodes=1, per_node=ranks))
    return TrainingData(text, settings, place, sequence_length=LENGTH)


def batch_of(data: TrainingData, step: int) -> list[list[int]]:
    """The tokens of a step, in order."""
    return [row for batch in data.batches(step) for row in batch.tokens.tolist()]


def numbered(folder: Path, tokens: int, *, name: str = "train") -> range:
    """A text of documents of 37 tokens, in which every token is its place."""
    writer = IndexedWriter(folder / name, numpy.dtype(numpy.uint16))
    for start in range(0, tokens, 37):
        document = numpy.arange(start, min(start + 37, tokens), dtype=numpy.uint16)
        writer.add(document.tobytes(), [len(document)])
    writer.finish()
    return range(tokens)


def calibrated(folder: Path, engine: Runtime, samples: int) -> list[list[int]]:
    """The sequences that importance is measured on."""
    context = Context(Store(folder), Events(silent=True), folder)
    return [
        row for tokens, _ in Calibration(folder, engine, LENGTH, samples).batches(context) for row in tokens.tolist()
    ]


class TestTraining:
    def test_a_step_has_the_same_batch_whenever_it_is_asked_for(self, text: Path, engine: Runtime) -> None:
        first, second = (training_data(text, engine) for _ in range(2))
        expected = [batch_of(first, step) for step in range(20)]
        assert [batch_of(second, step) for step in reversed(range(20))] == expected[::-1]
        assert batch_of(first, 7) == expected[7]

    def test_the_seed_decides_the_order(self, text: Path, engine: Runtime) -> None:
        batches = [batch_of(training_data(text, engine, seed=seed), 0) for seed in (3, 4, 3)]
        assert batches[0] == batches[2] != batches[1]

    def test_labels_are_the_tokens_one_further(self, text: Path, engine: Runtime) -> None:
        data = training_data(text, engine)
        for batch in data.batches(2):
            assert batch.tokens.shape == batch.labels.shape == batch.positions.shape == (2, LENGTH)
            assert torch.equal(batch.tokens[:, 1:], batch.labels[:, :-1])
            assert batch.positions.tolist() == [list(range(LENGTH))] * 2

    def test_every_epoch_has_every_token_once(self, tmp_path: Path, engine: Runtime) -> None:
        # 2,001 tokens, all different, in documents of 37: 125 sequences of 16 and the token after the last.
        tokens = numbered(tmp_path, 2001)
        data = training_data(tmp_path, engine, global_batch_size=25, micro_batch_size=5)
        epochs = [[tuple(row) for step in range(5 * n, 5 * n + 5) for row in batch_of(data, step)] for n in range(3)]
        for epoch in epochs:
            assert len(epoch) == len(set(epoch)) == 125
            seen = [token for row in epoch for token in row]
            assert len(seen) == len(set(seen)) == 2000
            assert set(seen) <= set(tokens)
        assert len({tuple(epoch) for epoch in epochs}) == 3

    def test_documents_are_read_whole_and_in_their_own_order(self, tmp_path: Path, engine: Runtime) -> None:
        numbered(tmp_path, 2001)
        data = training_data(tmp_path, engine, steps=9)
        for row in (row for step in range(9) for row in batch_of(data, step)):
            for token, following in itertools.pairwise(row):
                assert following == token + 1 or (token % 37 == 36 and following % 37 == 0) or token == 2000

    def test_the_order_does_not_depend_on_how_long_the_run_is(self, text: Path, engine: Runtime) -> None:
        short, long = (training_data(text, engine, steps=steps) for steps in (20, 2000))
        assert [batch_of(short, step) for step in (0, 19)] == [batch_of(long, step) for step in (0, 19)]

    @pytest.mark.parametrize("ranks", [2, 4])
    def test_ranks_share_a_batch(self, text: Path, engine: Runtime, ranks: int) -> None:
        whole = training_data(text, engine)
        parts = [training_data(text, engine, rank, ranks) for rank in range(ranks)]
        for step in (0, 5, 19):
            assert [row for part in parts for row in batch_of(part, step)] == batch_of(whole, step)

    @pytest.mark.parametrize(("ranks", "nearest"), [(3, "6 or 9"), (16, "16")])
    def test_a_batch_that_does_not_divide_is_refused(
        self, text: Path, engine: Runtime, ranks: int, nearest: str
    ) -> None:
        with pytest.raises(UserError, match=f"globalBatchSize: 8 .* {ranks} ranks; nearest: {nearest}"):
            training_data(text, engine, 0, ranks)

    def test_text_for_one_batch_is_just_enough(self, engine: Runtime, tmp_path: Path) -> None:
        save_text(tmp_path / "enough", 8 * LENGTH + 1, 40, document=43)
        assert len(batch_of(training_data(tmp_path / "enough", engine, steps=1), 0)) == 8
        save_text(tmp_path / "less", 8 * LENGTH, 40, document=32)
        with pytest.raises(UserError, match="128 training tokens are less than one batch of 8 sequences of 16"):
            training_data(tmp_path / "less", engine, steps=1)

    def test_a_batch_may_be_of_two_epochs(self, engine: Runtime, tmp_path: Path) -> None:
        numbered(tmp_path, 12 * LENGTH + 1)
        data = training_data(tmp_path, engine)
        sequences = ShuffledText(tmp_path / "train", sequence_length=LENGTH, drawn_for=("training", 3))
        for step in (2, 0, 1):
            assert batch_of(data, step) == [sequences[index].tolist()[:-1] for index in range(8 * step, 8 * step + 8)]


class TestCalibration:
    def test_it_is_a_sample_of_the_whole_text_and_no_training_begins_with_it(
        self, tmp_path: Path, engine: Runtime
    ) -> None:
        numbered(tmp_path, 200 * LENGTH + 1)
        rows = [tuple(row) for row in calibrated(tmp_path, engine, 60)]
        assert len(rows) == len(set(rows)) == 60
        assert rows == [tuple(row) for row in calibrated(tmp_path, engine, 60)]
        assert 0.3 < sum(row[0] >= 100 * LENGTH for row in rows) / len(rows) < 0.7
        for seed in (FinetuneConfig(steps=1).seed, 0, 1):
            data = training_data(tmp_path, engine, seed=seed, global_batch_size=60)
            assert len({row[0] for row in rows} & {row[0] for row in batch_of(data, 0)}) < 40

    def test_all_of_a_short_text_is_taken_and_less_than_a_sequence_refused(
        self, tmp_path: Path, engine: Runtime
    ) -> None:
        numbered(tmp_path, 3 * LENGTH + 1)
        assert len(calibrated(tmp_path, engine, 60)) == 3
        numbered(tmp_path, LENGTH)
        with pytest.raises(UserError, match="16 training tokens are less than one sequence of 16"):
            calibrated(tmp_path, engine, 1)


class TestValidation:
    def test_all_are_taken_where_there_are_fewer(self, text: Path) -> None:
        tokens = numpy.fromfile(text / "validation.bin", dtype=numpy.uint16).astype(int)
        data = ValidationData(text, sequence_length=LENGTH, samples=1000)
        assert len(data) == (403 - 1) // LENGTH == 25
        batch = data.batch(range(25), torch.device("cpu"))
        expected = [tokens[16 * n : 16 * n + 17].tolist() for n in range(25)]
        found = [[*row, last] for row, last in zip(batch.tokens.tolist(), batch.labels[:, -1].tolist(), strict=True)]
        assert sorted(found) == sorted(expected)
        assert torch.equal(batch.tokens[:, 1:], batch.labels[:, :-1])

    @given(st.integers(1, 400), st.integers(1, 64))
    def test_a_smaller_sample_is_the_start_of_a_larger_one(self, sequences: int, samples: int) -> None:
        drawn = permutation(sequences, "validation", 7)
        assert sorted(drawn.tolist()) == list(range(sequences))
        assert permutation(sequences, "validation", 7)[:samples].tolist() == drawn[:samples].tolist()

    def test_the_sample_is_of_the_whole_text_and_always_the_same(self, tmp_path: Path) -> None:
        """Half of the held-out documents are of kind B, all at the end of the file."""
        kind_b = 4000 // 2
        numbered(tmp_path, 4000, name="validation")
        starts = [
            sequence[0]
            for sequence in ValidationData(tmp_path, sequence_length=LENGTH, samples=64)
            .batch(range(64), torch.device("cpu"))
            .tokens.tolist()
        ]
        assert len(set(starts)) == 64
        assert 0.35 < sum(start >= kind_b for start in starts) / 64 < 0.65
        smaller = ValidationData(tmp_path, sequence_length=LENGTH, samples=8)
        assert smaller.batch(range(8), torch.device("cpu")).tokens[:, 0].tolist() == starts[:8]

    def test_the_draw_is_pinned_down(self) -> None:
        """Another one would be another measure under the same name."""
        assert permutation(8, "validation", 161, 16).tolist() == [4, 5, 3, 1, 2, 6, 0, 7]

    def test_one_sequence_is_enough_and_less_is_refused(self, text: Path) -> None:
        assert len(ValidationData(text, sequence_length=402, samples=8)) == 1
        with pytest.raises(UserError, match="403 validation tokens are less than one sequence of 403"):
            ValidationData(text, sequence_length=403, samples=8)

    def test_the_loss_is_the_mean_over_all_tokens_however_they_are_batched(self, text: Path, engine: Runtime) -> None:
        model = build(architecture(), engine, sequence_length=LENGTH)
        randomize(model)
        model.train()
        data = ValidationData(text, sequence_length=LENGTH, samples=10)
        everything = data.batch(range(10), engine.device)
        with torch.no_grad():
            logits = model(everything.tokens, everything.positions, None)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), everything.labels.flatten()).item()
        for size in (1, 3, 10, 99):
            found = validation_loss(model, data, engine, Context(Store(text), Events(), text), batch_size=size).loss
            assert found == pytest.approx(expected, rel=1e-6)
        assert model.training


def test_ranks_stop_before_the_same_batch_though_one_has_fewer(text: Path) -> None:
    """Of five batches rank 0 has three and rank 1 two; rank 1 is told in its last."""
    code = """
        import os, signal, sys
        from pathlib import Path
        from engine_models import architecture, finetune_job, randomize
        from compression_pipeline.artifact import Store
        from compression_pipeline.context import Context, StopFlag
        from compression_pipeline.errors import Interrupted
        from compression_pipeline.events import Events
        from compression_pipeline.megatron.runtime import runtime

        with runtime(finetune_job()) as current:
            from compression_pipeline.text.batches import ValidationData
            from compression_pipeline.megatron.model import build
            from compression_pipeline.megatron.validation import validation_loss

            seen = []

            class Told(ValidationData):
                def batch(self, indices, device):
                    seen.append(indices.start)
                    if (current.rank, len(seen)) == (1, 2):
                        os.kill(os.getpid(), signal.SIGTERM)
                    return super().batch(indices, device)

            folder = Path(os.environ["TEXT"])
            context = Context(Store(folder), Events(), folder, stop=StopFlag())
            context.stop.watch()
            model = build(architecture(), current, sequence_length=16).train()
            randomize(model)
            try:
                validation_loss(model, Told(folder, sequence_length=16, samples=5), current, context, batch_size=1)
            except Interrupted as told:
                print(current.rank, seen, told, model.training)
        """
    said = "was told to stop (SIGTERM) while it measured the validation loss True"
    with closing(Meeting(2)) as meeting:
        ranks = [python(code, RANK=str(rank), TEXT=str(text), **meeting.environment) for rank in range(2)]
        for rank, batches in zip(ranks, ("0 [0, 2]", "1 [1, 3]"), strict=True):
            output, errors = rank.communicate(timeout=540)
            assert output.strip() == f"{batches} {said}", errors


@given(st.integers(1, 5000), st.integers(1, 6000))
def test_largest_divisor(number: int, limit: int) -> None:
    found = largest_divisor(number, limit)
    assert number % found == 0
    assert found <= limit
    assert all(number % other for other in range(found + 1, min(number, limit) + 1))
