"""What a student should be: the chosen part of its teacher."""

from typing import Any

import torch
from safetensors.torch import load_file

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import Architecture

Weights = dict[str, torch.Tensor]


def weights(artifact: Artifact) -> Weights:
    return {name: tensor for file in artifact.model.glob("*.safetensors") for name, tensor in load_file(file).items()}


def sliced(teacher: Weights, architecture: Architecture, chosen: dict[str, Any]) -> Weights:
    """The student, cut out of the teacher's Hugging Face tensors with nothing but indices."""
    every = slice(None)
    hidden = every if chosen["hidden"] is None else torch.tensor(chosen["hidden"])
    d = architecture.head_dim

    def channels(heads: list[int]) -> torch.Tensor:
        return torch.cat([torch.arange(head * d, (head + 1) * d) for head in heads])

    made = {
        name: teacher[name][..., hidden]
        for name in ("model.embed_tokens.weight", "model.norm.weight", "model.norm.bias")
        if name in teacher
    }
    if "lm_head.weight" in teacher:
        made["lm_head.weight"] = teacher["lm_head.weight"][:, hidden]
    for new, number in enumerate(chosen["layers"]):
        ffn = every if chosen["ffn"] is None else torch.tensor(chosen["ffn"][new])
        heads = every if chosen["heads"] is None else channels(chosen["heads"][new])
        prefix = f"model.layers.{number - 1}."
        for name in (name for name in teacher if name.startswith(prefix)):
            tensor = teacher[name]
            match name.removeprefix(prefix).split("."):
                case ["mlp", "gate_proj" | "up_proj", _]:
                    tensor = tensor[ffn][:, hidden]
                case ["mlp", "down_proj", _]:
                    tensor = tensor[hidden][:, ffn]
                case ["self_attn", "q_proj", "weight"]:
                    tensor = tensor[heads][:, hidden]
                case ["self_attn", "q_proj", "bias"]:
                    tensor = tensor[heads]
                case ["self_attn", "k_proj" | "v_proj", "weight"]:
                    tensor = tensor[:, hidden]
                case ["self_attn", "o_proj", _]:
                    tensor = tensor[hidden][:, heads]
                case ["input_layernorm" | "post_attention_layernorm", _]:
                    tensor = tensor[hidden]
                case _:
                    pass  # biases of keys and values, norms within a head: as they are
            made[f"model.layers.{new}." + name.removeprefix(prefix)] = tensor
    return made
