"""Our importance orders every axis as ModelOpt's own hooks do, and each score is its formula's."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_model
from hypothesis import given
from hypothesis import strategies as st
from pages import Page
from torch import Tensor
from transformers import AutoModelForCausalLM

from compression_pipeline.config import (
    Aggregation,
    AggregationConfig,
    Architecture,
    ImportanceConfig,
    PruneConfig,
    PruneJob,
    number_runs,
    student_architecture,
)
from compression_pipeline.huggingface import conversion
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.importance import Choice, Samples, choose, measure, scorers
from compression_pipeline.importance.aggregation import OVER_BATCH, OverBatch
from compression_pipeline.importance.ranking import descending
from compression_pipeline.megatron.minitron import cut
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.modelopt import modelopt
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases.cutting import Cut
from compression_pipeline.phases.prune import write_scores
from compression_pipeline.report.write import write_importance

Teacher = tuple[Any, Architecture, Path]
AXES = scorers(ImportanceConfig())


def batches(vocabulary: int, count: int = 5, size: int = 3, length: int = 32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(11)
    positions = torch.arange(length).expand(size, -1)
    return [(torch.randint(0, vocabulary, (size, length), generator=generator), positions) for _ in range(count)]


@pytest.fixture(params=["llama3", "llama-wide-heads", "qwen2-tied", "qwen3", "nemotron"])
def teacher(request: pytest.FixtureRequest, tmp_path: Path, engine: Runtime) -> Iterator[Teacher]:
    folder = save_model(tmp_path / "model", request.param, num_attention_heads=6)
    architecture = read_architecture(folder)
    model = build(architecture, engine, sequence_length=32)
    conversion.load_into(model, architecture, folder)
    yield model, architecture, folder


def later_tokens(length: int = 32) -> Tensor:
    """The mask that ModelOpt's forward passes need: they run on Megatron's own attention."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]


