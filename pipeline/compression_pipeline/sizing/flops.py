"""Floating-point operations that a model needs."""

from compression_pipeline.config import Architecture, Recomputation


def forward_flops(architecture: Architecture, sequence_length: int) -> float:
    """Operations of a forward pass for one token of a sequence of this length.

    Two for each weight that a token is multiplied with (the embedding is a look-up, the output layer is not), and
    four for each channel of each query head and each position attended to (scores, then values). A token attends to
    half of the sequence on average. As PaLM (arXiv 2204.02311, appendix B), but with the causal half, which is what
    Megatron-LM counts.
    """
    layer = 2 * _weights_of_layer(architecture) + _attention(architecture, sequence_length)
    return architecture.layers * layer + 2 * architecture.vocabulary_size * architecture.hidden_size


def training_flops(
    architecture: Architecture,
    sequence_length: int,
    teacher: Architecture | None = None,
    recomputation: Recomputation = Recomputation.NONE,
) -> float:
    """Operations of a training for one token: the backward pass costs twice the forward pass.

    Args:
        teacher: of a distillation, which also runs the teacher forward.
        recomputation: what the backward pass computes again; not Auto. It counts for the time, and not for a
            utilization, which is of the operations that the model needs (PaLM, appendix B).
    """
    taught = forward_flops(teacher, sequence_length) if teacher is not None else 0
    again = _again(architecture, sequence_length, recomputation)
    return 3 * forward_flops(architecture, sequence_length) + taught + again


def _again(architecture: Architecture, sequence_length: int, recomputation: Recomputation) -> float:
    """Of what `megatron/recomputation.py` computes again: all layers, or their MLPs; never the output layer."""
    match recomputation:
        case Recomputation.FULL:
            layer = 2 * _weights_of_layer(architecture) + _attention(architecture, sequence_length)
        case Recomputation.SELECTIVE:
            layer = 2 * _weights_of_mlp(architecture)
        case _:
            layer = 0
    return architecture.layers * layer


def _weights_of_layer(architecture: Architecture) -> int:
    queries, keys = (n * architecture.head_dim for n in (architecture.attention_heads, architecture.query_groups))
    return architecture.hidden_size * (2 * queries + 2 * keys) + _weights_of_mlp(architecture)


def _weights_of_mlp(architecture: Architecture) -> int:
    return architecture.ffn_matrices * architecture.hidden_size * architecture.ffn_hidden_size


def _attention(architecture: Architecture, sequence_length: int) -> float:
    """Of a layer."""
    return 4 * architecture.attention_heads * architecture.head_dim * (sequence_length + 1) / 2
