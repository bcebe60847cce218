"""Depth by a task: each score is that of a model whose layers are really gone."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_model
from manifests import a_run
from pages import Page
from safetensors.torch import load_file
from stores import DATA, TEACHER, common, context, make_store
from task_folders import DEFINITION, fetch, fetch_task
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from compression_operator.core.plan import PlannedStep, plan
from compression_pipeline.artifact import Artifact
from compression_pipeline.config import EvaluateConfig, ImportanceConfig, PruneConfig, PruneJob, PruneResult, TaskConfig
from compression_pipeline.errors import UserError
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import prune as phase
from compression_pipeline.tasks.scoring import score
from compression_pipeline.tasks.shallow import without_layers

ASKED = EvaluateConfig(tasks=[TaskConfig(name="calls", limit=8)], batch_size=4)


def without(folder: Path, first: int, length: int) -> Any:
    """The checkpoint's model, made of its other layers' tensors alone."""
    whole: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = AutoConfig.from_pretrained(folder)
    kept = [n for n in range(config.num_hidden_layers) if not first <= n < first + length]
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[n] for n in kept]
    prefix, state = "model.layers.", dict[str, torch.Tensor]()
    for name, tensor in whole.state_dict().items():
        number, _, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix):
            state[name] = tensor
        elif int(number) in kept:
            state[f"{prefix}{kept.index(int(number))}.{rest}"] = tensor
    model: Any = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("kind", ["llama3", "qwen2-tied", "nemotron"])
def test_layers_are_taken_out_and_put_back(tmp_path: Path, kind: str) -> None:
    folder = save_model(tmp_path, kind, num_hidden_layers=4)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt, before = torch.arange(1, 9)[None], model.config.to_dict()
    whole, told = model(prompt).logits, {"max_new_tokens": 6, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    for first, length in ((0, 1), (1, 2), (3, 1), (0, 0)):
        oracle = without(folder, first, length)
        with without_layers(model, first, length):
            assert torch.equal(model(prompt).logits, oracle(prompt).logits)
            assert torch.equal(model.generate(prompt, **told), oracle.generate(prompt, **told))
    assert torch.equal(model(prompt).logits, whole) and model.config.to_dict() == before


def test_a_student_loses_the_block_without_which_it_scores_best(
    tmp_path: Path, engine: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compression_pipeline.megatron.engine.runtime", lambda job, **_: contextlib.nullcontext(engine))
    store = make_store(tmp_path / "store", num_hidden_layers=4)
    tasks = fetch_task(tmp_path, store.root)

    def run(layers: int, mark: str, **told: Any) -> Artifact:
        prune = PruneConfig(layers=layers, calibration_samples=8, importance=ImportanceConfig(depth="Task"))
        settings = {"tasks": tasks, "evaluate": ASKED} | told
        job = PruneJob(
            **common(store, "prune-depth", mark * 32),
            data=DATA,
            teacher=TEACHER,
            sequence_length=32,
            prune=prune,
            **settings,
        )
        phase.run(job, context(store, mark * 32)[0])
        return store.open(f"prune-{mark * 32}")

    made = run(2, "1")
    rows = load_file(made.path / "importance.safetensors")["layers.blocks"].tolist()
    folder = store.open(TEACHER).model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(rows) == 1 + 4 + 3
    for first, length, value in rows:
        [found], _ = score(without(folder, int(first) - 1, int(length)), tokenizer, store.open(tasks).path, ASKED)
        assert value == found.score and found.samples == 8, (first, length)
    best = max((value, first) for first, length, value in rows if length == 2)
    result, dropped = made.result(PruneResult), int(best[1])
    assert result.kept_layers == [layer for layer in range(1, 5) if layer not in (dropped, dropped + 1)]
    assert result.block_score == best[0] and made.manifest.inputs["tasks"] == tasks
    chosen = json.loads((made.path / "chosen.json").read_text())
    assert (chosen["task"], chosen["higherIsBetter"]) == ("calls", True)
    text = " ".join(Page((made.path / "importance.html").read_text(encoding="utf-8")).text.split())
    assert "Score without a block of layers" in text and "in calls, not retrained" in text

    assert run(3, "2").manifest.metrics["scoresReused"] == ["ActivationMagnitude", "Task"]
    more = ASKED.model_copy(update={"tasks": [TaskConfig(name="calls", limit=9)]})
    assert run(3, "3", evaluate=more).manifest.metrics["scoresReused"] == ["ActivationMagnitude"]
    (tmp_path / "own" / "others.yaml").write_text(DEFINITION.replace("task: calls", "task: others"))
    beside = fetch(tmp_path, {}, {"name": "others"})
    moved = ASKED.model_copy(update={"tasks": [ASKED.tasks[0].model_copy(update={"source": "file:own"})]})
    again = run(3, "5", tasks=f"tasks-{beside.key}", evaluate=moved)
    assert f"tasks-{beside.key}" != tasks and again.manifest.metrics["scoresReused"] == ["ActivationMagnitude", "Task"]
    with pytest.raises(UserError, match=r"needs a task of evaluate\.tasks"):
        run(3, "4", tasks=None, evaluate=None)


def test_only_the_student_that_asks_reads_the_tasks() -> None:
    tasks = {"tasks": [{"name": "hellaswag", "limit": 100}, {"name": "winogrande"}]}

    def steps(importance: dict[str, Any]) -> dict[str, PlannedStep]:
        students = [{"name": "width", "prune": {"hiddenSize": 64}}]
        students.append({"name": "depth", "prune": {"layers": 2, "importance": importance}})
        return {step.name: step for step in plan(a_run(students=students, evaluate=tasks).spec).steps}

    plain, asking = steps({}), steps({"depth": "Task", "depthTask": "winogrande", "depthSamples": 7})
    assert dict(asking["prune-width"].inputs) == dict(plain["prune-width"].inputs)
    assert asking["prune-width"].configuration == plain["prune-width"].configuration
    assert asking["prune-depth"].inputs["tasks"] == "tasks" and "tasks" not in plain["prune-depth"].inputs
    asked = asking["prune-depth"].configuration["evaluate"]
    assert [(task.name, task.limit) for task in asked.tasks] == [("winogrande", 7)]
    assert steps({"depth": "Task"})["prune-depth"].configuration["evaluate"].tasks[0].name == "hellaswag"
