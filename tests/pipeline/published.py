"""Architectures of published models, by their configurations."""

from typing import Any

from compression_pipeline.config import Architecture
from compression_pipeline.huggingface.families import family_of_config

LLAMA: dict[str, Any] = {"model_type": "llama", "num_key_value_heads": 8, "num_attention_heads": 32}
NEMO: dict[str, Any] = {"model_type": "mistral", "num_attention_heads": 32, "head_dim": 128, "sliding_window": None}
NEMOTRON: dict[str, Any] = {"model_type": "nemotron", "num_key_value_heads": 8, "head_dim": 128}
QWEN: dict[str, Any] = {"model_type": "qwen3", "num_attention_heads": 32, "num_key_value_heads": 8}


def described(family: dict[str, Any], layers: int, hidden: int, ffn: int, words: int, **more: Any) -> Architecture:
    """The architecture of a config.json with these sizes."""
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": ffn, "vocab_size": words}
    config = {**family, **sizes, **more}
    return family_of_config(config, "config.json").architecture(config)


LLAMA_8B = described(LLAMA, 32, 4096, 14336, 128256, head_dim=128)
NEMO_12B = described(NEMO, 40, 5120, 14336, 131072)
NEMOTRON_15B = described(NEMOTRON, 32, 6144, 24576, 256000, num_attention_heads=48)
QWEN_8B = described(QWEN, 36, 4096, 12288, 151936)