def modelopt_scores(model: Any, data: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """What ModelOpt's hooks make of the same forward passes: importance by axis, and its order of the heads."""
    with modelopt():
        from modelopt.torch.prune.plugins import mcore_minitron as minitron

        config = minitron.get_mcore_minitron_config(
            hidden_size_divisor=1, ffn_hidden_size_divisor=1, num_layers_divisor=1
        )
        minitron._convert_model_to_dynamic_space(model, config)
        registry = minitron.ImportanceEstimatorRegistry(model)
        with torch.no_grad():
            for tokens, positions in data:
                model.eval()(tokens, positions, later_tokens())
        _, layers = registry.get_activations_and_layer_scores()
        blocks = model.decoder.layers
        return {
            "hidden": model.get_hparam("hidden_size").importance,
            "ffn": torch.stack([block.mlp.get_hparam("ffn_hidden_size").importance for block in blocks]),
            "heads": torch.stack(
                [block.self_attention.get_hparam("num_attention_heads").importance for block in blocks]
            ),
            "layers": torch.tensor([layers[index + 1] for index in range(len(blocks))]),
        }


def test_order_is_modelopts(teacher: Teacher) -> None:
    model, architecture, _ = teacher
    data = batches(architecture.vocabulary_size)
    ours = measure(model, architecture, Samples(data), AXES)
    theirs = modelopt_scores(model, data)
    for axis in ("hidden", "ffn", "layers"):
        assert torch.equal(descending(ours[axis]), descending(theirs[axis].float())), axis
        ratio = ours[axis] / theirs[axis]
        spread = ratio.amax(-1) / ratio.amin(-1)  # equal up to the scale that ModelOpt normalizes by
        assert (spread - 1).abs().max() < 1e-4, axis
    # ModelOpt keeps the order of the heads, within each group.
    kept = choose(ours, architecture, PruneConfig(attention_heads=architecture.query_groups)).heads
    assert kept is not None
    groups = architecture.query_groups
    assert torch.equal(kept, theirs["heads"].view(architecture.layers, groups, -1)[:, :, 0])


def test_the_student_is_the_one_of_modelopts_own_loop(teacher: Teacher, tmp_path: Path, engine: Runtime) -> None:
    model, architecture, folder = teacher
    data = batches(architecture.vocabulary_size)
    prune = PruneConfig(
        hidden_size=32, ffn_hidden_size=64, attention_heads=architecture.query_groups * 2, layers=2, divisor=16
    )
    student = student_architecture(architecture, prune)
    choice = choose(measure(model, architecture, Samples(data), AXES), architecture, prune)
    cut(model, architecture, student, choice, divisor=16)

    reference = build(architecture, engine, sequence_length=32)
    conversion.load_into(reference, architecture, folder)
    with modelopt():
        import modelopt.torch.prune as mtp
        from modelopt.torch.prune.plugins.mcore_minitron import get_mcore_minitron_config

        divisors = {"hidden_size_divisor": 16, "ffn_hidden_size_divisor": 16, "num_layers_divisor": 1}
        targets = {
            "hidden_size": 32,
            "ffn_hidden_size": 64,
            "num_layers": 2,
            "num_attention_heads": student.attention_heads,
        }
        mode: Any = [("mcore_minitron", get_mcore_minitron_config(**divisors))]
        nothing: Any = None
        mtp.prune(
            reference,
            mode=mode,
            constraints={"export_config": targets},
            dummy_input=nothing,
            config={"forward_loop": lambda m: [m(tokens, positions, later_tokens()) for tokens, positions in data]},
        )
    expected = dict(reference.named_parameters())
    found = dict(model.named_parameters())
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_scores_are_their_formulas(teacher: Teacher) -> None:
    """From activations collected once, with the plainest code: no accumulation, one tensor of everything."""
    model, architecture, _ = teacher
    data = batches(architecture.vocabulary_size, count=3)
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, tensor: Tensor) -> None:
        seen.setdefault(name, []).append(tensor.detach().transpose(0, 1).double())  # [batch, sequence, channels]

    handles = []
    for index, layer in enumerate(model.decoder.layers):
        watched = {
            "ffn": layer.mlp.linear_fc2,
            "heads": layer.self_attention.linear_proj,
        }
        for axis, module in watched.items():
            name = f"{axis}{index}"
            handles.append(module.register_forward_hook(lambda _, inputs, __, name=name: keep(name, inputs[0])))
        for axis, module in {"norm-a": layer.input_layernorm, "norm-b": layer.pre_mlp_layernorm}.items():
            name = f"{axis}{index}"
            handles.append(module.register_forward_hook(lambda _, __, output, name=name: keep(name, output)))
        name = f"out{index}"
        handles.append(layer.register_forward_hook(lambda _, __, output, name=name: keep(name, output[0])))
    handles.append(model.embedding.register_forward_hook(lambda _, __, output: keep("out-1", output)))
    ours = measure(model, architecture, Samples(data), AXES)
    for handle in handles:
        handle.remove()
    everything = {name: torch.cat(tensors) for name, tensors in seen.items()}
    for index in range(architecture.layers):
        ffn = everything[f"ffn{index}"].abs().mean(1).norm(dim=0)
        torch.testing.assert_close(ours["ffn"][index].double(), ffn, rtol=1e-5, atol=1e-8)
        heads = everything[f"heads{index}"].abs().mean(1).norm(dim=0)
        heads = heads.view(architecture.attention_heads, architecture.head_dim).norm(dim=1)
        torch.testing.assert_close(ours["heads"][index].double(), heads, rtol=1e-5, atol=1e-8)
        entered, left = everything[f"out{index - 1}"], everything[f"out{index}"]
        influence = 1 - torch.cosine_similarity(entered, left, dim=-1).mean()
        torch.testing.assert_close(ours["layers"][index].double(), influence, rtol=1e-4, atol=1e-6)
    norms = [tensor.abs().mean(1).norm(dim=0) for name, tensor in everything.items() if name.startswith("norm")]
    assert len(norms) == 2 * architecture.layers
    torch.testing.assert_close(ours["hidden"].double(), torch.stack(norms).sum(0), rtol=1e-5, atol=1e-8)


