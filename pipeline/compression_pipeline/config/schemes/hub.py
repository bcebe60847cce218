"""`hf://owner/name`: a repository on the Hugging Face Hub, or on a mirror that HF_ENDPOINT names."""

import re
from collections.abc import Mapping
from typing import ClassVar

from .base import SourceScheme

TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - the name of one
ENDPOINT_VARIABLE = "HF_ENDPOINT"
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubScheme(SourceScheme):
    """A repository at a branch, a tag or a commit."""

    prefix: ClassVar = "hf://"
    form: ClassVar = "hf://owner/name"
    pattern: ClassVar = "hf://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?"
    implementation: ClassVar = "compression_pipeline.sources.hub:HubSource"
    revisions: ClassVar = True
    downloads: ClassVar = True
    cache: ClassVar = "hub"
    secrets: ClassVar = {TOKEN_VARIABLE: None}
    also_secret: ClassVar = ("HUGGING_FACE_HUB_TOKEN",)
    also_hidden: ClassVar = ("HUGGINGFACE_HUB_TOKEN",)
    settings: ClassVar = (ENDPOINT_VARIABLE,)
    offline: ClassVar = {"HF_HUB_OFFLINE": "1"}
    server: ClassVar = "the Hub"

    def repository(self, source: str) -> str:
        return self.without_prefix(source)

    def address(self, environment: Mapping[str, str]) -> str:
        return environment.get(ENDPOINT_VARIABLE, "https://huggingface.co").rstrip("/")

    def fixed(self, revision: str) -> bool:
        return _COMMIT.fullmatch(revision) is not None
