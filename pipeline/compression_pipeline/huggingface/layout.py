"""Which files of a folder or repository are its weights, chosen as transformers chooses them; and what it is instead
where it has none. Pure: names go in, and a way to read a small file.
"""

import json
import re
from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Any

from compression_pipeline.errors import UserError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

Read = Callable[[str], bytes]
"""Gives the content of a small file by its name."""

_STRANGERS: tuple[tuple[str, str], ...] = (
    (r"adapter_(config\.json|model\..*)", "is an adapter (LoRA){base}, not a model; merge it into its base first "
     "(peft's merge_and_unload), and name what that saves"),
    (r".*\.gguf", "has its weights only as GGUF ({name}); name the checkpoint that it was converted from"),
    (r"params\.json|consolidated.*\.(pth|safetensors)|tekken\.json", "is in the format of the model's makers ({name}); "
     "name the model's Hugging Face checkpoint, or convert it with transformers' convert_*_weights_to_hf.py"),
    (r"[^/]*\.nemo|model_config\.yaml|context/(model|io)\..*|weights/(common\.pt|metadata\.json|.*\.distcp)",
     "is a NeMo checkpoint ({name}); export it to Hugging Face's format first, and name what that writes"),
    (r"latest_checkpointed_iteration\.txt|iter_\d+/.*|(.*/)?mp_rank_\d+.*\.pt|common\.pt", "is a Megatron checkpoint "
     "({name}); convert it to Hugging Face's format first, and name what that writes"),
    (r"zero_to_fp32\.py|global_step\d+/.*", "is a DeepSpeed checkpoint ({name}); run its zero_to_fp32.py with "
     "--safe_serialization, and name what that writes"),
    (r"(.*/)?[^/]*\.distcp", "is a distributed checkpoint of torch ({name}); save the model with save_pretrained, and "
     "name what that writes"),
    (r"model\.[^.]+\.safetensors(\.index\.json)?|model\.[^.]+-\d+-of-\d+\.safetensors", "has its weights only as a "
     "variant ({name}); save it without one as model.safetensors, for nothing else is looked for"),
    (r"model-\d+-of-\d+\.safetensors", f"has shards ({{name}}, ...), but {INDEX} is missing; get that file from where "
     "the shards came from"),
    (r"[^/]*\.safetensors", f"has safetensors files ({{name}}), but neither {SINGLE} nor {INDEX}, which are what is "
     "looked for; rename the file, or save the model with save_pretrained"),
    (r"[^/]*\.(bin|pt|pth|ckpt)", "has its weights only as pickle ({name}), which may run code when loaded; convert "
     "them to safetensors"),
    (r"(tf_model|flax_model|openvino_model).*|[^/]*\.(onnx|engine|npz)", "has its weights only in another format "
     "({name}); convert them to safetensors with transformers' save_pretrained"),
)  # fmt: skip
"""What people take for a Hugging Face checkpoint, by the name of a file in it: (pattern, what it is and what to do)."""


def weight_files(names: Collection[str], read: Read, where: str) -> list[str]:
    """The files that transformers would load the weights from: the single file, else the index and the files that it
    names; whatever lies beside them is left alone.

    Args:
        names: files of the folder and of those below it, relative to it.
        where: what a sentence calls the folder.

    Raises:
        UserError: there are none, or the index names a file that isn't there.
    """
    if SINGLE in names:
        return [SINGLE]
    if INDEX not in names:
        raise UserError(f"{where} {_instead(names, read)}")
    files = sorted(set(weight_map(read(INDEX), f"{where}: {INDEX}").values()))
    lost = next((file for file in files if file not in names), None)
    if lost is not None:
        raise UserError(f"{where}: {lost} is missing, {INDEX} lists it; get it from where the other shards came from")
    return [INDEX, *files]


def weight_map(content: bytes, file: str) -> dict[str, str]:
    """Tensor -> file, of an index; `file` is how a sentence names the index."""
    found = parse(content, file).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise UserError(f"{file} has no weight_map; get it again from where the shards came from")
    wrong = next((name for name in found.values() if not _stays_inside(name)), None)
    if wrong is not None:
        raise UserError(f"{file}: shard {wrong} lies outside of the folder; correct the index")
    return found


def parse(content: bytes, file: str) -> dict[str, Any]:
    """A JSON object, as bytes; `file` is how a sentence names it."""
    if is_pointer(content):
        raise UserError(f"{file} is {POINTER}")
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error}); copy it from the model's source again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is not a JSON object; copy it from the model's source again")
    return found


POINTER = "a Git LFS pointer, not the file itself; run git lfs pull in the repository that it came from"


def is_pointer(start: bytes) -> bool:
    """Whether a file that starts so stands for one that Git LFS keeps elsewhere."""
    return start.startswith(b"version https://git-lfs")


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _instead(names: Collection[str], read: Read) -> str:
    """What a folder without weights is, and what to do."""
    here = sorted(names)
    for pattern, told in _STRANGERS:
        name = next((name for name in here if re.fullmatch(pattern, name)), None)
        if name is not None:
            return told.format(name=name, base=_base_of_adapter(names, read))
    below = [name.rpartition("/")[0] for name in here if PurePosixPath(name).name in (SINGLE, INDEX)]
    whole = [folder for folder in below if f"{folder}/{CONFIG}" in names]
    snapshots = [folder for folder in whole if "snapshots/" in f"{folder}/"]
    if snapshots:
        return f"is a folder of a Hub cache; name the snapshot in it ({snapshots[-1]})"
    if whole:
        more = ", ..." if len(whole) > 1 else ""
        return f"has no safetensors weights itself, but folders below it have; name the one meant ({whole[0]}{more})"
    return f"has no safetensors weights: neither {SINGLE} nor {INDEX}; name the folder of a Hugging Face checkpoint"


def _base_of_adapter(names: Collection[str], read: Read) -> str:
    if "adapter_config.json" not in names:
        return ""
    base = parse(read("adapter_config.json"), "adapter_config.json").get("base_model_name_or_path")
    return f" of {base}" if base else ""
