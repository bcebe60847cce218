"""Which files of a folder or repository make a Hugging Face checkpoint: safetensors, configuration, tokenizer."""

import re
from collections.abc import Iterable

from compression_pipeline.errors import UserError

_OTHER = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|added_tokens\.json|tokenizer\.model|vocab\.json|merges\.txt|chat_template\.(json|jinja)"
)
_PAPERS = re.compile(r"(LICENSE|NOTICE|USE_POLICY)(\.txt|\.md)?")
"""What comes with a checkpoint and shapes nothing that is made of it."""

_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PICKLE = re.compile(r".*\.(bin|pt|pth|ckpt)")


def select(names: Iterable[str], where: str) -> list[str]:
    """The names that belong to the checkpoint, sorted; nothing in subfolders, no pickles, no code.

    Raises UserError where there are only pickled weights, or none.
    """
    here = sorted(name for name in names if "/" not in name)
    if _INDEX in here:
        weights = [_INDEX, *(name for name in here if _SHARD.fullmatch(name))]
    else:
        weights = [name for name in here if name == "model.safetensors" or _SHARD.fullmatch(name)]
    if not weights:
        pickled = [name for name in here if _PICKLE.fullmatch(name)]
        if pickled:
            raise UserError(
                f"{where} has its weights only as pickle ({pickled[0]}), which may run code when loaded; convert them "
                "to safetensors"
            )
        raise UserError(f"{where} has no safetensors weights; name a Hugging Face checkpoint")
    return sorted([*weights, *(name for name in here if _OTHER.fullmatch(name) or not shapes(name))])


def shapes(name: str) -> bool:
    """Whether what is made of the checkpoint depends on the file of this name."""
    return _PAPERS.fullmatch(name) is None
