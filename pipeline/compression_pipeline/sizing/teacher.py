"""The teacher's sizes, from its config.json alone: a few kilobytes, of a file or of the Hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from compression_pipeline.config import Architecture
from compression_pipeline.config.schemes import scheme_of
from compression_pipeline.config.schemes.hub import HubScheme
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.families import family_of_config
from compression_pipeline.huggingface.families.base import DTYPE_KEYS
from compression_pipeline.huggingface.layout import CONFIG, parse
from compression_pipeline.sources.token import hub_token

LARGEST = 4 * 1024**2
"""Bytes of a config.json that are read at most."""

TIMEOUT = 20.0
"""Seconds that the Hub may be silent."""

INSTEAD = "give its config.json with --teacher-config PATH"


class TeacherUnknown(Exception):
    """The config.json can't be had here; why, and what to do."""


class TeacherRefused(Exception):
    """There is one, of what can't be compressed; why, and what to do."""


@dataclass(frozen=True)
class FoundTeacher:
    """A teacher's sizes, and where they are from."""

    architecture: Architecture
    where: str
    revision: str | None = None
    """The commit, of a teacher on the Hub."""
    dtype: str | None = None
    """Type of its weights by torch's name, if it is told."""


def teacher_of_file(path: Path) -> FoundTeacher:
    """Of a config.json, or of the folder that holds one. Raises TeacherUnknown and TeacherRefused."""
    file = path / CONFIG if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        raise TeacherUnknown(f"{file} cannot be read: {(error.strerror or str(error)).lower()}") from None
    return _found(content, str(file), str(file))


def find_teacher(
    source: str,
    revision: str | None,
    *,
    root: Path,
    mounted: Path,
    offline: bool,
    environment: Mapping[str, str],
) -> FoundTeacher:
    """Of a source as the manifest names it. Raises TeacherUnknown and TeacherRefused.

    Args:
        root: what sources on this machine are relative to.
        mounted: folder below which claims are mounted, one each by its name, as in prepare's pods.
        offline: whether the network is left alone.
    """
    scheme = scheme_of(source)
    here = scheme.local_path(source, root)
    if here is not None:
        return teacher_of_file(here)
    claim = scheme.volume_claim(source)
    if claim is not None:
        folder = mounted / claim / scheme.path(source)
        if not folder.is_dir():
            raise TeacherUnknown(f"{source} is on a claim that is not mounted here; {INSTEAD}")
        return teacher_of_file(folder)
    if not isinstance(scheme, HubScheme):
        raise TeacherUnknown(f"{source} cannot be looked at from here; {INSTEAD}")
    if offline or any(environment.get(name, "0") not in ("", "0") for name in scheme.offline):
        raise TeacherUnknown(f"{source} is on the Hub, which is not asked offline; {INSTEAD}")
    return _on_the_hub(scheme, source, revision, environment)


def _on_the_hub(scheme: HubScheme, source: str, revision: str | None, environment: Mapping[str, str]) -> FoundTeacher:
    endpoint, wanted = scheme.address(environment), revision or "main"
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise TeacherUnknown(f"{source}: HF_ENDPOINT is no address of a server; write https://host")
    try:
        token = hub_token(environment, on_cluster=False)
    except UserError as error:
        raise TeacherUnknown(f"{source}: {error}") from None
    address = f"{endpoint}/{scheme.repository(source)}/resolve/{quote(wanted, safe='')}/{CONFIG}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    asked = "the token in HF_TOKEN" if token else "no token (set HF_TOKEN)"
    opener = build_opener(_Redirects())
    try:
        with opener.open(Request(address, headers=headers), timeout=TIMEOUT) as answer:  # noqa: S310 - http(s), see above
            content, commit = answer.read(LARGEST), answer.headers.get("X-Repo-Commit")
    except HTTPError as error:
        raise TeacherUnknown(f"{source}: {_refused(error, wanted, asked)}") from None
    except (OSError, HTTPException) as error:
        host = urlsplit(endpoint).netloc.rpartition("@")[2]
        reason = getattr(error, "reason", error)
        raise TeacherUnknown(f"{source}: {host} can't be reached ({reason}); {INSTEAD}") from None
    where = f"{source}@{commit or wanted}"
    return _found(content, f"{where}: {CONFIG}", where, commit)


def _refused(error: HTTPError, revision: str, asked: str) -> str:
    match error.headers.get("X-Error-Code"), error.code:
        case "GatedRepo", _:
            return f"the model is gated ({error.code}): ask for access; this was asked with {asked}, or {INSTEAD}"
        case "RevisionNotFound", _:
            return f"there is no revision {revision}; correct teacher.revision"
        case "EntryNotFound", _:
            return f"there is no {CONFIG} at revision {revision}; name a Hugging Face checkpoint"
        case _, 401 | 403 | 404:
            return f"there is no such model, or it is private ({error.code}); this was asked with {asked}, or {INSTEAD}"
        case _:
            return f"the Hub answered {error.code}; try again later, or {INSTEAD}"


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, to another host without the token."""

    def redirect_request(self, req: Request, *told: Any, **named: Any) -> Request | None:
        made = super().redirect_request(req, *told, **named)
        if made is not None and urlsplit(made.full_url).netloc != urlsplit(req.full_url).netloc:
            made.remove_header("Authorization")
        return made


def _found(content: bytes, file: str, where: str, commit: str | None = None) -> FoundTeacher:
    try:
        config = parse(content, file)
        dtype = next((told for key in DTYPE_KEYS if isinstance(told := config.get(key), str)), None)
        return FoundTeacher(family_of_config(config, file).architecture(config, file), where, commit, dtype)
    except UserError as error:
        raise TeacherRefused(str(error)) from None
