"""A search for a speed: shapes are timed with random weights, and those that are fast enough are candidates."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from published import LLAMA_8B
from stores import DATA, TEACHER, Recorder, common, context, make_store

from compression_pipeline.artifact import Store
from compression_pipeline.config import (
    GenerationConfig,
    GenerationFigures,
    PruneConfig,
    SearchedAxis,
    SearchJob,
    SearchResult,
    Shape,
    SizeBounds,
    TargetConfig,
    ValidationConfig,
)
from compression_pipeline.errors import Interrupted, UserError
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import search
from compression_pipeline.tasks.live import random_model

SEARCHED = "5" * 32
QUICK = GenerationConfig(prompt_tokens=4, new_tokens=4, repeats=1)


@pytest.fixture(autouse=True)
def shared_engine(engine: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The phases find the process group that the tests share: there is one in a process."""
    monkeypatch.setattr("compression_pipeline.megatron.engine.runtime", lambda job, **_: contextlib.nullcontext(engine))


def run(store: Store, wanted: float, *, attempt: int = 1, **target: Any) -> tuple[SearchResult, Recorder]:
    axes = {"axes": [SearchedAxis.HIDDEN_SIZE, SearchedAxis.LAYERS], "layers": SizeBounds(min=3), "candidates": 3}
    prune = PruneConfig(
        target=TargetConfig(tokens_per_second=wanted, **{**axes, **target}), divisor=16, calibration_samples=4
    )
    told = {"data": DATA, "teacher": TEACHER, "sequence_length": 32, "validation": ValidationConfig(samples=4)}
    job = SearchJob(**common(store, "search-small", SEARCHED, attempt), **told, prune=prune, generation=QUICK)
    inside, recorder = context(store, SEARCHED, attempt)
    return search.run(job, inside), recorder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A machine of a known speed: every layer takes a millisecond, and every 16 channels of its width another tenth."""
    timed: list[int] = []

    def measured(model: Any, settings: GenerationConfig, *, before: int | None) -> GenerationFigures:
        assert settings == QUICK
        if len(timed) == 2 and -1 in timed:
            timed.remove(-1)
            raise Interrupted("was told to stop")
        config = model.config
        timed.append(sum(p.numel() for p in model.parameters()))
        seconds = config.num_hidden_layers * (1 + config.hidden_size / 160) / 1000
        from compression_pipeline.tasks.generation import device_name

        return GenerationFigures(
            tokens_per_second=1 / seconds, first_token_seconds=0.1, device=device_name(torch.device("cpu"))
        )

    monkeypatch.setattr("compression_pipeline.tasks.generation.measure_generation", measured)
    yield timed


def speed(shape: Any) -> float:
    return 1000 / (shape.layers * (1 + shape.hidden_size / 160))


def test_the_least_cut_shapes_that_are_fast_enough_are_measured(tmp_path: Path, clock: list[int]) -> None:
    store = make_store(tmp_path, num_hidden_layers=6)
    teacher = read_architecture(store.open(TEACHER).model)
    wanted = speed(teacher) * 1.05
    found, recorder = run(store, wanted)
    assert found.timed is not None and found.timed + 1 == len(clock) == len(set(clock)), "each shape once"
    assert found.teacher_generation is not None
    assert found.teacher_generation.tokens_per_second == pytest.approx(speed(teacher))
    assert 1 < len(found.candidates) <= 3 and 0 < found.shapes <= found.timed
    for one in found.candidates:
        assert one.tokens_per_second == pytest.approx(speed(one)) and speed(one) >= wanted
        assert one.pruned_loss is not None
    assert {one.layers for one in found.candidates} != {6}
    losses = [one.pruned_loss or 0 for one in found.candidates]
    assert losses == sorted(losses)
    table = json.loads((store.open(f"search-{SEARCHED}").path / "candidates.json").read_text())
    assert table["candidates"][0]["tokensPerSecond"] == found.candidates[0].tokens_per_second
    assert not [event for event in recorder.seen if event["event"] == "warning"]


def test_a_shape_that_is_a_little_too_slow_is_no_candidate(tmp_path: Path, clock: list[int]) -> None:
    """How far a size may be off is no setting of a speed."""
    store = make_store(tmp_path, num_hidden_layers=6)
    teacher = Shape.of(read_architecture(store.open(TEACHER).model))
    slower = speed(teacher._replace(hidden_size=32))
    assert speed(teacher) < slower
    found, _ = run(store, slower * 1.02)
    assert found.candidates and min(one.tokens_per_second or 0 for one in found.candidates) > slower
    assert max(one.layers for one in found.candidates) < teacher.layers


def test_an_interrupted_search_times_no_shape_again(tmp_path: Path, clock: list[int]) -> None:
    store = make_store(tmp_path, num_hidden_layers=6)
    wanted = speed(read_architecture(store.open(TEACHER).model)) * 1.3
    clock.append(-1)
    with pytest.raises(Interrupted):
        run(store, wanted)
    found, _ = run(store, wanted, attempt=2)
    assert found.timed is not None and len(clock) == found.timed + 1 == len(set(clock))


def test_a_speed_that_no_shape_reaches_is_told_with_the_fastest(
    tmp_path: Path, clock: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, num_hidden_layers=6)
    with pytest.raises(
        UserError,
        match=r"^prune\.target\.tokensPerSecond: no shape generates 100,000 tokens/s on .*; the teacher "
        r"generates .*, and the fastest are 3 layers, hidden .* heads: [0-9.]+; .*; lower the target, or the min of a",
    ):
        run(store, 100_000.0)
    assert len(clock) < 8, "the smallest of each chain, and the teacher"


def test_a_speed_that_the_teacher_has_is_told(tmp_path: Path, clock: list[int]) -> None:
    found, recorder = run(make_store(tmp_path, num_hidden_layers=6), 1.0)
    warned = [event["message"] for event in recorder.seen if event["event"] == "warning"]
    assert len(warned) == 1 and "it need not be cut for 1" in warned[0]
    assert max(one.layers for one in found.candidates) == 6


def test_shapes_are_timed_by_generating(tmp_path: Path) -> None:
    """The real clock: any speed will do."""
    found, _ = run(make_store(tmp_path), 1e-3, candidates=1)
    assert found.timed and all((one.tokens_per_second or 0) > 0 for one in found.candidates)
    assert found.teacher_generation is not None and found.teacher_generation.first_token_seconds > 0


def test_a_random_model_has_the_shape_and_moves_no_generator(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    template = store.open(TEACHER).model
    student = Shape.of(read_architecture(template))._replace(layers=1).architecture(read_architecture(template))
    before = torch.random.get_rng_state()
    model = random_model(student, template=template, computed=torch.bfloat16, device=torch.device("cpu"))
    assert torch.equal(before, torch.random.get_rng_state())
    names = {id(parameter): parameter for parameter in model.parameters()}.values()
    assert sum(parameter.numel() for parameter in names) == student.parameters
    assert {parameter.dtype for parameter in names} == {torch.bfloat16}


def test_a_target_of_speed_plans_with_the_least_cut_shapes() -> None:
    from compression_pipeline.config import Search, student_architecture, student_faults

    prune = PruneConfig(target=TargetConfig(tokens_per_second=60))
    assert not list(student_faults(LLAMA_8B, prune))
    first = student_architecture(LLAMA_8B, prune)
    found = Search.of(LLAMA_8B, prune)
    assert found is not None and first == found.found.best[0] and first.parameters < LLAMA_8B.parameters
