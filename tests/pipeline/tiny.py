"""A tiny random Llama checkpoint with a real tokenizer, made without torch."""

import json
import pydoc_data.topics
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "eos_token_id": 0,
    "bos_token_id": None,
}


def texts() -> list[str]:
    """Real text that every machine has: the pages of Python's own help, in the order of their titles."""
    return [text for _, text in sorted(pydoc_data.topics.topics.items())]


def write_tokenizer(folder: Path, vocabulary: int = 512) -> None:
    """A byte-level BPE tokenizer trained on `texts`, with an end-of-text token (id 0)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": END}))


def write_checkpoint(folder: Path, *, vocabulary: int = 512, seed: int = 0) -> None:
    """A whole checkpoint: random float32 weights of `CONFIG`'s sizes, tokenizer, generation config."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"vocab_size": vocabulary}
    hidden, ffn, heads, groups, dim = 64, 128, 4, 2, 16
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.02).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": normal(vocabulary, hidden),
        "model.norm.weight": np.ones(hidden, np.float32),
        "lm_head.weight": normal(vocabulary, hidden),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        tensors |= {
            f"{layer}.input_layernorm.weight": np.ones(hidden, np.float32),
            f"{layer}.post_attention_layernorm.weight": np.ones(hidden, np.float32),
            f"{layer}.self_attn.q_proj.weight": normal(heads * dim, hidden),
            f"{layer}.self_attn.k_proj.weight": normal(groups * dim, hidden),
            f"{layer}.self_attn.v_proj.weight": normal(groups * dim, hidden),
            f"{layer}.self_attn.o_proj.weight": normal(hidden, heads * dim),
            f"{layer}.mlp.gate_proj.weight": normal(ffn, hidden),
            f"{layer}.mlp.up_proj.weight": normal(ffn, hidden),
            f"{layer}.mlp.down_proj.weight": normal(hidden, ffn),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    write_tokenizer(folder, vocabulary)