def naive(values: Tensor, how: Aggregation, dim: int) -> Tensor:
    """The paper's three, in so many words."""
    return {
        Aggregation.MEAN: lambda: values.abs().sum(dim) / values.shape[dim],
        Aggregation.L2: lambda: (values**2).sum(dim) ** 0.5,
        Aggregation.VARIANCE: lambda: ((values - values.mean(dim, keepdim=True)) ** 2).mean(dim),
    }[how]()


AGGREGATIONS = [AggregationConfig(sequence=s, batch=b) for s, b in itertools.product(Aggregation, repeat=2)]


@pytest.mark.parametrize("kind", ["llama3", "nemotron"])
def test_every_aggregation_is_that_of_the_hugging_face_model(tmp_path: Path, engine: Runtime, kind: str) -> None:
    """An oracle that shares nothing with ours: transformers' model in float64, all activations in one tensor."""
    folder = save_model(tmp_path / "model", kind, num_attention_heads=6)
    architecture = read_architecture(folder)
    ours = build(architecture, engine, sequence_length=32)
    conversion.load_into(ours, architecture, folder)
    data = batches(architecture.vocabulary_size, count=3)
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, tensor: Tensor) -> None:
        seen.setdefault(name, []).append(tensor)

    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    for index, layer in enumerate(oracle.model.layers):
        for name, module in (("ffn", layer.mlp.down_proj), ("heads", layer.self_attn.o_proj)):
            module.register_forward_hook(lambda _, inputs, __, at=f"{name}{index}": keep(at, inputs[0]))
        for name, module in (("a", layer.input_layernorm), ("b", layer.post_attention_layernorm)):
            module.register_forward_hook(lambda _, __, output, at=f"norm-{name}{index}": keep(at, output))
    with torch.no_grad():
        for tokens, _ in data:
            oracle(tokens)
    everything = {name: torch.cat(tensors) for name, tensors in seen.items()}  # [samples, sequence, channels]
    for how in AGGREGATIONS:

        def score(name: str, how: AggregationConfig = how) -> Tensor:
            return naive(naive(everything[name], how.sequence, 1), how.batch, 0)

        found = measure(ours, architecture, Samples(data), AXES, how)
        layers = range(architecture.layers)
        expected = {
            "ffn": torch.stack([score(f"ffn{index}") for index in layers]),
            "heads": torch.stack([score(f"heads{index}").view(6, -1).norm(dim=1) for index in layers]),
            "hidden": sum(score(name) for name in everything if name.startswith("norm")),
        }
        for axis, wanted in expected.items():
            error = (found[axis].double() - wanted).abs().max() / wanted.abs().max()
            assert error < 2e-5, (axis, how)


