"""Libraries without what they would import besides, for nothing that is done here: most of a short job is imports."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def missing(*names: str) -> Iterator[None]:
    """Python finds none of these modules in this block, be it that they were imported before."""
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    # None in sys.modules is Python's way to say that a module is not there.
    sys.modules |= dict.fromkeys(names)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules |= before


def import_transformers() -> Any:
    """transformers, which looks once what is there. With scikit-learn and SciPy it would import both beside every
    model, for assisted generation and for losses of object detection: half of its own time.
    """
    with missing("sklearn", "scipy"):
        return importlib.import_module("transformers")


def preload_transformers() -> None:
    """Import what loads any checkpoint and tokenizer: transformers imports its parts when they are first named."""
    library = import_transformers()
    for name in ("AutoModelForCausalLM", "AutoTokenizer"):
        getattr(library, name)
