"""What a kind of source says of itself without torch, and before anything is fetched."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from compression_pipeline.config.base import Rule

World = Literal["cluster", "local"]
Role = Literal["model", "dataset", "tasks"]


class SourceScheme:
    """One kind of source, told by the prefix of what a manifest names. What a scheme does not say is as here."""

    prefix: ClassVar[str] = ""
    """What its sources begin with, e.g. `hf://`."""
    form: ClassVar[str] = ""
    """How such a source is written, for sentences: `hf://owner/name`."""
    note: ClassVar[str] = ""
    """What follows the form where there is room for it."""
    pattern: ClassVar[str] = ""
    """Regular expression of a whole source, without anchors; RE2 and Python must read it alike."""
    implementation: ClassVar[str] = ""
    """`module:class` of what fetches it, a `compression_pipeline.sources.Source` made of a `Place`."""

    roles: ClassVar[frozenset[Role]] = frozenset({"model", "dataset"})
    """What it can be a source of."""
    worlds: ClassVar[frozenset[World]] = frozenset({"cluster", "local"})
    """Where runs can reach it."""
    revisions: ClassVar[bool] = False
    """Whether a manifest may name a revision of it."""
    downloads: ClassVar[bool] = False
    """Whether its files must come over the network first. False: the job finds them mounted, and reads them there."""
    cache: ClassVar[str | None] = None
    """Folder of the store that keeps its downloads, each in a folder of its own (`download`)."""
    manifest_root: ClassVar[str | None] = None
    """Its root (`root`) that stands for the folder of a local run's manifest."""

    secrets: ClassVar[Mapping[str, str | None]] = {}
    """Environment variables of prepare that hold secrets -> keys of the Secret that `teacher.secretRef` names; None for
    the key that it names. Local runs pass them on."""
    also_secret: ClassVar[tuple[str, ...]] = ()
    """Other variables that its client takes secrets from: no podTemplate may set them."""
    also_hidden: ClassVar[tuple[str, ...]] = ()
    """Variables of a like name that hold no less of a secret."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Environment variables that prepare needs besides, which are no secrets. Local runs pass them on."""
    offline: ClassVar[Mapping[str, str]] = {}
    """Environment variables by which its client never asks a server; jobs other than prepare get them."""
    server: ClassVar[str] = ""
    """What `offline` keeps jobs from, for sentences: `the Hub`."""

    def rules(self, path: str) -> Sequence[Rule]:
        """What else must hold for a source of this kind in the field `path`; for others the rules must hold."""
        return ()

    def without_prefix(self, source: str) -> str:
        """The source without its prefix."""
        return source.removeprefix(self.prefix)

    def name(self, source: str) -> str:
        """The last part of it, for titles."""
        return self.without_prefix(source.rstrip("/")).rpartition("/")[2] or source

    def root(self, source: str) -> str | None:
        """Key of `PrepareJob.source_roots` that the source is below; None: it is below no folder."""
        return None

    def path(self, source: str) -> str:
        """Where it is below its root."""
        return self.without_prefix(source)

    def volume_claim(self, source: str) -> str | None:
        """The PersistentVolumeClaim that a pod must mount for it. It is mounted at `root`, and never left."""
        return None

    def local_path(self, source: str, folder: Path) -> Path | None:
        """The path (perhaps a glob) on the machine of a local run whose manifest is in `folder`; None: elsewhere."""
        return None

    def download(self, role: Role, source: str) -> str | None:
        """Name of its folder in `cache`, which begins with models-- or datasets--."""
        return None if self.cache is None else "--".join((f"{role}s", *self.without_prefix(source).split("/")))

    def repository(self, source: str) -> str | None:
        """Its name on the Hugging Face Hub, for model cards."""
        return None

    def address(self, environment: Mapping[str, str]) -> str | None:
        """The server that would be asked for it; what another one answered says nothing of it."""
        return None

    def fixed(self, revision: str) -> bool:
        """Whether that revision never comes to mean anything else."""
        return False
