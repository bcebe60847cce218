"""Mistral, the versions without a sliding window (7B v0.2 and later, NeMo)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from compression_pipeline.config import Family

from .base import HuggingFaceFamily


class Mistral(HuggingFaceFamily):
    """MistralForCausalLM."""

    family = Family.MISTRAL
    class_name = "MistralForCausalLM"
    model_type = "mistral"
    # transformers' MistralConfig: a config.json without sliding_window has one.
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
    }
