"""The seam for engines: one that only this file knows goes from a manifest to an exported student."""

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import exporting
import pytest
import torch
from exporting import DISTILLED, EXPORTED, PRUNED
from manifests import a_run, judged, told
from stores import DATA, TEACHER, common, context, make_store
from tests.support.schemas import schema_made_anew
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from compression_operator.api.schema import structural_schema
from compression_operator.api.spec import CompressionRunSpec
from compression_pipeline.config import (
    ENGINES,
    Architecture,
    Axis,
    DistillConfig,
    DistillJob,
    DistillResult,
    EngineInfo,
    EngineJob,
    ExportJob,
    FinetuneConfig,
    FinetuneJob,
    ImportanceConfig,
    LossConfig,
    Precision,
    PruneConfig,
    PruneJob,
    ValidationConfig,
)
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine, State, Training
from compression_pipeline.engines.history import History, Scalars, StepEntry, ValidationEntry
from compression_pipeline.engines.schedule import learning_rate
from compression_pipeline.huggingface.conversion import CheckpointReader
from compression_pipeline.huggingface.names import expected_shapes
from compression_pipeline.importance import Choice, Samples, Scores
from compression_pipeline.losses import Signals, build_loss, weighted_sum
from compression_pipeline.megatron.engine import MegatronEngine
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import distill, finetune, measuring, prune
from compression_pipeline.text.batches import Batch, ValidationData, ValidationLoss