@given(data=st.data())
def test_what_is_kept_between_passes_is_exact(data: st.DataObject) -> None:
    """However samples are split into passes and among ranks, and however large they are beside their spread."""
    offset = data.draw(st.sampled_from([0.0, 1e6]))
    samples = data.draw(st.integers(1, 9))
    seed = data.draw(st.integers(0, 99))
    values = torch.rand(samples, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + offset
    owners = data.draw(st.lists(st.integers(0, 2), min_size=samples, max_size=samples))
    size = data.draw(st.integers(1, 4))
    for kind in Aggregation:
        ranks = [OVER_BATCH[kind](torch.zeros(2, 3, dtype=torch.float64)) for _ in range(3)]
        for rank, state in enumerate(ranks):
            mine = values[[index for index, owner in enumerate(owners) if owner == rank]]
            for part, chunk in itertools.product(range(2), mine.split(size) if len(mine) else ()):
                state.add(part, chunk[:, part])
        found = _together(ranks)
        torch.testing.assert_close(found, naive(values, kind, 0), rtol=1e-9, atol=1e-9)


def _together(ranks: list[OverBatch]) -> Tensor:
    """What each rank gets: threads in place of processes, which meet at each sum."""
    meeting, told = threading.Barrier(len(ranks), timeout=60), [torch.empty(0)] * len(ranks)

    def total(rank: int) -> Tensor:
        def over_ranks(tensor: Tensor) -> Tensor:
            told[rank] = tensor
            meeting.wait()
            summed = torch.stack(told).sum(dim=0)
            meeting.wait()
            return summed

        return ranks[rank].total(over_ranks)

    with ThreadPoolExecutor(len(ranks)) as pool:
        found = list(pool.map(total, range(len(ranks))))
    assert all(torch.equal(found[0], other) for other in found)
    return found[0]


def test_measuring_leaves_no_trace(teacher: Teacher) -> None:
    model, architecture, _ = teacher
    model.train()
    measure(model, architecture, Samples(batches(architecture.vocabulary_size, count=1)), AXES)
    assert model.training
    assert model.post_process
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("how", AGGREGATIONS, ids=lambda how: f"{how.sequence}-{how.batch}")
def test_the_split_into_batches_does_not_matter(teacher: Teacher, how: AggregationConfig) -> None:
    model, architecture, _ = teacher
    whole = batches(architecture.vocabulary_size, count=1, size=6)
    tokens, positions = whole[0]
    split = [(tokens[:1], positions[:1]), (tokens[1:], positions[1:])]
    one, two = (measure(model, architecture, Samples(data), AXES, how) for data in (whole, split))
    for axis in AXES:
        torch.testing.assert_close(one[axis], two[axis], rtol=1e-5, atol=1e-7)


def made_up(layers: int = 2, heads: int = 4, groups: int = 2) -> Architecture:
    return Architecture.model_validate(
        {
            "family": "Llama",
            "layers": layers,
            "hidden_size": 4,
            "ffn_hidden_size": 3,
            "attention_heads": heads,
            "query_groups": groups,
            "head_dim": 2,
            "vocabulary_size": 8,
        }
    )


def test_choosing() -> None:
    scores = {
        "hidden": torch.tensor([1.0, 3.0, 3.0, 0.0]),
        "ffn": torch.tensor([[0.0, 2.0, 1.0], [5.0, 4.0, 3.0]]),
        "heads": torch.tensor([[9.0, 8.0, 1.0, 2.0], [1.0, 2.0, 8.0, 9.0]]),
        "layers": torch.tensor([0.1, 0.2]),
    }
    prune = PruneConfig(hidden_size=2, ffn_hidden_size=2, attention_heads=2, layers=1)
    chosen = choose(scores, made_up(), prune)
    assert chosen.hidden is not None and chosen.ffn is not None and chosen.heads is not None
    assert chosen.hidden.tolist() == [1, 2]  # a tie: the lower index first
    assert chosen.ffn.tolist() == [[1, 2], [0, 1]]
    assert chosen.heads.tolist() == [[0, 3], [1, 3]]  # one of each group, although group 0 outscores group 1
    assert chosen.layers == [1]
    assert chosen.to_json() == {"layers": [2], "hidden": [1, 2], "ffn": [[0, 1]], "heads": [[1, 3]]}
    untouched = choose(scores, made_up(), PruneConfig(hidden_size=4, attention_heads=4))
    assert untouched == Choice(None, None, None, [0, 1])
    assert choose(scores, made_up(), PruneConfig(drop_layers=[1])).layers == [1]


def test_a_page_shows_scores_and_choice_and_is_the_same_every_time(tmp_path: Path) -> None:
    teacher = made_up(layers=20, heads=8)
    generator = torch.Generator().manual_seed(0)
    scores = {
        "hidden": torch.rand(4, generator=generator),
        "ffn": torch.rand(20, 3, generator=generator),
        "heads": torch.rand(20, 8, generator=generator),
        "layers": torch.rand(20, generator=generator),
    }
    prune = PruneConfig(hidden_size=2, ffn_hidden_size=2, attention_heads=4, layers=9)
    pages: list[str] = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        choice = choose(scores, teacher, prune)
        job = PruneJob.model_construct(prune=prune, evaluate=None)
        write_scores([Cut(student_architecture(teacher, prune), scores, choice.layers)], choice, job, folder)
        write_importance(folder, teacher, prune, [layer + 1 for layer in choice.layers])
        pages.append((folder / "importance.html").read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    text = " ".join(Page(pages[0]).text.split())
    for panel in ("block influence (log scale)", "Attention heads", "2 channels kept", "2 neurons a layer kept"):
        assert panel in text
    kept = choose(scores, teacher, prune).layers
    assert f"kept: {number_runs(layer + 1 for layer in kept)} of 20" in text
