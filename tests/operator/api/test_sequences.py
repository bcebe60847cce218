"""Sequences that the teacher, or the text, is too short for are refused before a GPU is asked for."""

from typing import Any

import jobs_results
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs_world import World, manifest, student
from looks import PREPARED, at, condition, created, deleted, open_jobs, states, step

from compression_operator.api.status import RunPhase
from compression_pipeline.config import passes


@pytest.mark.parametrize("corrected", [True, False], ids=["with finetune", "without"])
@pytest.mark.parametrize(
    ("length", "fault"),
    [
        (4096, "spec.dataset.sequenceLength: 4096 is more than the teacher's 2048 positions"),
        (1500, "spec.dataset.source: hf://owner/text has 1000 tokens of validation text, fewer than one sequence of"),
    ],
)
def test_sequences_that_cannot_be_trained_on_ask_for_no_gpu(
    length: int, fault: str, corrected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepare would say so, but what it makes is the same for every length: it is not run again."""
    monkeypatch.setattr(jobs_results, "VALIDATION_TOKENS", 1000)
    world = World(manifest() if corrected else manifest(finetune=None))
    first = ["finetune"] if corrected else ["prune-width", "prune-depth"]
    at(world, *PREPARED)
    running = open_jobs(world)
    world.edit(dataset={"source": "hf://owner/text", "sequenceLength": length})
    decision = world.look()
    assert (created(decision), deleted(decision)) == ([], running)
    assert world.status.phase is RunPhase.FAILED and states(world)["prepare"] == "Succeeded"
    for name in first:
        assert step(world, name).message.startswith(fault)
    assert fault in condition(world, "Stalled").message
    for name in running:
        world.settle(name)
    assert created(world.look()) == []
    world.edit(dataset={"source": "hf://owner/text", "sequenceLength": 128})
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


BATCH = {"steps": 100, "globalBatchSize": 800_000}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"finetune": BATCH}, "finetune"),
        ({"distill": BATCH}, "distill"),
        (
            {"students": [student("width", hiddenSize=128), student("own", BATCH, dropLayers=[3])]},
            "students[1].distill",
        ),
    ],
)
def test_a_batch_of_more_text_than_there_is_asks_for_no_gpu(spec: dict[str, Any], field: str) -> None:
    length, tokens = 128, 100_000_000
    dataset = {"source": "hf://owner/text", "sequenceLength": length}
    world = World(manifest(dataset=dataset, **spec))
    at(world, *PREPARED[:1])
    assert world.status.phase is RunPhase.FAILED and states(world)["prepare"] == "Succeeded"
    said = condition(world, "Stalled").message
    assert f"{tokens} tokens of train text, fewer than one batch takes: {field}.globalBatchSize (800000) x" in said
    assert f"= {800_000 * length + 1}; give more text, or lower sequenceLength or {field}.globalBatchSize" in said
    assert f"(to {(tokens - 1) // length} at most)" in said
    world.edit(dataset={**dataset, "sequenceLength": length // 2})
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


@given(st.integers(2, 10_000), st.integers(1, 64), st.integers(1, 2_000))
def test_how_often_a_training_sees_its_text(text_tokens: int, length: int, sequences: int) -> None:
    """As counted over an order that repeats nothing within an epoch."""
    per_epoch = max(1, (text_tokens - 1) // length)
    order = [index % per_epoch for index in range(sequences)]
    seen = passes(text_tokens=text_tokens, sequence_length=length, sequences=sequences)
    assert seen.tokens == len(order) * length
    assert seen.unique_tokens == len(set(order)) * length
    assert seen.repeated == pytest.approx(1 - len(set(order)) / len(order))
    assert seen.epochs == len(order) / per_epoch


def test_repeats_are_told() -> None:
    once = passes(text_tokens=1001, sequence_length=10, sequences=50)
    assert str(once) == "500 tokens: 0.5 epochs, 500 different ones"
    again = passes(text_tokens=1001, sequence_length=10, sequences=130)
    assert str(again) == "1,300 tokens: 1.3 epochs, 1,000 different ones, 23 % of them seen before"
