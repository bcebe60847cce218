"""Sequences that the teacher, or the text, is too short for are refused before a GPU is asked for."""

import jobs_results
import pytest
from jobs_world import World, manifest
from looks import PREPARED, at, condition, created, deleted, open_jobs, states, step

from compression_operator.api.status import RunPhase


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
