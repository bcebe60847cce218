"""prune: the student is exactly the chosen part of the teacher, and what can't be made is refused before any work."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from meeting import Meeting
from safetensors.torch import load_file
from slicing import sliced, weights
from stores import DATA, TEACHER, common, context, make_store, publish, save_text
from transformers import AutoModelForCausalLM

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import (
    PRECISION_VARIABLE,
    Aggregation,
    AggregationConfig,
    ImportanceConfig,
    Precision,
    PruneConfig,
    PrunedHeads,
    PruneJob,
    PruneResult,
)
from compression_pipeline.errors import Interrupted, UserError
from compression_pipeline.huggingface.files import inspect, read_config
from compression_pipeline.megatron import minitron
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import prune as phase

pytestmark = pytest.mark.usefixtures("shared_engine")


def job(store: Store, prune: PruneConfig, fingerprint: str = "1" * 32) -> PruneJob:
    return PruneJob(
        **common(store, "prune-width", fingerprint), data=DATA, teacher=TEACHER, sequence_length=32, prune=prune
    )


def run(store: Store, prune: PruneConfig) -> tuple[PruneResult, Artifact, list[dict[str, Any]]]:
    told, recorder = context(store, "1" * 32)
    result = phase.run(job(store, prune), told)
    return result, store.open("prune-" + "1" * 32), recorder.seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gpu_that_cannot_be_used_is_not_replaced_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """The key of a prune that asks for GPUs counts on their arithmetic; this machine has none."""
    store = make_store(tmp_path, dtype=dtype)
    monkeypatch.setenv(PRECISION_VARIABLE, "BF16")
    with pytest.raises(UserError, match=r"planned with a GPU.* none can be used here.*phases\.prune\.gpusPerNode: 0"):
        run(store, PruneConfig(**STUDENTS["width"], divisor=8, calibration_samples=9))
    assert store.find("prune-" + "1" * 32) is None


@pytest.mark.parametrize("told", [None, "FP32", "FP8"])
def test_the_arithmetic_is_the_one_that_was_planned(
    tmp_path: Path, engine: Runtime, monkeypatch: pytest.MonkeyPatch, told: str | None
) -> None:
    """In float32 on a GPU, too, where the phase asked for none. An older operator tells nothing."""
    used: list[Precision] = []

    def runtime(_: PruneJob, *, precision: Precision, **__: Any) -> Any:
        used.append(precision)
        return contextlib.nullcontext(engine)

    monkeypatch.setattr("compression_pipeline.megatron.engine.runtime", runtime)
    if told:
        monkeypatch.setenv(PRECISION_VARIABLE, told)
    made = run(make_store(tmp_path, dtype=torch.bfloat16), PruneConfig(drop_layers=[2], calibration_samples=9))[1]
    assert made.manifest.metrics.get("plannedPrecision") == (told if told == "FP32" else None)
    assert used == [Precision.FP32 if told == "FP32" else Precision.AUTO]


STUDENTS = {
    "width": {"hidden_size": 32, "ffn_hidden_size": 64},
    "heads": {"attention_heads": 4},
    "ranked": {"layers": 2},
    "named": {"drop_layers": [2]},
    "everything": {"hidden_size": 40, "ffn_hidden_size": 48, "attention_heads": 4, "drop_layers": [1]},
}


@pytest.mark.parametrize("kind", ["llama31", "llama-wide-heads", "mistral", "qwen2-tied", "qwen3", "nemotron"])
def test_the_student_is_the_chosen_part_of_the_teacher(tmp_path: Path, kind: str) -> None:
    store = make_store(tmp_path, kind, num_attention_heads=8)
    student = PruneConfig(**STUDENTS["everything"], divisor=8, calibration_samples=9)
    result, artifact, _ = run(store, student)
    teacher = store.open(TEACHER)
    architecture = inspect(teacher.model).architecture
    chosen = json.loads((artifact.path / "chosen.json").read_text())
    expected = sliced(weights(teacher), architecture, chosen)
    found = weights(artifact)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert inspect(artifact.model).architecture == result.student
    assert result.parameters == sum(tensor.numel() for tensor in found.values())
    assert result.compression_ratio == result.parameters / architecture.parameters
    assert read_config(artifact.model)["head_dim"] == architecture.head_dim
    loaded = AutoModelForCausalLM.from_pretrained(artifact.model, dtype=torch.float32)
    assert loaded.num_parameters() == result.parameters
    with torch.no_grad():
        assert loaded(torch.arange(20)[None]).logits.isfinite().all()


@pytest.mark.parametrize("student", STUDENTS)
def test_every_axis_alone_and_all_together(tmp_path: Path, student: str) -> None:
    store = make_store(tmp_path, num_attention_heads=8)
    config = PruneConfig(**STUDENTS[student], divisor=8, calibration_samples=9)
    result, artifact, seen = run(store, config)
    chosen = json.loads((artifact.path / "chosen.json").read_text())
    assert chosen["layers"] == result.kept_layers
    assert (chosen["hidden"] is None) == (config.hidden_size is None)
    assert (chosen["ffn"] is None) == (config.ffn_hidden_size is None)
    assert (chosen["heads"] is None) == (config.attention_heads is None)
    expected = sliced(weights(store.open(TEACHER)), inspect(store.open(TEACHER).model).architecture, chosen)
    found = weights(artifact)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    scores = load_file(artifact.path / "importance.safetensors")
    assert {axis: tuple(tensor.shape) for axis, tensor in scores.items()} == {
        "hidden": (48,),
        "ffn": (3, 96),
        "heads": (3, 8),
        "layers": (3,),
    }
    if student == "ranked":
        assert result.kept_layers == sorted(scores["layers"].topk(2).indices.add(1).tolist())
    if student == "named":
        assert result.kept_layers == [1, 3]
    assert {path.name for path in artifact.path.iterdir()} >= {"importance.html", "chosen.json"}
    assert [event["step"] for event in seen if event["event"] == "progress"] == [9]
    assert artifact.manifest.metrics["calibrationTokens"] == 9 * 32
    assert (artifact.model / "tokenizer.json").is_file()


@pytest.mark.parametrize(("kind", "heads"), [("llama31", 4), ("qwen2-tied", 6)])
def test_pruned_heads_are_merged_as_the_paper_says(tmp_path: Path, kind: str, heads: int) -> None:
    """In the Hugging Face checkpoint, head by head: the i-th of K kept heads becomes 2 head(i) - head(2K - i + 1)."""
    store = make_store(tmp_path, kind, num_attention_heads=8)
    student = PruneConfig(attention_heads=heads, pruned_heads=PrunedHeads.MERGE, calibration_samples=9)
    _, artifact, _ = run(store, student)
    teacher, architecture = weights(store.open(TEACHER)), inspect(store.open(TEACHER).model).architecture
    scores, chosen = (
        load_file(artifact.path / "importance.safetensors")["heads"],
        json.loads((artifact.path / "chosen.json").read_text()),
    )
    groups, d = architecture.query_groups, architecture.head_dim
    width, kept = 8 // groups, heads // groups
    for layer, name in ((n, name) for n in range(architecture.layers) for name in ("weight", "bias")):
        full = f"model.layers.{layer}.self_attn.q_proj.{name}"
        if full not in teacher:
            continue
        before = teacher[full].clone().view(8, d, -1)
        for group in range(groups):
            ranked = [group * width + int(i) for i in scores[layer].view(groups, width)[group].argsort(descending=True)]
            for i in range(kept, 0, -1):
                if (other := 2 * kept - i + 1) <= width:
                    before[ranked[i - 1]] += before[ranked[i - 1]] - before[ranked[other - 1]]
        teacher[full] = before.view(teacher[full].shape)
    expected, found = sliced(teacher, architecture, chosen), weights(artifact)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_sizes_of_the_teacher_change_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    result, artifact, _ = run(store, PruneConfig(hidden_size=48, layers=3, divisor=64, calibration_samples=4))
    assert result.compression_ratio == 1
    expected, found = weights(store.open(TEACHER)), weights(artifact)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    store = make_store(tmp_path, dtype=torch.bfloat16)
    _, artifact, _ = run(store, PruneConfig(hidden_size=32, divisor=16, calibration_samples=4))
    chosen = json.loads((artifact.path / "chosen.json").read_text())
    expected = sliced(weights(store.open(TEACHER)), inspect(store.open(TEACHER).model).architecture, chosen)
    found = weights(artifact)
    assert all(tensor.dtype == torch.bfloat16 for tensor in found.values())
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert read_config(artifact.model)["dtype"] == "bfloat16"


def test_everything_may_be_read_by_whom_the_folder_may(tmp_path: Path) -> None:
    _, artifact, _ = run(make_store(tmp_path), PruneConfig(hidden_size=32, divisor=16, calibration_samples=4))
    allowed = artifact.path.stat().st_mode & 0o666
    files = [path for path in artifact.path.rglob("*") if path.is_file() and "manifest" not in path.name]
    assert len(files) > 6
    assert {path.stat().st_mode & 0o666 for path in files} == {allowed}


def test_a_page_that_cannot_be_drawn_costs_a_warning_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that fills up: half a page is there, and then it ends."""
    whole = Path.write_text

    def torn(path: Path, data: str, **options: Any) -> int:
        if path.name != "importance.html":
            return whole(path, data, **options)
        whole(path, data[:9], **options)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", torn)
    result, artifact, events = run(make_store(tmp_path), PruneConfig(drop_layers=[2], calibration_samples=9))
    assert result.kept_layers == [1, 3]
    assert "chosen.json" in artifact.manifest.files and "importance.html" not in artifact.manifest.files
    [warning] = [event["message"] for event in events if event["event"] == "warning"]
    assert warning.startswith("the page importance.html could not be drawn (OSError: [Errno 28] No space left")
    assert warning.endswith("the student and its scores are whole")


