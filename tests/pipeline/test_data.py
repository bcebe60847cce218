"""Training batches are a function of (seed, step); validation sequences are always the same ones."""

from contextlib import closing
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
from compression_pipeline.config import FinetuneConfig
from compression_pipeline.context import Context
from compression_pipeline.errors import UserError
from compression_pipeline.events import Events
from compression_pipeline.megatron.data import (
    TrainingData,
    ValidationData,
    largest_divisor,
)
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.megatron.validation import validation_loss

LENGTH = 16


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    save_text(folder, 4000, 403)
    return folder


def training_data(
    text: Path, engine: Runtime, cache: Path, rank: int = 0, ranks: int = 1, **fields: int
) -> TrainingData:
    settings = FinetuneConfig(steps=20, global_batch_size=8, micro_batch_size=2, seed=3).model_copy(update=fields)
    place = Runtime(rank, rank, ranks, engine.device, engine.dtype, True, 1)
    return TrainingData(text, settings, place, sequence_length=LENGTH, cache=cache)


def batch_of(data: TrainingData, step: int) -> list[list[int]]:
    """The tokens of a step, in order."""
    return [row for batch in data.batches(step) for row in batch.tokens.tolist()]


class TestTraining:
    def test_a_step_has_the_same_batch_whenever_it_is_asked_for(
        self, text: Path, engine: Runtime, tmp_path: Path
    ) -> None:
        first, second = (training_data(text, engine, tmp_path / name) for name in "ab")
        expected = [batch_of(first, step) for step in range(20)]
        assert [batch_of(second, step) for step in reversed(range(20))] == expected[::-1]
        assert batch_of(first, 7) == expected[7]

    def test_the_seed_decides_the_order(self, text: Path, engine: Runtime, tmp_path: Path) -> None:
        batches = [batch_of(training_data(text, engine, tmp_path, seed=seed), 0) for seed in (3, 4, 3)]
        assert batches[0] == batches[2] != batches[1]

    def test_labels_are_the_tokens_one_further(self, text: Path, engine: Runtime, tmp_path: Path) -> None:
        data = training_data(text, engine, tmp_path)
        for number, batch in enumerate(data.batches(2)):
            assert batch.tokens.shape == batch.labels.shape == batch.positions.shape == (2, LENGTH)
            assert torch.equal(batch.tokens[:, 1:], batch.labels[:, :-1])
            assert batch.positions.tolist() == [list(range(LENGTH))] * 2
            assert data.sequence(16 + 2 * number).tolist() == [*batch.tokens[0].tolist(), int(batch.labels[0, -1])]

    def test_an_epoch_has_every_token_once(self, text: Path, engine: Runtime, tmp_path: Path) -> None:
        # 4,000 tokens are 249 sequences of 16 and their labels: 31 batches of 8, and one sequence more.
        data = training_data(text, engine, tmp_path, steps=31)
        seen = numpy.sort(numpy.concatenate([row for step in range(31) for row in batch_of(data, step)]))
        counts = numpy.bincount(seen, minlength=320)
        available = numpy.bincount(numpy.fromfile(text / "train.bin", dtype=numpy.uint16), minlength=320)
        assert (counts <= available).all()
        assert counts.sum() == 31 * 8 * LENGTH

    @pytest.mark.parametrize("ranks", [2, 4])
    def test_ranks_share_a_batch(self, text: Path, engine: Runtime, tmp_path: Path, ranks: int) -> None:
        whole = training_data(text, engine, tmp_path)
        parts = [training_data(text, engine, tmp_path, rank, ranks) for rank in range(ranks)]
        for step in (0, 5, 19):
            assert [row for part in parts for row in batch_of(part, step)] == batch_of(whole, step)

    @pytest.mark.parametrize(("ranks", "nearest"), [(3, "6 or 9"), (16, "16")])
    def test_a_batch_that_does_not_divide_is_refused(
        self, text: Path, engine: Runtime, tmp_path: Path, ranks: int, nearest: str
    ) -> None:
        with pytest.raises(UserError, match=f"globalBatchSize: 8 .* {ranks} ranks; nearest: {nearest}"):
            training_data(text, engine, tmp_path, 0, ranks)

    def test_text_for_one_batch_is_just_enough(self, engine: Runtime, tmp_path: Path) -> None:
        save_text(tmp_path / "enough", 8 * LENGTH + 1, 40, document=43)
        assert len(batch_of(training_data(tmp_path / "enough", engine, tmp_path / "a", steps=1), 0)) == 8
        save_text(tmp_path / "less", 8 * LENGTH, 40, document=32)
        with pytest.raises(UserError, match="128 training tokens are less than one batch of 8 sequences of 16"):
            training_data(tmp_path / "less", engine, tmp_path / "b", steps=1)

    def test_a_long_run_goes_round(self, engine: Runtime, tmp_path: Path) -> None:
        save_text(tmp_path / "text", 200, 40)
        data = training_data(tmp_path / "text", engine, tmp_path / "order", steps=100)
        assert len({tuple(row) for step in range(100) for row in batch_of(data, step)}) > 12
        assert len(batch_of(data, 99)) == 8


class TestValidation:
    def test_sequences_follow_one_another(self, text: Path) -> None:
        tokens = numpy.fromfile(text / "validation.bin", dtype=numpy.uint16).astype(int)
        data = ValidationData(text, sequence_length=LENGTH, samples=1000)
        assert len(data) == (403 - 1) // LENGTH == 25
        batch = data.batch(range(3, 5), torch.device("cpu"))
        assert batch.tokens.tolist() == [tokens[48:64].tolist(), tokens[64:80].tolist()]
        assert batch.labels.tolist() == [tokens[49:65].tolist(), tokens[65:81].tolist()]
        assert len(ValidationData(text, sequence_length=LENGTH, samples=7)) == 7

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
            found = validation_loss(model, data, engine, Context(Store(text), Events(), text), batch_size=size)
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
            from compression_pipeline.megatron.data import ValidationData
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
