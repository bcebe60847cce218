"""Qwen2 and Qwen2.5: biases on query, key and value; the small ones tie their embeddings."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from compression_pipeline.config import Family

from .base import HuggingFaceFamily, sliding_window_fault


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
    }

    def faults(self, config: Mapping[str, Any]) -> Iterator[str]:
        yield from super().faults(config)
        if self.value(config, "use_sliding_window"):
            yield from sliding_window_fault(
                self.value(config, "sliding_window"),
                self.value(config, "max_position_embeddings"),
                "set use_sliding_window to false and max_position_embeddings to its length",
            )
