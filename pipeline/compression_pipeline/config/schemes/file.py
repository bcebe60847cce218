"""`file:path`: files of the machine of a local run, relative to the folder of its manifest."""

from pathlib import Path
from typing import ClassVar

from .base import SourceScheme

_ROOT = "file"


class FileScheme(SourceScheme):
    """A file, a folder or a glob."""

    prefix: ClassVar = "file:"
    form: ClassVar = "file:path"
    note: ClassVar = " (relative to the manifest)"
    pattern: ClassVar = "file:.+"
    implementation: ClassVar = "compression_pipeline.sources.local:LocalSource"
    roles: ClassVar = frozenset({"model", "dataset", "tasks"})
    worlds: ClassVar = frozenset({"local"})
    manifest_root: ClassVar = _ROOT

    def root(self, source: str) -> str:
        return _ROOT

    def local_path(self, source: str, folder: Path) -> Path:
        return folder / self.without_prefix(source)
