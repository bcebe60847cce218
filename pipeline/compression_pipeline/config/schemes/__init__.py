"""Kinds of sources. One is a file here, the file that fetches it in `compression_pipeline.sources`, and a line in
`SCHEMES`; nothing else names it.

The table is read when it is needed. Only the CRD and what no podTemplate may set are made of it on import.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from .base import Role, SourceScheme, World
from .file import FileScheme
from .hub import HubScheme
from .pvc import PvcScheme

SCHEMES: dict[str, SourceScheme] = {scheme.prefix: scheme for scheme in (HubScheme(), FileScheme(), PvcScheme())}

_WHERE = {"cluster": "on a cluster", "local": "local runs"}


def scheme_of(source: str) -> SourceScheme:
    """The kind of a source; one that says nothing, with an empty prefix, for what no line of the table means."""
    return next((scheme for prefix, scheme in SCHEMES.items() if source.startswith(prefix)), SourceScheme())


def schemes_for(role: Role | None = None, world: World | None = None) -> list[SourceScheme]:
    """Those of this role that runs of this world can reach: first what can be reached from both."""
    found = [
        scheme
        for scheme in SCHEMES.values()
        if (role is None or role in scheme.roles) and (world is None or world in scheme.worlds)
    ]
    return sorted(found, key=lambda scheme: (len(scheme.worlds) == 1, sorted(scheme.worlds)))


def unreachable_from(world: World) -> list[SourceScheme]:
    """Those that runs of this world have no way to."""
    return [scheme for scheme in SCHEMES.values() if world not in scheme.worlds]


def source_pattern(role: Role) -> str:
    """Regular expression of a source of this role, for RE2 and Python."""
    return f"^({'|'.join(scheme.pattern for scheme in SCHEMES.values() if role in scheme.roles)})$"


def forms(role: Role | None = None, world: World | None = None, *, places: bool = False) -> str:
    """How sources are written, as a list with "or"; `places`: and where those are reached that aren't everywhere."""
    found = schemes_for(role, world)
    return in_words([scheme.form + (f" ({_only(scheme)})" if places and _only(scheme) else "") for scheme in found])


def forms_with_notes(role: Role) -> str:
    """The same at length."""
    where = {"": "", _WHERE["cluster"]: " on a cluster", _WHERE["local"]: " for local runs"}
    return in_words([one.form + one.note + where[_only(one)] for one in schemes_for(role)], " or ", pause=",")


def in_words(items: Sequence[str], last: str = " or ", *, pause: str = "") -> str:
    """The items as a list of a sentence; `pause` stands before the `last` word."""
    return f"{', '.join(items[:-1])}{pause}{last}{items[-1]}" if len(items) > 1 else "".join(items)


def _only(scheme: SourceScheme) -> str:
    return "" if len(scheme.worlds) > 1 else "".join(_WHERE[world] for world in scheme.worlds)


def needed_secrets() -> list[str]:
    """Environment variables of prepare that hold secrets of sources."""
    return [name for scheme in SCHEMES.values() for name in scheme.secrets]


def passed_variables() -> list[str]:
    """Environment variables that prepare of a local run takes over; no other job sees them."""
    return [*needed_secrets(), *(name for scheme in SCHEMES.values() for name in scheme.settings)]


def secret_variables() -> list[str]:
    """Environment variables that hold secrets of sources, whoever sets them."""
    return [name for one in SCHEMES.values() for name in (*one.secrets, *one.also_secret, *one.also_hidden)]


def offline_variables() -> dict[str, str]:
    """The environment by which jobs other than prepare ask no server."""
    return {name: value for scheme in SCHEMES.values() for name, value in scheme.offline.items()}


def secret_keys(sources: Iterable[str], key: str) -> dict[str, str]:
    """Environment variables -> keys of the Secret that a run names together with `key`.

    A variable with a key of its own is left out where no source needs it: the Secret need not have that key.
    """
    used = {scheme_of(source).prefix for source in sources}
    return {
        name: own or key
        for scheme in SCHEMES.values()
        for name, own in scheme.secrets.items()
        if own is None or scheme.prefix in used
    }


def claims_of(sources: Iterable[str]) -> dict[str, str]:
    """Roots of those of the sources that are on a volume -> the PersistentVolumeClaim that must be mounted there."""
    found = ((scheme_of(source), source) for source in sorted(sources))
    return {
        root: claim
        for scheme, source in found
        if (root := scheme.root(source)) is not None and (claim := scheme.volume_claim(source)) is not None
    }


def manifest_roots(folder: Path) -> dict[str, str]:
    """`PrepareJob.source_roots` of a local run whose manifest is in `folder`."""
    return {scheme.manifest_root: str(folder) for scheme in SCHEMES.values() if scheme.manifest_root is not None}


def caches() -> list[str]:
    """Folders of a store that keep downloads."""
    return sorted({scheme.cache for scheme in SCHEMES.values() if scheme.cache is not None})


__all__ = [
    "SCHEMES",
    "Role",
    "SourceScheme",
    "World",
    "caches",
    "claims_of",
    "forms",
    "forms_with_notes",
    "in_words",
    "manifest_roots",
    "needed_secrets",
    "offline_variables",
    "passed_variables",
    "scheme_of",
    "schemes_for",
    "secret_keys",
    "secret_variables",
    "source_pattern",
    "unreachable_from",
]
