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
    NEMOTRON = "Nemotron"


class Activation(StrEnum):
    """What is between the matrices of the feed-forward block."""

    SWIGLU = "SwiGLU"
    SQUARED_RELU = "SquaredReLU"

    @property
    def gated(self) -> bool:
        """Whether a matrix of its own makes a gate, so that the block has three."""
        return self is Activation.SWIGLU


class Normalization(StrEnum):
    """How the residual stream is normalized before each block."""

    RMS_NORM = "RMSNorm"
    LAYER_NORM_1P = "LayerNorm1P"

    @property
    def biased(self) -> bool:
        """Whether it adds a bias."""
        return self is Normalization.LAYER_NORM_1P


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
    activation: Activation = Field(
        default=Activation.SWIGLU, description="Activation of the feed-forward block; SwiGLU has a gate."
    )
    normalization: Normalization = Field(
        default=Normalization.RMS_NORM,
        description="Normalization of the residual stream; LayerNorm1P has a bias and stores its weight minus 1.",
    )
    norm_epsilon: float = Field(default=1e-5, gt=0, description="Epsilon of the normalization, added to the variance.")
    rope_theta: float = Field(default=10000.0, gt=0, description="Base of the rotary embedding.")
    rotary_fraction: float = Field(default=1.0, gt=0, le=1, description="Rotated share of a head's channels.")
    rope_scaling: dict[str, Any] | None = Field(
        default=None, description="rope_scaling of the Hugging Face configuration, unchanged."
    )
    max_position_embeddings: int = Field(default=2048, ge=1, description="Longest supported sequence, in tokens.")

    @property
    def parameters(self) -> int:
        """Number of parameters, tied embeddings counted once."""
        tables = 1 if self.tied_embeddings else 2
        return self.layers * self.layer_parameters + tables * self.embedding_parameters + self.norm_parameters

    @property
    def layer_parameters(self) -> int:
        """Of one layer."""
        h, d = self.hidden_size, self.head_dim
        q, kv = self.attention_heads * d, self.query_groups * d
        attention = h * (q + 2 * kv) + q * h
        attention += (q + 2 * kv) if self.qkv_bias else 0
        attention += 2 * d if self.qk_norm else 0
        return attention + self.ffn_matrices * h * self.ffn_hidden_size + 2 * self.norm_parameters

    @property
    def embedding_parameters(self) -> int:
        """Of the embedding, and of the output layer."""
        return self.vocabulary_size * self.hidden_size

    @property
    def norm_parameters(self) -> int:
        """Of one norm of the residual stream."""
        return 2 * self.hidden_size if self.normalization.biased else self.hidden_size

    def shared_by(self, ranks: int) -> "Architecture":
        """The sizes of what one of so many ranks has that share its matrices; they must divide its widths."""
        shared = ("attention_heads", "query_groups", "ffn_hidden_size", "vocabulary_size")
        return self.model_copy(update={name: getattr(self, name) // ranks for name in shared})

    @property
    def ffn_matrices(self) -> int:
        """Matrices of hidden_size x ffn_hidden_size in a feed-forward block: up, down and, if it is gated, the gate."""
        return 3 if self.activation.gated else 2

    @property
    def rotary_dim(self) -> int:
        """Channels of one head that are rotated."""
        return int(self.head_dim * self.rotary_fraction)
