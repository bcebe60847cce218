"""Manifests in files: the one way from a YAML file to a CompressionRun."""

from collections.abc import Sequence
from pathlib import Path

from .faults import Fault, InvalidManifest
from .rules import World
from .run import CompressionRun
from .validate import validate

__all__ = ["Fault", "InvalidManifest", "World", "load"]


def load(path: Path, world: World, overrides: Sequence[str] = ()) -> CompressionRun:
    """The CompressionRun in the file `path`, as it would run in `world`, after `overrides` (`path=value` each).

    Raises InvalidManifest with every fault of the file, also where it can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidManifest([Fault(str(path), "", "is not UTF-8 text; a manifest is a YAML file")]) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InvalidManifest([Fault(str(path), "", f"cannot be read: {reason}")]) from None
    run = validate(text, str(path), world, overrides)
    if isinstance(run, list):
        raise InvalidManifest(run)
    return run
