"""The seam for importance: a method of each kind that only this file knows goes from manifest to report."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exporting
import pytest
import torch
from exporting import EXPORTED, PRUNED, student_store
from manifests import a_run, judged, told
from pages import Page
from safetensors.torch import load_file
from tests.support.schemas import schema_made_anew
from torch.nn.functional import cross_entropy

from compression_operator.api.schema import structural_schema
from compression_pipeline.config import (
    METHODS,
    Aggregation,
    AggregationConfig,
    Axis,
    ImportanceConfig,
    Method,
    PruneConfig,
    PruneJob,
    PruneResult,
)
from compression_pipeline.importance import Estimator, Measurement, Samples
from compression_pipeline.megatron.runtime import Runtime


class LeastActive(Estimator):
    """Hooks of the shared pass: channels that speak least are taken for the most important."""

    def attach(self, model: Any) -> None:
        self._sums = self.zeros(self.architecture.hidden_size)
        self.hook(model.decoder.layers[0].input_layernorm, lambda _, __, output: self._add(output))

    def _add(self, output: torch.Tensor) -> None:
        self._sums += output.detach().double().abs().sum(dim=(0, 1))

    def scores(self) -> torch.Tensor:
        return (1 / self.over_ranks(self._sums)).float()


class WithoutIt(Measurement):
    """Runs the model: the loss after a layer is left out."""

    def scores(self, model: Any, samples: Samples) -> torch.Tensor:
        found: list[torch.Tensor] = []
        for layer in model.decoder.layers:
            skip = layer.register_forward_hook(_passed_by, with_kwargs=True)
            found.append(sum((_loss(model, *batch) for batch in samples.batches), torch.zeros(())))
            skip.remove()
        return torch.stack(found).float()


def _passed_by(layer: Any, inputs: Any, named: dict[str, Any], output: tuple[torch.Tensor, Any]) -> Any:
    return (named["hidden_states"] if "hidden_states" in named else inputs[0], output[1])


def _loss(model: Any, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    assert not model.training and not torch.is_grad_enabled()
    logits = model(tokens, positions, None)
    return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").cpu()


OTHERS = {"hidden": "LeastActive", "depth": "WithoutIt"}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, axis, words in (("LeastActive", Axis.HIDDEN, "silence"), ("WithoutIt", Axis.LAYERS, "loss without it")):
        monkeypatch.setitem(METHODS, name, Method(words=words, implementations={axis: f"{__name__}:{name}"}))
    with schema_made_anew():
        yield


def prune(importance: dict[str, Any] | None) -> dict[str, Any]:
    asked = {"hiddenSize": 64, "layers": 2} | ({"importance": importance} if importance else {})
    return {"students": [{"name": "width", "prune": asked}]}


def job(importance: dict[str, Any] | None = None) -> PruneJob:
    return told(a_run(**prune(importance)), "prune-width", PruneJob)


def test_a_manifest_names_a_method_for_each_axis() -> None:
    assert job(OTHERS).prune.importance.by_axis() == {
        Axis.HIDDEN: "LeastActive",
        Axis.FFN: "ActivationMagnitude",
        Axis.HEADS: "ActivationMagnitude",
        Axis.LAYERS: "WithoutIt",
    }
    fields = structural_schema(ImportanceConfig)["properties"]
    offered = {name: {*field["enum"]} for name, field in fields.items() if "enum" in field}
    own = {"LeastActive": {"hidden"}, "WithoutIt": {"depth"}, "ActivationMagnitude": {"hidden", "ffn", "heads"}}
    own |= {name: {"depth"} for name in ("BlockInfluence", "LMLoss", "Task")}
    assert {name: {axis for axis, names in offered.items() if name in names} for name in own} == own
    assert offered.keys() == {"hidden", "ffn", "heads", "depth"} and set().union(*offered.values()) == METHODS.keys()
    assert judged(**prune({"depth": "ActivationMagnitude"})) == [
        'spec.students[0].prune.importance.depth: "ActivationMagnitude" is not supported, supported: '
        + ", ".join(fields["depth"]["enum"])
    ]


def test_the_key_follows_and_the_default_changes_none() -> None:
    default = job()
    assert "importance" not in default.for_image()["prune"]
    assert job({"depth": "BlockInfluence"}).fingerprint == default.fingerprint
    assert len({job(OTHERS).fingerprint, job({"depth": "WithoutIt"}).fingerprint, default.fingerprint}) == 3


def test_the_aggregation_is_in_the_manifest_and_in_the_key() -> None:
    default, other = job(), job({"aggregation": {"sequence": "Variance"}})
    assert other.prune.importance.aggregation == AggregationConfig(sequence=Aggregation.VARIANCE)
    assert job({"aggregation": {"sequence": "Mean", "batch": "L2"}}).fingerprint == default.fingerprint
    assert other.fingerprint != default.fingerprint
    assert other.for_image()["prune"]["importance"] == {"aggregation": {"sequence": "Variance"}}
    refused = judged(**prune({"aggregation": {"batch": "Max"}}))
    assert refused == [
        'spec.students[0].prune.importance.aggregation.batch: "Max" is not supported, supported: Mean, L2, Variance'
    ]


def test_students_are_cut_by_them_and_artifact_report_and_card_tell_it(tmp_path: Path, engine: Runtime) -> None:
    sizes = PruneConfig(hidden_size=32, ffn_hidden_size=64, layers=2, divisor=16, calibration_samples=8)
    plain = student_store(tmp_path / "plain", engine, "llama3", student=sizes)
    others = sizes.model_copy(update={"importance": ImportanceConfig.model_validate(OTHERS)})
    store = student_store(tmp_path / "others", engine, "llama3", student=others)
    before, after = (each.open(f"prune-{PRUNED}") for each in (plain, store))
    one, two = (load_file(artifact.path / "importance.safetensors") for artifact in (before, after))
    assert all(torch.equal(one[axis], two[axis]) for axis in ("ffn", "heads"))
    assert not torch.equal(one["hidden"], two["hidden"]) and not torch.equal(one["layers"], two["layers"])
    chosen = json.loads((after.path / "chosen.json").read_text())
    assert chosen["methods"] == {
        "hidden": "LeastActive",
        "ffn": "ActivationMagnitude",
        "heads": "ActivationMagnitude",
        "layers": "WithoutIt",
    }
    assert chosen["hidden"] == two["hidden"].argsort(descending=True, stable=True)[:32].tolist()
    best = sorted(two["layers"].argsort(descending=True, stable=True)[:2].tolist())
    assert after.result(PruneResult).kept_layers == [layer + 1 for layer in best]
    # Nats a token of a random model of 320 tokens, over 8 sequences of 31 predictions.
    assert all(4 < float(loss) / (8 * 31) < 8 for loss in two["layers"])

    _, exported = exporting.run(store, EXPORTED)
    text = " ".join(Page((exported.path / "report" / "index.html").read_text(encoding="utf-8")).text.split())
    assert "hidden channels ranked by silence; feed-forward neurons ranked by their activations" in text
    assert "layers ranked by loss without it" in text
    assert "loss without it (log scale); kept: " in text
    card = (exported.model / "README.md").read_text()
    assert "importance (hidden by silence, layers by loss without it) from" in card
    assert "by loss without it; the other sizes" in card
