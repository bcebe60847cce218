"""Floating-point operations that a model needs."""

from compression_pipeline.config import Architecture


def forward_flops(architecture: Architecture, sequence_length: int) -> float:
    """Operations of a forward pass for one token of a sequence of this length.

    Two for each weight that a token is multiplied with (the embedding is a look-up, the output layer is not), and
    four for each channel of each query head and each position attended to (scores, then values). A token attends to
    half of the sequence on average. As PaLM (arXiv 2204.02311, appendix B), but with the causal half, which is what
    Megatron-LM counts.
    """
    h, d = architecture.hidden_size, architecture.head_dim
    queries, keys = architecture.attention_heads * d, architecture.query_groups * d
    layer = h * (queries + 2 * keys) + queries * h + architecture.ffn_matrices * h * architecture.ffn_hidden_size
    weights = architecture.layers * layer + architecture.vocabulary_size * h
    attention = architecture.layers * 4 * queries * (sequence_length + 1) / 2
    return 2 * weights + attention


def training_flops(architecture: Architecture, sequence_length: int, teacher: Architecture | None = None) -> float:
    """Operations of a training for one token: the backward pass costs twice the forward pass, and nothing is computed
    again. `teacher`: of a distillation, which also runs the teacher forward.
    """
    taught = forward_flops(teacher, sequence_length) if teacher is not None else 0
    return 3 * forward_flops(architecture, sequence_length) + taught
