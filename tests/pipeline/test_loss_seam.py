"""The seam for losses: one that only this file knows goes from a manifest to a student, its report and its card."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import cel
import exporting
import pytest
import torch
from checkpoints import save_model
from exporting import DISTILLED, EXPORTED, student_store
from finetuning import Stopping
from manifests import a_run, judged, told
from pages import Page
from pruned import PRUNED, distill_job
from pydantic import Field, ValidationError
from safetensors.torch import load_file
from stores import common, context, make_store, publish
from tests.support.schemas import schema_made_anew

from compression_operator.api.schema import structural_schema
from compression_pipeline.artifact import Store
from compression_pipeline.config import (
    Architecture,
    DistillConfig,
    DistillJob,
    LogitsKL,
    LossConfig,
    Needs,
    Parallelism,
)
from compression_pipeline.config.losses import LOSSES
from compression_pipeline.config.members import LENIENT
from compression_pipeline.errors import Interrupted, UserError
from compression_pipeline.huggingface.conversion import megatron_shapes
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.losses import Loss, Signals
from compression_pipeline.losses.logits_kl import LogitsKLLoss
from compression_pipeline.megatron.objective import Objective
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import distill as phase


class HiddenMSE(LossConfig):
    """Mean squared error between two layers' outputs, the student's brought to the teacher's width by a matrix."""

    implementation: ClassVar[str] = f"{__name__}:HiddenMSELoss"

    layer: int = Field(ge=1, le=1024, description="The student's layer.")
    teacher_layer: int = Field(ge=1, le=1024, description="The teacher's layer.")

    @property
    def words(self) -> str:
        return f"squared error of the output of layer {self.layer} against the teacher's {self.teacher_layer}"

    def needs(self, teacher: Architecture, student: Architecture) -> Needs:
        return Needs(hidden=((self.layer, self.teacher_layer),), embeddings=True)

    def faults(self, teacher: Architecture, student: Architecture) -> Iterator[tuple[str, str]]:
        if self.layer > student.layers:
            yield "layer", f"the student has layers 1 to {student.layers}; there is no layer {self.layer}"


class HiddenMSELoss(Loss):
    """The half of it that computes."""

    def __init__(self, config: HiddenMSE, teacher: Architecture, student: Architecture) -> None:
        super().__init__()
        self._config = config
        self.projection = torch.nn.Linear(student.hidden_size, teacher.hidden_size, bias=False)

    def forward(self, student: Signals, teacher: Signals) -> torch.Tensor:
        mine, theirs = student.hidden[self._config.layer], teacher.hidden[self._config.teacher_layer]
        assert student.embeddings is not None and student.embeddings.shape == mine.shape
        assert teacher.embeddings is not None and teacher.embeddings.shape == theirs.shape
        assert mine.requires_grad and not theirs.requires_grad
        return (self.projection(mine) - theirs).float().square().mean(dim=-1)


BOTH: list[dict[str, Any]] = [
    {"type": "LogitsKL", "temperature": 2},
    {"type": "HiddenMSE", "weight": 0.5, "layer": 1, "teacherLayer": 2},
]
SAID = (
    "forward KL divergence from the teacher's to the student's next-token distribution, temperature 2; plus 0.5 times "
    "the squared error of the output of layer 1 against the teacher's 2"
)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(LOSSES, "HiddenMSE", HiddenMSE)
    with schema_made_anew():
        yield


def distill(*losses: dict[str, Any]) -> dict[str, Any]:
    return {"distill": {"steps": 100} | ({"losses": list(losses)} if losses else {})}


def faults(*losses: dict[str, Any]) -> list[str]:
    """A line for each fault of such a manifest."""
    found = judged(**distill(*losses))
    assert isinstance(found, list)
    return [line.removeprefix("spec.distill.") for line in found]


def job(*losses: dict[str, Any]) -> DistillJob:
    return told(a_run(**distill(*losses)), "distill-width", DistillJob)


def by_cel(losses: Any) -> list[str]:
    """What the CRD's rules say of losses."""
    [items] = [structural_schema(DistillConfig)["properties"]["losses"]["items"]]
    found: list[str] = []
    for index, loss in enumerate(losses):
        for rule in items["x-kubernetes-validations"]:
            scope = cel.Context()
            scope.add_variable("self", loss)
            if not cel.evaluate(rule["rule"], scope):
                found.append(f"losses[{index}]{rule['fieldPath']}: {rule['message']}")
    return sorted(found)


