"""Fields of the JSON that the API server gives, whether they are there or not. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, cast

Json = Mapping[str, Any]
EMPTY: Json = MappingProxyType({})

META = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "labels",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "uid",
)
"""Metadata that is read of jobs and pods."""


def mapping(body: Json | None, *path: str) -> Json:
    """The object at a path; empty where there is none."""
    for name in path:
        body = cast(Json, (body or EMPTY).get(name) or EMPTY)
    return body or EMPTY


def mappings(body: Json, name: str) -> Sequence[Json]:
    """A list of objects; empty where there is none."""
    return cast(Sequence[Json], body.get(name) or ())


def when(text: Any) -> datetime | None:
    """A time of Kubernetes'."""
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None


def name_of(body: Json) -> str:
    """Name of an object."""
    return str(mapping(body, "metadata").get("name"))


def controller_of(body: Json) -> str | None:
    """UID of the controlling owner."""
    references = mappings(mapping(body, "metadata"), "ownerReferences")
    return next((str(ref.get("uid")) for ref in references if ref.get("controller")), None)


def kept_metadata(body: Json) -> dict[str, Any]:
    """What is read of an object's metadata; the rest isn't worth its memory."""
    meta = mapping(body, "metadata")
    return {name: meta[name] for name in META if name in meta}
