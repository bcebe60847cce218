"""Hugging Face's tensors to Megatron's (local layer specification) and back, bit for bit.

Megatron fuses what Hugging Face keeps apart. `linear_qkv` holds, for each KV group in turn, the group's query heads,
its key head and its value head, each `head_dim` rows; `linear_fc1` holds the gate's rows, if there is a gate, then the
up projection's.
Rotary embeddings rotate halves on both sides, so no rows are permuted within a head.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from compression_pipeline.config import Architecture, Stage, stages
from compression_pipeline.errors import UserError

from .files import inspect
from .names import EMBEDDING, FINAL_NORM, OUTPUT, expected_shapes, kinds, layer_prefix
from .splitting import WHOLE, Share

MEGATRON_EMBEDDING = "embedding.word_embeddings.weight"
MEGATRON_FINAL_NORM = "decoder.final_layernorm"
QKV = "self_attention.linear_qkv"
FC1 = "mlp.linear_fc1.weight"
MEGATRON_OUTPUT = "output_layer.weight"
_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")


def fuse_qkv(query: Tensor, key: Tensor, value: Tensor, architecture: Architecture) -> Tensor:
    """Weights (rows, hidden) or biases (rows,) of query, key and value in Megatron's order, by KV group."""
    groups, head_dim = architecture.query_groups, architecture.head_dim
    rest = query.shape[1:]
    parts = [tensor.reshape(groups, -1, head_dim, *rest) for tensor in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def split_qkv(fused: Tensor, architecture: Architecture) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `fuse_qkv`."""
    groups, head_dim = architecture.query_groups, architecture.head_dim
    heads = architecture.attention_heads // groups
    rest = fused.shape[1:]
    parts = fused.reshape(groups, heads + 2, head_dim, *rest).split([heads, 1, 1], dim=1)
    query, key, value = (part.reshape(-1, *rest) for part in parts)
    return query, key, value


def _whole_tensors(architecture: Architecture) -> Iterator[tuple[str, str]]:
    """(Hugging Face's name, Megatron's) of what is one tensor of a layer on both sides."""
    for kind in kinds(biased=architecture.normalization.biased):
        yield f"input_layernorm.{kind}", f"input_layernorm.{kind}"
        yield f"post_attention_layernorm.{kind}", f"pre_mlp_layernorm.{kind}"
    yield "self_attn.o_proj.weight", "self_attention.linear_proj.weight"
    if architecture.qk_norm:
        yield "self_attn.q_norm.weight", "self_attention.q_layernorm.weight"
        yield "self_attn.k_norm.weight", "self_attention.k_layernorm.weight"
    yield "mlp.down_proj.weight", "mlp.linear_fc2.weight"


def to_megatron(
    architecture: Architecture, tensor: Callable[[str], Tensor], stage: Stage | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) in Megatron's layout; `tensor` gives Hugging Face's by name, and is asked for each once.

    `stage`: what it has alone; None: all.
    """
    (whole,) = stages(architecture, 1)
    stage = stage or whole
    if stage.has_embedding(tied=architecture.tied_embeddings):
        yield MEGATRON_EMBEDDING, tensor(EMBEDDING)
    for layer in stage.layers:
        source, target = layer_prefix(layer), f"decoder.layers.{layer}."
        for theirs, ours in _whole_tensors(architecture):
            yield target + ours, tensor(source + theirs)
        for kind in kinds(biased=architecture.qkv_bias):
            parts = (tensor(f"{source}self_attn.{part}_proj.{kind}") for part in "qkv")
            yield f"{target}{QKV}.{kind}", fuse_qkv(*parts, architecture=architecture)
        up = f"{source}mlp.up_proj.weight"
        if architecture.activation.gated:
            yield target + FC1, torch.cat((tensor(f"{source}mlp.gate_proj.weight"), tensor(up)))
        else:
            yield target + FC1, tensor(up)
    if not stage.last:
        return
    for kind in kinds(biased=architecture.normalization.biased):
        yield f"{MEGATRON_FINAL_NORM}.{kind}", tensor(f"{FINAL_NORM}.{kind}")
    if not architecture.tied_embeddings:
        yield MEGATRON_OUTPUT, tensor(OUTPUT)


def to_huggingface(architecture: Architecture, tensor: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) in Hugging Face's layout; `tensor` gives Megatron's by name."""
    yield EMBEDDING, tensor(MEGATRON_EMBEDDING)
    for layer in range(architecture.layers):
        source, target = f"decoder.layers.{layer}.", layer_prefix(layer)
        for theirs, ours in _whole_tensors(architecture):
            yield target + theirs, tensor(source + ours)
        for kind in kinds(biased=architecture.qkv_bias):
            parts = split_qkv(tensor(f"{source}{QKV}.{kind}"), architecture)
            for part, value in zip("qkv", parts, strict=True):
                yield f"{target}self_attn.{part}_proj.{kind}", value
        up = tensor(source + FC1)
        if architecture.activation.gated:
            gate, up = up.chunk(2)
            yield f"{target}mlp.gate_proj.weight", gate
        yield f"{target}mlp.up_proj.weight", up
    for kind in kinds(biased=architecture.normalization.biased):
        yield f"{FINAL_NORM}.{kind}", tensor(f"{MEGATRON_FINAL_NORM}.{kind}")
    if not architecture.tied_embeddings:
        yield OUTPUT, tensor(MEGATRON_OUTPUT)


def megatron_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every parameter of a GPTModel of `architecture`, by Megatron's name."""
    expected = expected_shapes(architecture)
    tensors = to_megatron(architecture, lambda name: torch.empty(expected[name], device="meta"))
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def stage_of(model: Any) -> Stage:
    """Which part of a whole model a GPTModel is."""
    layers = model.decoder.layers
    start = layers[0].layer_number - 1
    return Stage(range(start, start + len(layers)), first=model.pre_process, last=model.post_process)


def named_weights(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """A GPTModel's parameters by their names in a whole one.

    Megatron counts a stage's layers from 0, and calls it an output layer what the last of several stages has as its
    copy of a tied embedding.
    """
    stage = stage_of(model)
    copied = model.share_embeddings_and_output_weights and not stage.first
    for name, parameter in model.named_parameters():
        if copied and name == MEGATRON_OUTPUT:
            yield MEGATRON_EMBEDDING, parameter
        else:
            yield _LAYER.sub(lambda found: f"decoder.layers.{stage.layers[int(found[1])]}.", name, count=1), parameter


class CheckpointReader:
    """Tensors of a checkpoint by name, read one at a time: a model is never in memory twice."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError for everything that `files.inspect` does."""
        self.files = inspect(folder)
        self._open = {
            name: safe_open(str(folder / name), framework="pt", device="cpu") for name in self.files.weight_files
        }

    def __call__(self, name: str) -> Tensor:
        return self._open[self.files.tensors[name].file].get_tensor(name)

    def part(self, name: str, share: Share) -> Tensor:
        """What a rank has of a tensor; no more is read."""
        if share.ranks == 1:
            return self(name)
        return share.read(name, self._open[self.files.tensors[name].file].get_slice(name))


def load_into(model: Any, architecture: Architecture, folder: Path, share: Share = WHOLE) -> None:
    """Fill a GPTModel, or the stage of one, from a Hugging Face checkpoint, of which no more is read.

    Values are converted to the dtype of the parameters they fill. `share`: the model has that part of each tensor
    alone, and no more is read. Raises UserError where the checkpoint is damaged or isn't of `architecture`'s sizes.
    """
    reader = CheckpointReader(folder)
    if expected_shapes(reader.files.architecture) != expected_shapes(architecture):
        raise UserError(f"{folder}: the checkpoint has other sizes than expected; run the phase that made it again")
    parameters = dict(named_weights(model))
    with torch.no_grad():
        part = architecture.shared_by(share.ranks)
        for name, tensor in to_megatron(part, lambda name: reader.part(name, share), stage_of(model)):
            parameter = parameters.pop(name, None)
            if parameter is None or parameter.shape != tensor.shape:
                found = "nothing" if parameter is None else list(parameter.shape)
                raise RuntimeError(f"{name}: the model has {found}, the checkpoint {list(tensor.shape)}")
            parameter.copy_(tensor)
    if parameters:
        raise RuntimeError(f"the checkpoint has nothing for the model's {', '.join(parameters)}")