def test_a_manifest_names_it_and_its_fields() -> None:
    named = a_run(**distill(*BOTH)).spec.distill
    assert named and [loss.type for loss in named.losses] == ["LogitsKL", "HiddenMSE"]
    kind = structural_schema(DistillConfig)["properties"]["losses"]["items"]["properties"]
    assert kind["type"]["enum"] == [*LOSSES] and "HiddenMSE" in LOSSES
    assert kind["weight"]["default"] == 1 and "default" not in kind["temperature"]  # not every member has that
    assert faults({"type": "Telepathy"}) == [
        f'losses[0].type: "Telepathy" is not supported, supported: {", ".join(LOSSES)}'
    ]
    mixed = {"type": "HiddenMSE", "layer": 1, "temperature": 2}
    tempered = [name for name, kind in LOSSES.items() if "temperature" in kind.model_fields]
    assert {"LogitsKL", "LogitsReverseKL", "LogitsJensenShannon", "LogitsTopKKL"} <= {*tempered}
    assert not {"LogitsMSE", "HiddenStates", "HiddenMSE"} & {*tempered}
    assert faults(BOTH[0], mixed) == [
        "losses[1].teacherLayer: is required by HiddenMSE",
        f"losses[1].temperature: is a field of {', '.join(tempered)}; leave it out, or change type",
    ]
    assert by_cel([BOTH[0], mixed]) == faults(BOTH[0], mixed)


def test_the_job_is_told_and_the_key_follows() -> None:
    assert [loss.to_json() for loss in job(*BOTH).distill.losses] == [
        {"type": "LogitsKL", "weight": 1, "balance": "Fixed", "temperature": 2},
        {"type": "HiddenMSE", "weight": 0.5, "balance": "Fixed", "layer": 1, "teacherLayer": 2},
    ]
    default = job()
    assert "losses" not in default.for_image()["distill"]
    assert job({"type": "LogitsKL", "weight": 1, "temperature": 1}).fingerprint == default.fingerprint
    others = [BOTH, BOTH[:1], BOTH[1:], [BOTH[0], {**BOTH[1], "weight": 0.6}], BOTH[::-1]]
    assert len({job(*losses).fingerprint for losses in others} | {default.fingerprint}) == len(others) + 1


def test_what_a_newer_version_has_told_a_loss_is_read_over() -> None:
    config = job(*BOTH).to_json()
    config["distill"]["losses"][1]["spice"] = "hot"
    assert DistillJob.model_validate(config, **LENIENT) == job(*BOTH)
    with pytest.raises(ValidationError, match="spice"):
        DistillJob.model_validate(config)


def test_a_layer_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path: Path, engine: Runtime) -> None:
    store = student_store(tmp_path, engine, "llama3")
    losses = {"losses": [{**BOTH[1], "layer": 3}]}
    learn = learning(store).model_copy(
        update={"distill": DistillConfig.model_validate({"steps": 2, "warmupSteps": 1, **losses})}
    )
    with pytest.raises(UserError, match=r"distill.losses\[0\].layer: the student has layers 1 to 2; there is"):
        phase.run(learn, context(store, "4" * 32)[0])


def learning(store: Store, attempt: int = 1) -> DistillJob:
    settings = {"steps": 6, "globalBatchSize": 4, "microBatchSize": 2, "learningRate": 1e-3, "warmupSteps": 1}
    fields = {**settings, "checkpointInterval": 100, "losses": BOTH}
    return DistillJob.model_validate(
        {
            **store.open(f"distill-{DISTILLED}").manifest.config,
            **common(store, "distill-width", "4" * 32, attempt),
            "distill": fields,
        }
    )


