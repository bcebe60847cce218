"""`pvc://claim/path`: files of a PersistentVolumeClaim in the namespace of a run on a cluster."""

from typing import ClassVar

from compression_pipeline.config.base import ConfigModel, Rule

from .base import SourceScheme


class PvcScheme(SourceScheme):
    """A file, a folder or a glob on a mounted volume."""

    prefix: ClassVar = "pvc://"
    form: ClassVar = "pvc://claim/path"
    pattern: ClassVar = "pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/.+"
    implementation: ClassVar = "compression_pipeline.sources.local:LocalSource"
    roles: ClassVar = frozenset({"model", "dataset", "tasks"})
    worlds: ClassVar = frozenset({"cluster"})

    def rules(self, path: str) -> tuple[Rule, ...]:
        """It never leaves its claim."""

        def holds(model: ConfigModel) -> bool:
            source: str = getattr(model, path)
            return not source.startswith(self.prefix) or ".." not in source.split("/")

        return (
            Rule.of(
                path,
                "leaves the volume; remove .. from the path",
                holds,
                f"!self.{path}.matches('^{self.prefix}(.*/)?[.][.](/.*)?$')",
            ),
        )

    def root(self, source: str) -> str:
        return f"{self.prefix}{self.volume_claim(source)}"

    def path(self, source: str) -> str:
        return self.without_prefix(source).partition("/")[2].lstrip("/")

    def volume_claim(self, source: str) -> str:
        return self.without_prefix(source).partition("/")[0]
