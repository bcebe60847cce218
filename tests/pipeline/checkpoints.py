"""Tiny random Hugging Face checkpoints, written by transformers itself, and a tokenizer to go with them."""

import json
from pathlib import Path
from typing import Any

VOCABULARY = 320

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

MODELS: dict[str, dict[str, Any]] = {
    "llama2": {"model_type": "llama", "num_key_value_heads": 4},
    "llama3": {"model_type": "llama", "rope_theta": 500000.0},
    "llama31": {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3, "tie_word_embeddings": True},
    "llama-wide-heads": {"model_type": "llama", "head_dim": 20, "num_attention_heads": 6},
    "mistral": {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 1},
    "qwen2-tied": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1000000.0},
    "nemotron": {"model_type": "nemotron", "norm_eps": 1e-5, "intermediate_size": 128, "head_dim": 16},
    "nemotron-quarter": {"model_type": "nemotron", "norm_eps": 1e-6, "partial_rotary_factor": 0.25, "head_dim": 16},
    "qwen3": {"model_type": "qwen3", "head_dim": 20, "tie_word_embeddings": True},
}
"""One of every kind that has to round-trip: grouped heads or not, tied or not, head_dim of its own, biases, qk-norm, no
gate, layernorm1p, heads that are rotated in part.
"""


def save_model(
    folder: Path, kind: str = "llama3", *, seed: int = 0, max_shard_size: str = "5GB", **fields: Any
) -> Path:
    """A checkpoint of `MODELS[kind]`, `fields` replacing its config's: every weight random, norms and biases too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {**BASE, **MODELS[kind], **fields}
    dtype = values.pop("dtype", torch.float32)
    model_type = values.pop("model_type")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values), dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.08
            around_one = name.endswith("norm.weight") and model_type != "nemotron"  # whose norms are stored minus 1
            parameter.copy_(noise + 1 if around_one else noise)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def save_tokenizer(folder: Path, size: int = VOCABULARY) -> None:
    """A byte-level BPE tokenizer of at most `size` tokens, trained on this file; token 0 ends documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "bos_token": "<|end|>",
        "model_max_length": 128,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def edit_json(path: Path, **fields: Any) -> None:
    """Replace fields of a JSON file; None removes one."""
    content = json.loads(path.read_text())
    content.update(fields)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