def test_fewer_sequences_than_asked_for(tmp_path: Path) -> None:
    store = make_store(tmp_path, tokens=32 * 5 + 1)
    _, artifact, _ = run(store, PruneConfig(hidden_size=32, divisor=16, calibration_samples=1024))
    assert artifact.manifest.metrics["calibrationSamples"] == 5


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        ({"hidden_size": 64}, "prune.hiddenSize: 64 is more than the teacher's 48"),
        (
            {"ffn_hidden_size": 50, "divisor": 16},
            "ffnHiddenSize: 50 is not divisible by 16.*nearest: 48 or 64",
        ),
        ({"hidden_size": 40, "divisor": 16}, "prune.hiddenSize: 40 is not divisible by 16"),
        ({"attention_heads": 3}, "prune.attentionHeads: 3 is not a multiple of the teacher's 2"),
        ({"drop_layers": [1, 2, 3]}, "prune.dropLayers: drops all 3 layers"),
        ({"drop_layers": [4]}, "prune.dropLayers: the teacher has layers 1 to 3"),
        ({"layers": 4}, "prune.layers: 4 is more than the teacher's 3"),
        ({"layers": 4, "hidden_size": 40, "divisor": 64}, "prune.layers: 4 .*; prune.hiddenSize: 40"),
    ],
)
def test_impossible_students_are_refused_before_anything_is_loaded(
    tmp_path: Path, student: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)

    def unexpected(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr(phase, "start_engine", unexpected)
    with pytest.raises(UserError, match=sentence):
        run(store, PruneConfig(**student))
    assert store.find("prune-" + "1" * 32) is None


def test_text_shorter_than_one_sequence(tmp_path: Path) -> None:
    store = make_store(tmp_path, tokens=30)
    with pytest.raises(UserError, match=r"lower .*sequenceLength"):
        run(store, PruneConfig(hidden_size=32, divisor=16))


def test_a_damaged_teacher(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    model = store.open(TEACHER).model
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    with pytest.raises(UserError, match=r"layers.3.input_layernorm.weight is missing"):
        run(store, PruneConfig(hidden_size=32, divisor=16))


def test_told_to_stop(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    told, _ = context(store, "1" * 32)
    told.stop.raised = True
    with pytest.raises(Interrupted):
        phase.run(job(store, PruneConfig(hidden_size=32, divisor=16)), told)
    assert store.find("prune-" + "1" * 32) is None


def test_a_configuration_that_disagrees_with_the_weights_is_caught() -> None:
    from engine_models import architecture

    from compression_pipeline.huggingface.conversion import megatron_shapes

    student = architecture()
    good = {name: torch.empty(shape, device="meta") for name, shape in megatron_shapes(student).items()}
    minitron.check(good, student)
    name = "decoder.layers.1.mlp.linear_fc1.weight"
    for bad in (
        {**good, name: good[name][:-2]},
        {k: v for k, v in good.items() if k != name},
        {**good, "x": good[name]},
    ):
        with pytest.raises(RuntimeError, match="pruning made"):
            minitron.check(bad, student)


def test_two_ranks_make_what_one_makes(tmp_path: Path) -> None:
    """As the launcher starts them: calibration is shared, ModelOpt runs on both, rank 0 publishes."""
    store = make_store(tmp_path, num_attention_heads=8)
    # Of the aggregations the one whose state is merged, not summed; the ranks have 5 and 4 samples. Of the held-out
    # text one has all: it is a single pass.
    variance = AggregationConfig(sequence=Aggregation.VARIANCE, batch=Aggregation.VARIANCE)
    importance = ImportanceConfig(aggregation=variance, depth="LMLoss", depth_samples=7)
    student = PruneConfig(**STUDENTS["everything"], divisor=8, calibration_samples=9, importance=importance)
    _, alone, _ = run(store, student)
    told = {"COMPRESSION_CONFIG": json.dumps(job(store, student, "2" * 32).to_json())}
    with contextlib.closing(Meeting(2)) as meeting:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "compression_pipeline.worker", "prune"],
                env={**os.environ, **told, **meeting.environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        output = [rank.communicate(timeout=540) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], output[0][1][-2000:] + output[1][1][-2000:]
    assert output[1][0] == ""
    events = [json.loads(line) for line in output[0][0].splitlines()]  # stdout is a clean channel
    assert events[-1]["event"] == "result"
    together = store.open("prune-" + "2" * 32)
    first, second = weights(alone), weights(together)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (alone.path / "chosen.json").read_text() == (together.path / "chosen.json").read_text()
    one, two = (load_file(artifact.path / "importance.safetensors") for artifact in (alone, together))
    for axis in one:
        torch.testing.assert_close(one[axis], two[axis], rtol=1e-5, atol=0)


def test_another_text_makes_other_scores(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    student = PruneConfig(hidden_size=32, divisor=16, calibration_samples=8)
    _, first, _ = run(store, student)
    publish(store, "prepare-other", lambda path: save_text(path / "data", 4000, 400, seed=5))
    told, _ = context(store, "3" * 32)
    phase.run(job(store, student, "3" * 32).model_copy(update={"data": "prepare-other"}), told)
    second = store.open("prune-" + "3" * 32)
    axis = "hidden"
    assert not torch.equal(
        load_file(first.path / "importance.safetensors")[axis], load_file(second.path / "importance.safetensors")[axis]
    )
