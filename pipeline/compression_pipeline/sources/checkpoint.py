"""Which files of a folder or repository make a Hugging Face checkpoint: safetensors, configuration, tokenizer."""

from collections.abc import Collection
from pathlib import PurePosixPath

from compression_pipeline.huggingface.layout import Read, weight_files
from compression_pipeline.huggingface.terms import CARD, PAPERS
from compression_pipeline.huggingface.tokenizer import TOKENIZER_FILES

_PATTERNS = ("config.json", "generation_config.json", *TOKENIZER_FILES)


def select(names: Collection[str], read: Read, where: str) -> list[str]:
    """The names that belong to the checkpoint, sorted: the weights that transformers would load, and what goes with
    them; no pickles, no code.

    `names` are relative to the folder, with those of the folders below it; `read` gives the content of a small one.
    Raises UserError where there are no such weights, with what to name instead.
    """
    weights = weight_files(names, read, where)
    return sorted({*weights, *(name for name in names if _is_companion(name) or not shapes(name))})


def shapes(name: str) -> bool:
    """Whether what is made of the checkpoint depends on the file of this name."""
    return name != CARD and PAPERS.fullmatch(name) is None


def _is_companion(name: str) -> bool:
    return any(PurePosixPath("/", name).match(f"/{pattern}") for pattern in _PATTERNS)
