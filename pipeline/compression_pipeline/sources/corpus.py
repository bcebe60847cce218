"""Which files of a folder or repository are its text, and which only lie beside it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from compression_pipeline.text.files import kind

from . import splits

_PAPERS = re.compile(
    r"(licen[sc]es?|copying|notice|use_policy|readme|requirements|changelog|authors|contributors|citation)"
    r"([-_. ].*)?\.txt",
    re.IGNORECASE,
)
_RECORDS = frozenset({"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""What `datasets` itself writes beside data."""


def beside(names: list[str]) -> list[str]:
    """Those of the readable files that no one means as text; none where there would be no text then.

    A plain .json beside text of other endings is most often a record of something, except where it tells a split.
    """
    others = any(not name.lower().endswith(".json") for name in names)

    def is_beside(name: str) -> bool:
        last = PurePosixPath(name).name
        record = others and last.lower().endswith(".json") and not splits.tells(name)
        special = any(part.startswith("__") for part in PurePosixPath(name).parts[:-1])
        return special or record or last in _RECORDS or _PAPERS.fullmatch(last) is not None

    found = [name for name in names if is_beside(name)]
    return found if len(found) < len(names) else []


def warnings(left: list[str], sizes: Mapping[str, int]) -> Iterator[str]:
    """What a person should know of which files are read, a sentence each.

    `left`: those left aside. `sizes`: bytes of those that are read.
    """
    if left:
        yield f"{len(left)} files are not read, because they do not look like a part of the text: {_listed(left)}"
    kinds: dict[str, int] = {}
    for name, size in sizes.items():
        kinds[kind(name)] = kinds.get(kind(name), 0) + size
    if len(kinds) > 1:
        main = max(kinds, key=lambda one: (kinds[one], one))
        strange = [name for name in sizes if kind(name) != main]
        yield (
            f"{len(strange)} files are of another kind than most of the text ({main}), and are read as text, too: "
            f"{_listed(strange)}; move them elsewhere, or name a glob, where they are no part of it"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(sorted(names)[:5]) + more