def test_its_parameters_are_trained_and_in_checkpoints_and_a_resume_changes_nothing(
    tmp_path: Path, engine: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compression_pipeline.megatron.engine.runtime", lambda job, **_: contextlib.nullcontext(engine))
    built: list[tuple[torch.Tensor, torch.Tensor]] = []
    of = Objective.of.__func__  # pyright: ignore[reportFunctionMemberAccess]

    def watched(cls: Any, *arguments: Any, **named: Any) -> Objective:
        made = of(cls, *arguments, **named)
        built.extend((parameter, parameter.detach().clone()) for parameter in made.parameters())
        return made

    monkeypatch.setattr(Objective, "of", classmethod(watched))
    store = student_store(tmp_path / "store", engine, "llama3")
    shutil.copytree(tmp_path / "store", tmp_path / "other")
    built.clear()
    whole = phase.run(learning(store), context(store, "4" * 32)[0])
    [(trained, drawn)] = built
    assert not torch.equal(trained, drawn), "the optimizer trains it"

    other = Store(tmp_path / "other")
    current, _ = context(other, "4" * 32)
    stopping = Stopping(3, lambda: setattr(current.stop, "raised", True))
    with pytest.raises(Interrupted, match="after step 4"):
        phase.run(learning(other), replace(current, events=stopping))
    [kept] = (tmp_path / "other").rglob("checkpoints/step-00000004/rank-00000.safetensors")
    names = {name.partition("@")[0] for name in load_file(kept)}
    projection = "_loss_modules.0.losses.1.projection.weight"
    assert {projection, f"optimizer.exp_avg.{projection}", f"optimizer.exp_avg_sq.{projection}"} <= names
    built.clear()
    again = phase.run(learning(other, attempt=2), context(other, "4" * 32, attempt=2)[0])
    [(resumed, drawn_again)] = built
    assert torch.equal(drawn_again, drawn) and torch.equal(resumed, trained)
    assert again.model_dump(exclude={"tokens_per_second", "digest"}) == whole.model_dump(
        exclude={"tokens_per_second", "digest"}
    )
    one, two = (load_file(each.open(f"distill-{'4' * 32}").model / "model.safetensors") for each in (store, other))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_it_is_no_part_of_the_student_and_card_and_report_tell_it(tmp_path: Path, engine: Runtime) -> None:
    plain = student_store(tmp_path / "plain", engine, "llama3")
    store = student_store(tmp_path / "both", engine, "llama3", losses=job(*BOTH).distill.losses)
    one, two = (load_file(each.open(f"distill-{DISTILLED}").model / "model.safetensors") for each in (plain, store))
    assert one.keys() == two.keys()
    assert not torch.equal(*(each["model.layers.0.mlp.down_proj.weight"] for each in (one, two)))
    student = read_architecture(store.open(f"distill-{DISTILLED}").model)
    assert len(two) <= 3 * len(megatron_shapes(student))
    _, exported = exporting.run(store, EXPORTED)
    card = (exported.model / "README.md").read_text()
    assert f"**Distillation.** {SAID[0].upper()}{SAID[1:]}, each a mean over tokens. Sequences of" in card
    page = Page((exported.path / "report" / "index.html").read_text(encoding="utf-8"))
    assert SAID in " ".join(page.text.split())
    _, default = exporting.run(plain, EXPORTED)
    assert (
        "distribution, temperature 1, mean over tokens; no other loss. Seq" in (default.model / "README.md").read_text()
    )


class OwnKL(LogitsKL):
    """One that does not sum over the vocabulary by its words."""

    implementation: ClassVar[str] = f"{__name__}:OwnKLLoss"


class OwnKLLoss(LogitsKLLoss):
    """The half of it that computes."""

    splits_vocabulary = False


def test_a_loss_that_would_be_wrong_on_a_part_of_the_vocabulary_is_refused_before_an_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "OwnKL", OwnKL)
    monkeypatch.setattr(phase, "start_engine", lambda *_, **__: pytest.fail("an engine was started"))
    store = make_store(tmp_path)
    publish(store, PRUNED, lambda path: save_model(path / "model"))
    for losses in (BOTH, [{"type": "OwnKL"}]):
        settings = DistillConfig.model_validate({"steps": 100, "losses": losses})
        words = (
            "an engine was started" if losses is BOTH else "OwnKL needs the logits of all words on one rank; set paral"
        )
        with pytest.raises((UserError, pytest.fail.Exception), match=words):
            phase.run(distill_job(store, settings, parallelism=Parallelism(tensor=2)), context(store, DISTILLED)[0])
