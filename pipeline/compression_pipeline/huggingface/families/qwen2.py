"""Qwen2 and Qwen2.5: biases on query, key and value; the small ones tie their embeddings."""

from collections.abc import Mapping
from typing import Any, ClassVar

from compression_pipeline.config import Family

from .base import HuggingFaceFamily


class Qwen2(HuggingFaceFamily):
    """Qwen2ForCausalLM."""

    family = Family.QWEN2
    class_name = "Qwen2ForCausalLM"
    model_type = "qwen2"
    qkv_bias = True
    # transformers' Qwen2Config.
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }

    def window(self, config: Mapping[str, Any]) -> int | None:
        """As transformers: `layer_types` decides; where it is missing, layers from `max_window_layers` on have it."""
        if not self.value(config, "use_sliding_window"):
            return None
        layers, first = self.value(config, "num_hidden_layers"), self.value(config, "max_window_layers")
        types = config.get("layer_types")
        used = "sliding_attention" in types if types else first < layers
        return super().window(config) if used else None
