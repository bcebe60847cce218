"""Pruning in several cuts: importance is measured again on the model as it was cut so far."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from manifests import a_run, told
from pages import Page
from safetensors.torch import load_file
from slicing import sliced, weights
from stores import DATA, TEACHER, common, context, make_store

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import Architecture, Family, PruneConfig, PruneJob, student_architecture
from compression_pipeline.huggingface.files import inspect
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import prune as phase
from compression_pipeline.phases.cutting import cutting_steps

LARGE = Architecture(
    family=Family.LLAMA,
    layers=32,
    hidden_size=4096,
    ffn_hidden_size=14336,
    attention_heads=32,
    query_groups=8,
    head_dim=128,
    vocabulary_size=128256,
    tied_embeddings=False,
)


@given(st.data())
def test_the_cuts_lead_to_the_sizes_by_legal_ones(data: st.DataObject) -> None:
    prune = PruneConfig(
        hidden_size=data.draw(st.integers(1, 64)) * 64,
        ffn_hidden_size=data.draw(st.integers(1, 224)) * 64,
        attention_heads=data.draw(st.integers(1, 4)) * 8,
        layers=data.draw(st.integers(1, 32)),
        iterations=data.draw(st.integers(1, 8)),
    )
    steps, shape = cutting_steps(LARGE, prune), LARGE
    assert 1 <= len(steps) <= prune.iterations
    for step in steps:
        after = student_architecture(shape, step)
        sizes = [(one.hidden_size, one.ffn_hidden_size, one.attention_heads, one.layers) for one in (shape, after)]
        assert all(before >= now for before, now in zip(*sizes, strict=True))
        assert after.hidden_size % 64 == after.ffn_hidden_size % 64 == after.attention_heads % 8 == 0
        shape = after
    assert shape == student_architecture(LARGE, prune)


def test_named_layers_go_first_and_one_cut_is_what_is_asked_for() -> None:
    named = PruneConfig(hidden_size=2048, drop_layers=[2, 3], iterations=2)
    first, second = cutting_steps(LARGE, named)
    assert (first.drop_layers, second.drop_layers) == ([2, 3], None)
    assert (first.hidden_size, second.hidden_size) == (2880, 2048)  # about 4096 / sqrt(2)
    once = PruneConfig(hidden_size=2048, layers=16)
    assert cutting_steps(LARGE, once) == [once]


def test_keys_are_as_before_unless_it_is_asked_for() -> None:
    def key(**prune: Any) -> str:
        run = a_run(students=[{"name": "width", "prune": {"hiddenSize": 64, **prune}}])
        return told(run, "prune-width", PruneJob).fingerprint

    assert key() == key(iterations=1) != key(iterations=2)


def cut(store: Store, mark: str, prune: PruneConfig, teacher: str = TEACHER) -> Artifact:
    job = PruneJob(
        **common(store, "prune-width", mark * 32), data=DATA, teacher=teacher, sequence_length=32, prune=prune
    )
    phase.run(job, context(store, mark * 32)[0])
    return store.open(f"prune-{mark * 32}")


@pytest.mark.parametrize("kind", ["llama3", "qwen2-tied"])
def test_the_second_cut_is_chosen_on_the_first_one_s_model(
    tmp_path: Path, engine: Runtime, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Two cuts give, to the bit, what a prune of the student of a prune gives."""
    monkeypatch.setattr("compression_pipeline.megatron.engine.runtime", lambda job, **_: contextlib.nullcontext(engine))
    store = make_store(tmp_path, kind, num_hidden_layers=5, num_attention_heads=8)
    target = PruneConfig(
        hidden_size=32, ffn_hidden_size=48, attention_heads=4, layers=3, divisor=8, calibration_samples=8, iterations=2
    )
    teacher = inspect(store.open(TEACHER).model).architecture
    first, second = (step.model_copy(update={"iterations": 1}) for step in cutting_steps(teacher, target))
    assert (first.hidden_size, first.layers, second.layers) == (40, 4, 3)
    twice = cut(store, "1", target)
    half = cut(store, "2", first)
    whole = cut(store, "3", second, teacher=half.name)
    assert inspect(twice.model).architecture == inspect(whole.model).architecture
    made, expected = weights(twice), weights(whole)
    assert made.keys() == expected.keys() and all(torch.equal(made[name], expected[name]) for name in made)
    again = load_file(twice.path / "importance-2.safetensors")
    assert all(
        torch.equal(found, again[name]) for name, found in load_file(whole.path / "importance.safetensors").items()
    )

    chosen = json.loads((twice.path / "chosen.json").read_text())  # in the teacher's own numbers
    cuttings = sliced(weights(store.open(TEACHER)), teacher, chosen)
    assert all(torch.equal(made[name], cuttings[name]) for name in made)
    assert [len(step["layers"]) for step in chosen["steps"]] == [4, 3]
    assert chosen["steps"][1]["layers"] == chosen["layers"]
    text = " ".join(Page((twice.path / "importance.html").read_text(encoding="utf-8")).text.split())
    assert "Cut by cut" in text and "hidden 40, FFN" in text
