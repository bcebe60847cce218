"""The shape of a decoder-only transformer, its parameter count, and the student that pruning makes of it."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from .base import Record


class Family(StrEnum):
    """Model families that round-trip between Hugging Face and Megatron without loss."""

    LLAMA = "Llama"
    MISTRAL = "Mistral"
    QWEN2 = "Qwen2"
    QWEN3 = "Qwen3"


class Architecture(Record):
    """Everything that fixes the shapes and the forward pass of a model."""

    family: Family = Field(description="Model family.")
    layers: int = Field(ge=1, description="Number of transformer layers.")
    hidden_size: int = Field(ge=1, description="Width of the residual stream.")
    ffn_hidden_size: int = Field(
        ge=1, description="Width of the feed-forward block (intermediate_size in Hugging Face)."
    )
    attention_heads: int = Field(ge=1, description="Number of query heads.")
    query_groups: int = Field(ge=1, description="Number of key/value heads.")
    head_dim: int = Field(ge=1, description="Number of channels of one head.")
    vocabulary_size: int = Field(ge=1, description="Number of rows of the embedding.")
    tied_embeddings: bool = Field(default=False, description="Whether the output layer shares the embedding's weights.")
    qkv_bias: bool = Field(default=False, description="Whether query, key and value projections have biases.")
    qk_norm: bool = Field(default=False, description="Whether queries and keys are normalized per head.")
    norm_epsilon: float = Field(default=1e-5, gt=0, description="Epsilon of RMSNorm, added to the variance.")
    rope_theta: float = Field(default=10000.0, gt=0, description="Base of the rotary embedding.")
    rope_scaling: dict[str, Any] | None = Field(
        default=None, description="rope_scaling of the Hugging Face configuration, unchanged."
    )
    max_position_embeddings: int = Field(default=2048, ge=1, description="Longest supported sequence, in tokens.")

    @property
    def parameters(self) -> int:
        """Number of parameters, tied embeddings counted once."""
        h, d = self.hidden_size, self.head_dim
        q, kv = self.attention_heads * d, self.query_groups * d
        attention = h * (q + 2 * kv) + q * h
        attention += (q + 2 * kv) if self.qkv_bias else 0
        attention += 2 * d if self.qk_norm else 0
        layer = attention + 3 * h * self.ffn_hidden_size + 2 * h
        embeddings = self.vocabulary_size * h * (1 if self.tied_embeddings else 2)
        return self.layers * layer + embeddings + h
