"""Names and shapes of a checkpoint's tensors in Hugging Face's layout: pure, torch-free."""

from collections.abc import Iterator

from compression_pipeline.config import Architecture

Shape = tuple[int, ...]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm"
OUTPUT = "lm_head.weight"


def kinds(*, biased: bool) -> tuple[str, ...]:
    """The last part of the names of a module's tensors."""
    return ("weight", "bias") if biased else ("weight",)


def layer_prefix(layer: int) -> str:
    """Prefix of the tensors of a layer, counted from 0."""
    return f"model.layers.{layer}."


def layer_shapes(architecture: Architecture) -> Iterator[tuple[str, Shape]]:
    """(name without the layer's prefix, shape) of every tensor of one layer."""
    h, f, d = architecture.hidden_size, architecture.ffn_hidden_size, architecture.head_dim
    q, kv = architecture.attention_heads * d, architecture.query_groups * d
    yield from _norm("input_layernorm", architecture)
    for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
        yield f"self_attn.{name}.weight", (rows, h)
        if architecture.qkv_bias:
            yield f"self_attn.{name}.bias", (rows,)
    if architecture.qk_norm:
        yield "self_attn.q_norm.weight", (d,)
        yield "self_attn.k_norm.weight", (d,)
    yield "self_attn.o_proj.weight", (h, q)
    yield from _norm("post_attention_layernorm", architecture)
    if architecture.activation.gated:
        yield "mlp.gate_proj.weight", (f, h)
    yield "mlp.up_proj.weight", (f, h)
    yield "mlp.down_proj.weight", (h, f)


def _norm(name: str, architecture: Architecture) -> Iterator[tuple[str, Shape]]:
    for kind in kinds(biased=architecture.normalization.biased):
        yield f"{name}.{kind}", (architecture.hidden_size,)


def expected_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Every tensor of a checkpoint of `architecture`, in the order that shards are filled in."""
    h, v = architecture.hidden_size, architecture.vocabulary_size
    expected: dict[str, Shape] = {EMBEDDING: (v, h)}
    for layer in range(architecture.layers):
        for name, shape in layer_shapes(architecture):
            expected[layer_prefix(layer) + name] = shape
    expected.update(_norm(FINAL_NORM, architecture))
    if not architecture.tied_embeddings:
        expected[OUTPUT] = (v, h)
    return expected


def is_redundant(name: str, architecture: Architecture) -> bool:
    """Whether some published checkpoints have tensor `name` although the model computes or shares it."""
    return name.endswith("rotary_emb.inv_freq") or (name == OUTPUT and architecture.tied_embeddings)