class Plain:
    """Llamas of plain transformers, and torch's AdamW: one rank on the CPU, states by Hugging Face's names."""

    rank = data_rank = 0
    world_size = data_size = 1
    device = torch.device("cpu")
    precision = Precision.FP32

    def __init__(self, context: Context) -> None:
        self._context = context

    def agree(self, value: Any) -> Any:
        return value

    def any_rank(self, value: bool) -> bool:
        return value

    def on_rank_0(self, work: Callable[[Callable[[], None]], Any]) -> Any:
        return work(self._context.stop_if_requested)

    def free(self) -> None:
        pass

    def build(self, architecture: Architecture, *, sequence_length: int, exact: bool = False) -> Any:
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=architecture.vocabulary_size,
                hidden_size=architecture.hidden_size,
                intermediate_size=architecture.ffn_hidden_size,
                num_hidden_layers=architecture.layers,
                num_attention_heads=architecture.attention_heads,
                num_key_value_heads=architecture.query_groups,
                head_dim=architecture.head_dim,
                rms_norm_eps=architecture.norm_epsilon,
                rope_theta=architecture.rope_theta,
            )
        )

    def load(self, model: Any, architecture: Architecture, folder: Path) -> None:
        self.fill(model, self.read(architecture, folder), torch.float32)

    def read(self, architecture: Architecture, folder: Path) -> State:
        reader = CheckpointReader(folder)
        return {name: reader(name) for name in expected_shapes(architecture)}

    def fill(self, model: Any, state: State, dtype: torch.dtype) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state[name].to(dtype))

    def state(self, model: Any) -> State:
        return dict(model.named_parameters())

    def tensors(self, state: State, architecture: Architecture) -> Iterator[tuple[str, Tensor]]:
        return ((name, state[name].detach()) for name in expected_shapes(architecture))

    def validate(self, model: Any, data: ValidationData, *, sequences_per_pass: int) -> ValidationLoss:
        losses = [_next_token(model, data.batch(range(n, n + 1), self.device)) for n in range(len(data))]
        return data.loss([float(torch.stack(losses).detach().mean())])

    def logits(self, model: Any, batch: Batch) -> Tensor:
        with torch.no_grad():
            return model(batch.tokens).logits

    def measure(
        self,
        model: Any,
        architecture: Architecture,
        samples: Samples,
        importance: ImportanceConfig,
        axes: Collection[Axis],
    ) -> Scores:
        seen: dict[str, list[Tensor]] = {name: [] for name in ("hidden", "ffn", "heads", "layers")}

        def magnitudes(axis: str, tensor: Tensor) -> None:
            seen[axis].append(tensor.abs().mean(dim=(0, 1)))

        def turned(layer: Any, inputs: Any, output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            seen["layers"].append(1 - cosine_similarity(inputs[0], after, dim=-1).mean())

        hooks: list[Any] = []
        for layer in model.model.layers:
            hooks += [
                layer.register_forward_hook(turned),
                layer.input_layernorm.register_forward_hook(lambda _, __, output: magnitudes("hidden", output)),
                layer.mlp.down_proj.register_forward_hook(lambda _, inputs, __: magnitudes("ffn", inputs[0])),
                layer.self_attn.o_proj.register_forward_hook(lambda _, inputs, __: magnitudes("heads", inputs[0])),
            ]
        with torch.no_grad():
            for tokens, _ in samples.batches:
                model(tokens)
        for hook in hooks:
            hook.remove()
        by_layer = {
            axis: torch.stack(found).unflatten(0, (-1, architecture.layers)).sum(0) for axis, found in seen.items()
        }
        heads = by_layer["heads"].unflatten(-1, (architecture.attention_heads, -1)).sum(-1)
        return {**by_layer, "hidden": by_layer["hidden"].sum(0), "heads": heads}

    def cut(self, model: Any, teacher: Architecture, student: Architecture, choice: Choice, *, divisor: int) -> Any:
        assert choice.hidden is not None and choice.ffn is not None and choice.heads is None
        state, cut = self.state(model), dict[str, Tensor]()
        for name in expected_shapes(student):
            before, parts = name, name.split(".")
            ffn = slice(None)
            if parts[1] == "layers":
                layer = choice.layers[int(parts[2])]
                before, ffn = ".".join([*parts[:2], str(layer), *parts[3:]]), choice.ffn[layer]
            tensor = state[before].detach()
            if name.endswith(("gate_proj.weight", "up_proj.weight")):
                tensor = tensor[ffn]
            if name.endswith("down_proj.weight"):
                tensor = tensor[:, ffn]
            rows = name.endswith(("norm.weight", "layernorm.weight", "o_proj.weight", "down_proj.weight"))
            cut[name] = tensor[choice.hidden] if rows else tensor[:, choice.hidden]
        made = self.build(student, sequence_length=0)
        self.fill(made, cut, torch.float32)
        return made

    def train(self, model: Any, training: Training) -> History:
        return self._train(model, training, lambda batch: _next_token(model, batch))

    def distill(
        self, student: Any, teacher: Any, training: Training, *, of: Architecture, losses: Sequence[LossConfig]
    ) -> tuple[History, State]:
        terms = [build_loss(loss, of, training.architecture) for loss in losses]

        def loss(batch: Batch) -> Tensor:
            with torch.no_grad():
                theirs = Signals(teacher(batch.tokens).logits.transpose(0, 1))
            mine = Signals(student(batch.tokens).logits.transpose(0, 1))
            return weighted_sum(losses, [term(mine, theirs) for term in terms])

        return self._train(student, training, loss), self.state(student)

    def _train(self, model: Any, training: Training, loss: Callable[[Batch], Tensor]) -> History:
        settings, data = training.settings, training.data
        history = History(settings.steps)
        scalars = Scalars(self._context.folder, history, flops_per_token=0, peak=None)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=settings.weight_decay)

        def validate(step: int) -> float:
            found = self.validate(model, training.validation, sequences_per_pass=1)
            history.add_validation(ValidationEntry(step, found.loss))
            return found.loss

        training.check(validate(0), lambda: self.state(model))
        for step in range(settings.steps):
            started = time.perf_counter()
            optimizer.param_groups[0]["lr"] = rate = learning_rate(step, settings)
            value = torch.stack([loss(batch) for batch in data.batches(step)]).mean()
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_gradient)
            optimizer.step()
            optimizer.zero_grad()
            speed = settings.global_batch_size * data.sequence_length / (time.perf_counter() - started)
            history.add_step(StepEntry(step + 1, value.item(), rate, norm.item(), speed))
            self._context.events.progress(step + 1, settings.steps, loss=value.item())
        validate(settings.steps)
        scalars.close()
        return history


def _next_token(model: Any, batch: Batch) -> Tensor:
    return cross_entropy(model(batch.tokens).logits.flatten(0, 1), batch.labels.flatten())


@contextmanager
def start(
    job: EngineJob, context: Context, *, precision: Precision, deterministic: bool, seed: int
) -> Iterator[Engine]:
    torch.manual_seed(seed)
    context.events.info("stands on plain transformers")
    yield Plain(context)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    info = EngineInfo(f"{__name__}:start", "Nothing but indices", "plain transformers", ("transformers",))
    monkeypatch.setitem(ENGINES, "Plain", info)
    with schema_made_anew():
        yield


SPEC: dict[str, Any] = {"finetune": {"steps": 200}}


