"""Llama 2, 3 and 3.1 and later text models (rotary scaling of type llama3)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from compression_pipeline.config import Family

from .base import HuggingFaceFamily


class Llama(HuggingFaceFamily):
    """LlamaForCausalLM."""

    family = Family.LLAMA
    class_name = "LlamaForCausalLM"
    model_type = "llama"
    # transformers' LlamaConfig.
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    }
