"""The tensors of a checkpoint against those that its architecture asks for, and what is said where they differ."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from compression_pipeline.config import Architecture
from compression_pipeline.errors import UserError

from .headers import WEIGHT_TYPES, TensorEntry
from .layout import CONFIG
from .names import EMBEDDING, OUTPUT, Shape, is_redundant

QUANTIZED = re.compile(
    r".*\.(qweight|qzeros|qscales|scales|g_idx|q_\w+|SCB|CB|absmax|quant_map|nested_\w+|quant_state\..*|weight_format"
    r"|(weight|input|output|k|v|kv|q)(_scale|_scale_2|_scale_inv|_zero_point|_packed|_shape|_g_idx|_global_scale)"
    r"|weight\.(absmax|quant_map|nested_\w+|quant_state\..*)|biases)"
)
"""Tensors that stand beside the packed weights of GPTQ, AWQ, bitsandbytes, FP8, NVFP4, compressed-tensors, MLX."""

_LORA = re.compile(r".*(\.|^)(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|modules_to_save|base_layer)\..*")
_WRAPPER = re.compile(r"(^|\.)(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)(?=\.)")
_META = re.compile(r"(.*\.)?(tok_embeddings|layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123]))\.weight")
_MEGATRON = re.compile(r"(.*\.)?(word_embeddings\.weight|self_attention\.linear_(qkv|proj)\.weight)")
_HEADS = re.compile(r"(score|classifier|v_head|value_head|qa_outputs|lm_heads?\.\d+|medusa_head)\.?.*")


def check_tensors(
    folder: Path, found: Mapping[str, TensorEntry], expected: Mapping[str, Shape], architecture: Architecture
) -> None:
    """Raise UserError, with a fix of its own for each kind of difference, unless all that is expected is there."""
    for fault in _FAULTS:
        said = fault(folder, found, expected)
        if said is not None:
            raise UserError(said)
    for name, shape in expected.items():
        if name not in found:
            raise UserError(
                f"{folder}: tensor {name} is missing, {CONFIG} asks for it; the two are not of the same model, or the "
                "copy is not whole: get both from the same source"
            )
        _check_shape(folder, name, found[name], shape)
    for name, entry in found.items():
        if name not in expected and not is_redundant(name, architecture):
            raise UserError(
                f"{folder / entry.file}: tensor {name} has no place in a {architecture.family} model of {CONFIG}'s "
                f"sizes; {_what_it_is(name)}"
            )


def _check_shape(folder: Path, name: str, found: TensorEntry, shape: Shape) -> None:
    if found.shape == shape:
        return
    if name == EMBEDDING and found.shape[1:] == shape[1:]:
        raise UserError(
            f"{folder / CONFIG}: vocab_size is {shape[0]}, but the embedding ({name}) has {found.shape[0]} "
            "rows; set vocab_size to that"
        )
    if name == OUTPUT and found.shape[1:] == shape[1:]:
        raise UserError(
            f"{folder / found.file}: tensor {name} has {found.shape[0]} rows, but vocab_size and the embedding have "
            f"{shape[0]}; resize both alike (transformers' resize_token_embeddings)"
        )
    raise UserError(
        f"{folder / found.file}: tensor {name} has shape {list(found.shape)}, {CONFIG} asks for "
        f"{list(shape)}; the two are not of the same model, get both from the same source"
    )


def _adapter(folder: Path, found: Mapping[str, TensorEntry], expected: Mapping[str, Shape]) -> str | None:
    name = next((name for name in found if _LORA.fullmatch(name)), None)
    if name is None:
        return None
    return (
        f"{folder / found[name].file}: tensor {name} is an adapter's (LoRA); merge it into the model first (peft's "
        "merge_and_unload), and name what that saves"
    )


def _quantized(folder: Path, found: Mapping[str, TensorEntry], expected: Mapping[str, Shape]) -> str | None:
    for name, entry in found.items():
        if entry.dtype not in WEIGHT_TYPES if name in expected else QUANTIZED.fullmatch(name):
            return (
                f"{folder / entry.file}: tensor {name} is of type {entry.dtype}, so the checkpoint is quantized; use "
                f"the one that is not, with weights of one of these types: {', '.join(WEIGHT_TYPES)}"
            )
    return None


def _renamed(folder: Path, found: Mapping[str, TensorEntry], expected: Mapping[str, Shape]) -> str | None:
    """Names that a wrapper, another class or another library gave."""
    if EMBEDDING in found and all(name in found for name in expected):
        return None
    here = set(found)
    first = min(here, default="")
    file = found[first].file if found else ""
    wrapped = {name: _WRAPPER.sub("", name).lstrip(".") for name in here}
    if set(wrapped.values()) != here and _most(expected, set(wrapped.values())):
        name = next(name for name, bare in sorted(wrapped.items()) if name != bare)
        return (
            f"{folder / found[name].file}: tensor {name} has the name that torch.compile or a parallel wrapper gives; "
            f"save the model inside of it, or rename it (and all others so) to {wrapped[name]}"
        )
    prefix = next((name.removesuffix(EMBEDDING) for name in sorted(here) if name.endswith(f".{EMBEDDING}")), "")
    if prefix and _most(expected, {name.removeprefix(prefix) for name in here}):
        return (
            f"{folder / file}: the tensors' names begin with {prefix} before what {CONFIG}'s model has; save the model "
            f"itself and not what wraps it, or remove {prefix} from every name"
        )
    if _most(expected, {f"model.{name}" for name in here}):
        return (
            f"{folder / file}: the tensors are those of the base model ({first} and not model.{first}), as AutoModel "
            "saves it, without its output layer; save the model that AutoModelForCausalLM loads"
        )
    other = next((name for name in sorted(here) if _META.fullmatch(name)), None)
    if other is not None:
        return (
            f"{folder / found[other].file}: the tensors have the names of the model's makers ({other}); convert them "
            "with transformers' convert_*_weights_to_hf.py, or name the model's Hugging Face checkpoint"
        )
    other = next((name for name in sorted(here) if _MEGATRON.fullmatch(name)), None)
    if other is not None:
        return (
            f"{folder / found[other].file}: the tensors have Megatron's names ({other}); export the model to Hugging "
            "Face's format first"
        )
    return None


def _head(folder: Path, found: Mapping[str, TensorEntry], expected: Mapping[str, Shape]) -> str | None:
    """A head that config.json ties and the file doesn't, or the other way round."""
    missing = [name for name in expected if name not in found]
    if missing == [EMBEDDING] and OUTPUT in found:
        return f"{folder / found[OUTPUT].file}: there is {OUTPUT} and no {EMBEDDING}; " + (
            f"the model ties the two, so rename {OUTPUT} to {EMBEDDING}"
            if OUTPUT not in expected
            else "without an embedding it is no whole model, get all of its files"
        )
    if missing == [OUTPUT]:
        return (
            f"{folder}: there is no {OUTPUT}, and {CONFIG} does not say that the embedding takes its place; set "
            "tie_word_embeddings to true there if the model ties them, else add the shard that has it"
        )
    return None


_Fault = Callable[[Path, Mapping[str, TensorEntry], Mapping[str, Shape]], str | None]
_FAULTS: tuple[_Fault, ...] = (_adapter, _quantized, _renamed, _head)


def _most(expected: Mapping[str, Shape], names: set[str]) -> bool:
    """Whether names are those of the model, all but its head perhaps."""
    return all(name in names for name in expected if name not in (OUTPUT, EMBEDDING))


def _what_it_is(name: str) -> str:
    if _HEADS.fullmatch(name):
        return "it is a head for another task; use the causal language model alone"
    if name.endswith(".bias"):
        return "biases there are not supported; use another model"
    if ".experts." in name or name.endswith(".gate.weight"):
        return "a mixture of experts is not supported; use a dense model"
    if re.match(r"(.*\.)?(vision\w*|visual|audio\w*|multi_modal_projector|mm_projector)\.", name):
        return "pictures and sound are not supported; use a model of text alone"
    return (
        f"{CONFIG} is not that of these weights, or it is a model that is more than this one; get both from one source"
    )
