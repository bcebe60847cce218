"""Writing a Hugging Face checkpoint: shards, index, config.json, and what comes along from its ancestor."""

import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from compression_pipeline.config import Architecture

from .families import member
from .files import read_config, write_json
from .layout import CONFIG, GENERATION_CONFIG, INDEX, SINGLE
from .names import expected_shapes
from .terms import PAPERS
from .tokenizer import TOKENIZER_FILES

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def bytes_of(size: str) -> int:
    """Bytes of a size such as 5GB, in Hugging Face's units (powers of ten)."""
    match = re.fullmatch(r"(\d+)(KB|MB|GB)", size)
    if match is None:
        raise ValueError(f"{size!r} is not a size such as 5GB")
    return int(match[1]) * UNITS[match[2]]


def plan_shards(sizes: Mapping[str, int], limit: int) -> dict[str, str]:
    """File of each tensor, as huggingface_hub's split_torch_state_dict_into_shards places them.

    In order, a new shard where the next tensor (`sizes` are bytes) would lift the current one over `limit`; a tensor
    larger than that has a shard to itself.
    """
    shards: list[list[str]] = []
    current: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if size > limit:
            shards.append([name])
            continue
        if filled + size > limit:
            shards.append(current)
            current, filled = [], 0
        current.append(name)
        filled += size
    if current:
        shards.append(current)
    if len(shards) == 1:
        return dict.fromkeys(sizes, SINGLE)
    count = len(shards)
    return {
        name: f"model-{number:05d}-of-{count:05d}.safetensors"
        for number, names in enumerate(shards, 1)
        for name in names
    }


def write_checkpoint(
    tensors: Iterable[tuple[str, Tensor]],
    architecture: Architecture,
    folder: Path,
    *,
    template: Path,
    dtype: torch.dtype,
    max_shard_size: str = "5GB",
) -> None:
    """Write `tensors` (Hugging Face's names) as a checkpoint of `architecture` into `folder`.

    Shapes are checked against the architecture. Tensors may come in any order; a shard is written and forgotten as soon
    as it is whole, so layer after layer keeps memory low. `template`: folder of the checkpoint this one descends from.
    """
    expected = expected_shapes(architecture)
    width = torch.empty((), dtype=dtype).element_size()
    sizes = {name: width * math.prod(shape) for name, shape in expected.items()}
    places = plan_shards(sizes, bytes_of(max_shard_size))
    waiting: dict[str, dict[str, Tensor]] = {file: {} for file in places.values()}
    lacking = Counter(places.values())
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in tensors:
        if tuple(tensor.shape) != expected.get(name):
            raise RuntimeError(f"{name}: {list(tensor.shape)} is not {expected.get(name)}, as the sizes ask for")
        file = places[name]
        # A copy of its own: safetensors refuses tensors that share memory (gate and up are halves of one).
        copy = tensor.detach().to(device="cpu", dtype=dtype).clone(memory_format=torch.contiguous_format)
        waiting[file][name] = copy
        lacking[file] -= 1
        if not lacking[file]:
            save_tensors(waiting.pop(file), folder / file)
    if waiting:
        raise RuntimeError(f"the model lacks tensors of {', '.join(waiting)}")
    if len(lacking) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / INDEX, index)
    base = read_config(template)
    made = member(architecture.family).configuration(architecture, base, str(dtype).removeprefix("torch."))
    write_json(folder / CONFIG, made)
    copy_companions(template, folder)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that may be read by whom its folder may be: the library makes it private to its owner,
    but artifacts are shared."""
    save_file(dict(tensors), str(path), metadata={"format": "pt"})
    path.chmod(path.parent.stat().st_mode & 0o666)


def copy_companions(template: Path, folder: Path) -> None:
    """Copy tokenizer, licence and generation config; make the last from config.json where the template has none."""
    papers = (path for path in template.iterdir() if PAPERS.fullmatch(path.name))
    for path in sorted({*papers, *(path for pattern in TOKENIZER_FILES for path in template.glob(pattern))}):
        if path.is_file():
            target = folder / path.relative_to(template)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    if (template / GENERATION_CONFIG).is_file():
        shutil.copyfile(template / GENERATION_CONFIG, folder / GENERATION_CONFIG)
    else:
        config = read_config(template)
        special = {
            key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None
        }
        write_json(folder / GENERATION_CONFIG, {"_from_model_config": True, **special})
