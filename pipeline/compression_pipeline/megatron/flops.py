"""Floating-point operations that a model needs, and the share of the hardware's peak that a rate of tokens uses."""

from compression_pipeline.config import Architecture

PEAK_BF16: dict[str, float] = {
    "B300": 2.25e15,
    "B200": 2.25e15,
    "GB200": 2.5e15,
    "H200": 989.4e12,
    "GH200": 989.4e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "H800": 989.4e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "A30": 165e12,
    "A40": 149.7e12,
    "RTX 6000 Ada": 364.2e12,
    "RTX A6000": 154.8e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""Dense BF16 peak with FP32 accumulation in operations per second, by NVIDIA's data sheets (no sparsity)."""


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


def training_flops(architecture: Architecture, sequence_length: int) -> float:
    """Operations of forward and backward pass for one token: the backward pass costs twice the forward pass."""
    return 3 * forward_flops(architecture, sequence_length)


def peak_flops(device_name: str) -> float | None:
    """Dense BF16 peak of a GPU by its name as the driver tells it; None where it isn't known.

    The longest name in the table that the driver's contains is taken, so that an H100 PCIe is no H100.
    """
    words = device_name.replace("-", " ")
    known = [name for name in PEAK_BF16 if f" {name} " in f" {words} "]
    return PEAK_BF16[max(known, key=len)] if known else None
