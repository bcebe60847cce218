"""Models of every architecture have its shapes; attention and rotary frequencies are the reference's."""

from typing import Any, cast

import pytest
import torch
from engine_models import architecture, randomize

from compression_pipeline.config import Architecture, sequence_fault
from compression_pipeline.errors import UserError
from compression_pipeline.megatron.model import build, rope_frequencies
from compression_pipeline.megatron.runtime import Runtime

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tied_embeddings": True},
        {"family": "Qwen2", "qkv_bias": True},
        {"family": "Qwen3", "qk_norm": True, "head_dim": 20},
        {"vocabulary_size": 317, "query_groups": 1},
    ],
    ids=["llama", "tied", "qkv-bias", "qk-norm", "odd-vocabulary"],
)
def test_the_parameter_count_is_the_analytic_one(engine: Runtime, fields: dict[str, Any]) -> None:
    shape = architecture(**fields)
    model = build(shape, engine, sequence_length=16)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters
    assert model.embedding.word_embeddings.weight.shape == (shape.vocabulary_size, shape.hidden_size)


def test_attention_is_megatrons_own(engine: Runtime) -> None:
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    shape = architecture()
    model = build(shape, engine, sequence_length=16)
    fused = cast("DotProductAttention", model.decoder.get_submodule("layers.0.self_attention.core_attention"))
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(16, 2, shape.attention_heads, shape.head_dim, generator=generator, requires_grad=True)
    key, value = (
        torch.randn(16, 2, shape.query_groups, shape.head_dim, generator=generator, requires_grad=True)
        for _ in range(2)
    )
    hidden = torch.triu(torch.ones(16, 16, dtype=torch.bool), diagonal=1)[None, None]
    expected = DotProductAttention.forward(fused, query, key, value, hidden)
    expected_gradients = torch.autograd.grad(expected.square().sum(), (query, key, value))
    for mask in (None, hidden):
        found = fused(query, key, value, mask)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        gradients = torch.autograd.grad(found.square().sum(), (query, key, value))
        for gradient, reference in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


def test_a_token_does_not_see_the_ones_after_it(engine: Runtime) -> None:
    model = build(architecture(), engine, sequence_length=16).eval()
    randomize(model)
    tokens = torch.randint(0, 320, (1, 16), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 320
    positions = torch.arange(16)[None]
    with torch.no_grad():
        before, after = model(tokens, positions, None), model(changed, positions, None)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize(
    "scaling", [None, {"rope_type": "default"}, {"type": "linear", "factor": 4.0}, LLAMA3], ids=str
)
def test_rope_frequencies_are_those_of_transformers(scaling: dict[str, Any] | None) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    shape = architecture(rope_scaling=scaling, rope_theta=500000.0, head_dim=64)
    config = LlamaConfig(hidden_size=48, num_attention_heads=4, head_dim=64, rope_theta=500000.0, rope_scaling=scaling)
    kind = "linear" if scaling and "type" in scaling else (scaling or {}).get("rope_type", "default")
    expected, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    assert torch.equal(rope_frequencies(shape), expected)


@pytest.mark.parametrize(
    ("scaling", "sentence"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "rope_scaling of type 'yarn' isn't supported"),
        ({"rope_type": "llama3", "factor": 8.0}, "rope_scaling of type 'llama3' needs the field"),
    ],
)
def test_unknown_rope_scaling_is_refused(scaling: dict[str, Any], sentence: str) -> None:
    shape: Architecture = architecture(rope_scaling=scaling)
    with pytest.raises(UserError, match=sentence):
        rope_frequencies(shape)


def test_a_model_is_not_asked_for_positions_that_it_has_not_learned(engine: Runtime) -> None:
    shape = architecture(max_position_embeddings=16)
    assert build(shape, engine, sequence_length=16)
    with pytest.raises(UserError, match=r"dataset.sequenceLength: 17 is more than the teacher's 16 positions"):
        build(shape, engine, sequence_length=17)


def test_positions_that_are_stretched_are_learned() -> None:
    shape = architecture(max_position_embeddings=16)
    assert sequence_fault(shape, 64) is not None
    linear = shape.model_copy(update={"rope_scaling": {"rope_type": "linear", "factor": 4.0}})
    assert sequence_fault(linear, 64) is None
    assert "64 positions (max_position_embeddings times the factor of" in (sequence_fault(linear, 65) or "")
    # What its config gives is after that: Llama 3.1's 131,072.
    llama3 = shape.model_copy(update={"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})
    assert sequence_fault(llama3, 64) is not None