def test_a_manifest_names_it() -> None:
    assert a_run(**SPEC).spec.engine == "Megatron"
    assert a_run(**SPEC, engine="Plain").spec.engine == "Plain"
    assert structural_schema(CompressionRunSpec)["properties"]["engine"]["enum"] == ["Megatron", "Plain"]
    [fault] = judged(engine="Telepathy", **SPEC)  # pyright: ignore[reportGeneralTypeIssues]
    assert fault == 'spec.engine: "Telepathy" is not supported, supported: Megatron, Plain'


def test_jobs_that_compute_are_told_and_keys_follow() -> None:
    kinds: dict[str, type[Any]] = {"finetune": FinetuneJob, "prune-width": PruneJob, "distill-width": DistillJob}
    engines: list[dict[str, Any]] = [{}, {"engine": "Megatron"}, {"engine": "Plain"}]
    for step, kind in kinds.items():
        default, same, other = (told(a_run(**SPEC, **engine), step, kind) for engine in engines)
        assert (default.engine, other.engine) == ("Megatron", "Plain")
        assert "engine" not in default.for_image()
        assert default.fingerprint == same.fingerprint != other.fingerprint
    assert "engine" not in ExportJob.model_fields


SETTINGS: dict[str, Any] = {"steps": 20, "global_batch_size": 8, "micro_batch_size": 8, "warmup_steps": 2}


def test_it_makes_a_student_that_is_exported_and_card_and_report_tell_it(
    tmp_path: Path, engine: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real training, pruning and distillation, without a call of the other engine's."""
    monkeypatch.setattr("compression_pipeline.megatron.engine.start", lambda *_, **__: pytest.fail("was started"))
    store = make_store(tmp_path)
    shared: dict[str, Any] = {"data": DATA, "sequence_length": 32, "engine": "Plain"}
    samples = ValidationConfig(samples=6)
    correction = FinetuneJob(
        **common(store, "finetune", "4" * 32),
        **shared,
        teacher=TEACHER,
        finetune=FinetuneConfig(**SETTINGS, learning_rate=1e-2),
        validation=samples,
    )
    current, events = context(store, "4" * 32)
    corrected = finetune.run(correction, current)
    assert events.seen[0]["message"] == "stands on plain transformers"
    assert corrected.corrected_teacher_loss < corrected.teacher_loss - 0.2
    # The other engine finds the same loss, over the same sequences.
    by_megatron = measuring.losses(
        correction,
        current,
        MegatronEngine(engine, current),
        {"teacher": TEACHER},
        measuring.validation_of(correction, current),
    )
    assert by_megatron["teacher"].loss == pytest.approx(corrected.teacher_loss, abs=1e-4)

    teacher = "finetune-" + "4" * 32
    student = PruneConfig(hidden_size=32, ffn_hidden_size=64, layers=2, divisor=16, calibration_samples=8)
    cut = PruneJob(**common(store, "prune-width", PRUNED), **shared, teacher=teacher, prune=student)
    pruned = prune.run(cut, context(store, PRUNED)[0])
    assert pruned.student.layers == len(pruned.kept_layers) == 2
    learn = DistillJob(
        **common(store, "distill-width", DISTILLED),
        **shared,
        teacher=teacher,
        pruned=f"prune-{PRUNED}",
        distill=DistillConfig(**SETTINGS, learning_rate=3e-3),
        validation=samples,
    )
    distilled = distill.run(learn, context(store, DISTILLED)[0])
    assert distilled.teacher_loss == pytest.approx(corrected.corrected_teacher_loss, abs=1e-5)
    history = json.loads((store.open(f"distill-{DISTILLED}").path / "history.json").read_text())
    assert history["train"][-1]["loss"] < 0.9 * history["train"][0]["loss"]  # the divergence from the teacher
    # Measured anew under another key: nothing is trained.
    again = learn.model_copy(
        update={"fingerprint": "5" * 32, "key": DISTILLED, "validation": ValidationConfig(samples=3)}
    )
    other = distill.run(again, context(store, "5" * 32)[0])
    assert isinstance(other, DistillResult) and other.validation_sequences == 3

    asked = exporting.job(store).model_copy(update={"teacher": teacher})
    exported = exporting.export.run(asked, context(store, EXPORTED)[0])
    assert exported.relative_error < 1e-4
    artifact = store.open(f"export-{EXPORTED}")
    card = (artifact.model / "README.md").read_text()
    assert "**Pruning.** Nothing but indices; importance" in card
    assert "tokens; plain transformers." in card
    assert "\n  engine: Plain\n" in (artifact.path / "report" / "index.html").read_text(), (
        "of the manifest to run again"
    )
