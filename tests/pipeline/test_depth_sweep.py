"""Depth by loss: each loss is that of a model whose layers are really gone, and the best block is what is dropped."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from checkpoints import save_model
from manifests import a_run, judged, told
from pages import Page
from safetensors.torch import load_file, save_file
from stores import DATA, TEACHER, common, context, make_store
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from compression_pipeline.config import Axis, ImportanceConfig, PruneConfig, PruneJob, PruneResult
from compression_pipeline.huggingface import conversion
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.importance import Samples, measure, scorers
from compression_pipeline.importance.ranking import best_block
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import prune as phase
from compression_pipeline.phases import ranking
from compression_pipeline.report.charts import SPAN, LineChart
from compression_pipeline.report.importance import read_importance
from compression_pipeline.report.phases.prune import REPORT, importance_panels
from compression_pipeline.sizing.sweep import block_lengths
from compression_pipeline.text.batches import Batch

BY_LOSS = ImportanceConfig(depth="LMLoss")


def held_out(vocabulary: int, passes: int = 2, size: int = 3, length: int = 24) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randint(0, vocabulary, (size, length + 1), generator=generator) for _ in range(passes)]
    positions = torch.arange(length).expand(size, -1)
    return [Batch(tokens=text[:, :-1].contiguous(), positions=positions, labels=text[:, 1:]) for text in drawn]


@pytest.mark.parametrize("kind", ["llama3", "qwen2-tied", "nemotron"])
def test_losses_are_those_of_models_without_the_layers(tmp_path: Path, engine: Runtime, kind: str) -> None:
    folder = save_model(tmp_path / "model", kind, num_hidden_layers=5)
    architecture = read_architecture(folder)
    model = build(architecture, engine, sequence_length=24)
    conversion.load_into(model, architecture, folder)
    layers, text, said = list(model.decoder.layers), held_out(architecture.vocabulary_size), list[tuple[int, int]]()
    samples = Samples((), text, lambda done, total: said.append((done, total)), dropped=3)
    found = measure(model, architecture, samples, scorers(BY_LOSS, [Axis.LAYERS]))
    assert list(model.decoder.layers) == layers
    assert not any(module._forward_pre_hooks for module in model.modules())

    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    whole = list(oracle.model.layers)

    def loss(kept: list[nn.Module]) -> float:
        oracle.model.layers = nn.ModuleList(kept)
        oracle.config.num_hidden_layers = len(kept)
        with torch.no_grad():
            each = [
                cross_entropy(oracle(batch.tokens, use_cache=False).logits.flatten(0, 1), batch.labels.flatten())
                for batch in text
            ]
        return float(torch.stack(each).mean())

    blocks = found["layers.blocks"].tolist()
    assert [(first, length) for first, length, _ in blocks[1:]] == [
        (first, length) for first in range(1, 6) for length in (1, 2, 3, 4) if first + length <= 6
    ]
    assert blocks[0][:2] == [0, 0]
    for first, length, value in blocks:
        start, end = int(first) - 1, int(first) - 1 + int(length)
        kept = whole[:start] + whole[end:] if length else whole
        assert value == pytest.approx(loss(kept), abs=1e-5), (first, length)
    alone = [value - blocks[0][2] for _, length, value in blocks if length == 1]
    assert found["layers"].tolist() == pytest.approx(alone, abs=1e-6)
    assert said[-1] == (2 * 14, 2 * 14) and len(said) == 2 * 14


def test_lengths_and_the_best_block() -> None:
    assert block_lengths(32, 16) == [1, 2, 4, 8, 16]
    assert block_lengths(8, 3) == [1, 2, 3, 4]
    assert block_lengths(1, None) == []
    blocks = torch.tensor([[0, 0, 1.0], [1, 2, 3.0], [2, 2, 2.0], [3, 2, 2.0], [1, 1, 0.5]], dtype=torch.float64)
    assert best_block(blocks, 2) == range(2, 4)  # of equals the later
    scores = torch.tensor([[0, 0, 0.5], [1, 1, 0.25], [2, 1, 0.4], [3, 1, 0.4], [4, 1, 0.3]], dtype=torch.float64)
    assert best_block(scores, 1, higher_is_better=True) == range(2, 3)


def asked(**importance: Any) -> dict[str, Any]:
    return {"students": [{"name": "depth", "prune": {"layers": 2, "importance": importance}}]}


def test_the_manifest_names_it_and_the_key_follows() -> None:
    default, by_loss, fewer = (
        told(a_run(**asked(**importance)), "prune-depth", PruneJob)
        for importance in ({}, {"depth": "LMLoss"}, {"depth": "LMLoss", "depthSamples": 8})
    )
    assert len({job.fingerprint for job in (default, by_loss, fewer)}) == 3
    assert judged(**asked(depthSamples=8)) == [
        "spec.students[0].prune.importance.depthSamples: is a setting of depth: LMLoss or Task; leave it out, or "
        "change depth"
    ]


def test_a_student_loses_the_best_block_and_another_depth_is_cut_from_the_same_sweep(
    tmp_path: Path, engine: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compression_pipeline.megatron.engine.runtime", lambda job, **_: contextlib.nullcontext(engine))
    store = make_store(tmp_path, num_hidden_layers=6)

    def run(layers: int, mark: str) -> tuple[Any, list[dict[str, Any]]]:
        prune = PruneConfig(layers=layers, divisor=16, calibration_samples=8, importance=BY_LOSS)
        job = PruneJob(
            **common(store, "prune-depth", mark * 32), data=DATA, teacher=TEACHER, sequence_length=32, prune=prune
        )
        within, recorder = context(store, mark * 32)
        phase.run(job, within)
        return store.open(f"prune-{mark * 32}"), recorder.seen

    made, seen = run(4, "1")
    table = load_file(made.path / "importance.safetensors")["layers.blocks"]
    dropped = best_block(table, 2)
    expected = [layer + 1 for layer in range(6) if layer not in dropped]
    assert made.result(PruneResult).kept_layers == expected
    losses = {(int(first), int(length)): loss for first, length, loss in table.tolist()}
    assert made.result(PruneResult).block_score == losses[dropped[0] + 1, 2]
    chosen = json.loads((made.path / "chosen.json").read_text())
    assert chosen["methods"]["layers"] == "LMLoss"
    assert {(row["first"], row["layers"]): row["value"] for row in chosen["blocks"]} == losses
    sweep = [event for event in seen if event["event"] == "progress" and event.get("doing") == "leave out layers"]
    assert sweep and sweep[-1]["step"] == sweep[-1]["totalSteps"] and sweep[-1]["etaSeconds"] == 0
    text = " ".join(Page((made.path / "importance.html").read_text(encoding="utf-8")).text.split())
    for words in ("Loss without a block of layers", "1 layer", "4 layers", "teacher", "first layer dropped"):
        assert words in text

    second, seen = run(5, "2")
    assert second.manifest.metrics["scoresReused"] == ["ActivationMagnitude", "LMLoss"]
    assert len(second.result(PruneResult).kept_layers) == 5
    third, _ = run(3, "3")  # of three layers no block was left out before
    assert third.manifest.metrics["scoresReused"] == ["ActivationMagnitude"]


def test_what_is_dear_does_not_hide_the_rest_in_the_picture(tmp_path: Path) -> None:
    rows = [(0, 0, 2.0), (1, 1, 40.0), *((first, 1, 2.0 + first / 10) for first in range(2, 9))]
    save_file({"layers.blocks": torch.tensor(rows, dtype=torch.float64)}, tmp_path / "importance.safetensors")
    (tmp_path / "chosen.json").write_text(json.dumps({"layers": [2]}))
    panels = importance_panels(None, [2], read_importance(tmp_path), named=False)
    (chart,) = [panel for panel in panels if isinstance(panel, LineChart)]
    assert "the worst are drawn at the upper edge" in chart.note
    heights = [float(path.split()[1].removesuffix("h0")) for path, _ in chart.lines[0].dots]
    assert heights == [max(height, heights[0]) for height in heights] and heights[1] - heights[-1] > SPAN / 4
    assert "first layer dropped 1: 40.000" in chart.lines[0].dots[0][1]


def test_the_card_says_what_the_choice_on_validation_text_favours() -> None:
    def card(**prune: Any) -> str:
        job = told(a_run(students=[{"name": "depth", "prune": {"layers": 2, **prune}}]), "prune-depth", PruneJob)
        pruned = SimpleNamespace(kept_layers=[1, 4])
        whole = SimpleNamespace(teacher=SimpleNamespace(layers=4))
        return " ".join(
            REPORT.card(cast(Any, SimpleNamespace(prune=(job, pruned), prepare=whole, calibration_samples=8)))
        )

    favours = "on the validation text, so validation losses favour this choice slightly"
    assert favours in card(importance={"depth": "LMLoss"}) and favours not in card()


class Killed(BaseException):
    """As a SIGKILL: nothing of ours runs after it."""


def test_a_sweep_that_was_killed_goes_on_with_the_next_block(
    tmp_path: Path, engine: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compression_pipeline.megatron.engine.runtime", lambda job, **_: contextlib.nullcontext(engine))
    monkeypatch.setattr(ranking, "CALIBRATION_TOKENS", 128)  # three passes over the 12 sequences

    def run(folder: Path, attempts: list[int | None]) -> tuple[bytes, list[list[int]]]:
        store = make_store(folder, num_hidden_layers=4)
        prune = PruneConfig(layers=2, calibration_samples=8, importance=BY_LOSS)
        told: list[list[int]] = []
        for attempt, killed_after in enumerate(attempts, start=1):
            within, recorder = context(store, "1" * 32, attempt)
            steps: list[int] = []
            told.append(steps)

            def write(
                event: str, steps: list[int] = steps, killed_after: int | None = killed_after, **said: Any
            ) -> None:
                if event == "progress" and said.get("doing") == "leave out layers":
                    steps.append(said["step"])
                    if len(steps) == killed_after:
                        raise Killed

            monkeypatch.setattr(recorder, "_write", write)
            job = PruneJob(
                **common(store, "prune-depth", "1" * 32, attempt),
                data=DATA,
                teacher=TEACHER,
                sequence_length=32,
                prune=prune,
            )
            with contextlib.suppress(Killed):
                phase.run(job, within)
        return (store.open(f"prune-{'1' * 32}").path / "importance.safetensors").read_bytes(), told

    whole, (every,) = run(tmp_path / "whole", [None])
    resumed, (first, second, third) = run(tmp_path / "killed", [4, 5, None])
    assert first + second + third == every and len(every) > 9
    assert resumed == whole
