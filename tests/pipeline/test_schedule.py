"""Learning rates, operation counts and histories: pure functions."""

import json
import math

import pytest
from engine_models import architecture
from hypothesis import given
from hypothesis import strategies as st

from compression_pipeline.config import FinetuneConfig, Recomputation
from compression_pipeline.engines.history import MOST_ENTRIES, History, StepEntry, ValidationEntry
from compression_pipeline.engines.schedule import learning_rate
from compression_pipeline.sizing import GPUS, find_gpu, forward_flops, training_flops


@st.composite
def settings(draw: st.DrawFn) -> FinetuneConfig:
    low, high = sorted(draw(st.tuples(st.floats(0, 1), st.floats(1e-9, 1))))
    return FinetuneConfig(
        steps=draw(st.integers(1, 2000)),
        warmup_steps=draw(st.integers(0, 300)),
        learning_rate=max(high, 1e-9),
        min_learning_rate=low,
    )


@given(settings(), st.data())
def test_the_rate_rises_to_the_peak_and_falls_to_the_minimum(chosen: FinetuneConfig, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, chosen.steps - 1))
    rate = learning_rate(step, chosen)
    assert 0 < rate <= chosen.learning_rate * (1 + 1e-9) or rate == chosen.min_learning_rate
    if step + 1 < chosen.steps:
        after = learning_rate(step + 1, chosen)
        rising = step + 1 < chosen.warmup_steps
        assert after >= rate if rising else after <= rate * (1 + 1e-9)
    if chosen.warmup_steps and chosen.warmup_steps <= chosen.steps:
        assert learning_rate(chosen.warmup_steps - 1, chosen) == pytest.approx(chosen.learning_rate)
    if chosen.warmup_steps < chosen.steps:
        assert learning_rate(chosen.steps - 1, chosen) == pytest.approx(chosen.min_learning_rate, abs=1e-12)


def test_the_middle_of_the_cosine_is_the_middle_of_the_rates() -> None:
    chosen = FinetuneConfig(steps=110, warmup_steps=10, learning_rate=1e-3, min_learning_rate=1e-4)
    assert learning_rate(0, chosen) == pytest.approx(1e-4)
    assert learning_rate(59, chosen) == pytest.approx(5.5e-4)


def test_operations_of_llama_3_1_8b() -> None:
    shape = architecture(
        layers=32, hidden_size=4096, ffn_hidden_size=14336, attention_heads=32, query_groups=8, head_dim=128,
        vocabulary_size=128256,
    )  # fmt: skip
    # Every weight but the embedding's and the norms' multiplies each token: 8,030,261,248 - 525,336,576 - 266,240.
    weights = 7_504_658_432
    assert forward_flops(shape, 1) == pytest.approx(2 * weights + 4 * 4096 * 32)
    # 8,192 tokens of context: 4,096.5 positions on average, two products of 4,096 channels in 32 layers.
    assert forward_flops(shape, 8192) == pytest.approx(2 * weights + 32 * 4 * 4096 * 4096.5)
    assert training_flops(shape, 8192) == 3 * forward_flops(shape, 8192)
    assert training_flops(shape, 8192, shape) == 4 * forward_flops(shape, 8192)
    again = {what: training_flops(shape, 8192, None, what) - training_flops(shape, 8192) for what in Recomputation}
    words = 2 * shape.vocabulary_size * shape.hidden_size
    assert again[Recomputation.FULL] == forward_flops(shape, 8192) - words, "a forward pass without the output layer"
    mlps = 2 * shape.layers * 3 * shape.hidden_size * shape.ffn_hidden_size
    assert again[Recomputation.SELECTIVE] == mlps and again[Recomputation.NONE] == 0
    tied = shape.model_copy(update={"tied_embeddings": True})
    assert forward_flops(tied, 8192) == forward_flops(shape, 8192)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA RTX 6000 Ada Generation", 364.2e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("Tesla T4", None),
        ("NVIDIA A1000", None),
        ("NVIDIA A100-SXM4-40GB-MIG-1g.5gb", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_peaks_by_the_drivers_names(name: str, peak: float | None) -> None:
    found = find_gpu(name)
    assert (found and found.peak_flops) == peak
    assert all(1e13 < gpu.peak_flops < 1e16 for gpu in GPUS.values())


@pytest.mark.parametrize(
    ("name", "gibibytes"),
    [("NVIDIA-H100-80GB-HBM3", 79.6), ("NVIDIA-A100-SXM4-40GB", 40), ("a100", 80), ("H200", 140.4), ("L40S", 45)],
)
def test_memory_by_the_names_of_nodes_and_people(name: str, gibibytes: float) -> None:
    found = find_gpu(name)
    assert found is not None and found.memory / 1024**3 == pytest.approx(gibibytes, abs=0.1)


finite = st.floats(allow_nan=False, allow_infinity=False)
entries = st.builds(StepEntry, st.integers(1, 100), finite, finite, finite, finite)


@given(st.lists(entries), st.lists(st.builds(ValidationEntry, st.integers(0, 100), finite)))
def test_histories_survive_json_to_the_last_bit(train: list[StepEntry], validation: list[ValidationEntry]) -> None:
    history = History(100, train, validation)
    assert History.from_json(json.loads(json.dumps(history.to_json()))) == history


@pytest.mark.parametrize("total", [1, 17, MOST_ENTRIES, MOST_ENTRIES + 1, 3 * MOST_ENTRIES + 5])
def test_long_histories_are_thinned(total: int) -> None:
    history = History(total)
    for step in range(1, total + 1):
        history.add_step(StepEntry(step, 1.0, 1e-4, 1.0, float(step)))
    assert len(history.train) <= MOST_ENTRIES + 1
    assert history.train[-1].step == total
    assert len(history.train) >= min(total, MOST_ENTRIES // 2)
    rate = history.tokens_per_second
    assert rate is not None
    assert math.isclose(rate, total / 2, rel_tol=0.01, abs_tol=1)


def test_no_steps_have_no_rate() -> None:
    assert History(5).tokens_per_second is None
