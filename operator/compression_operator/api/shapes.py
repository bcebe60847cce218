"""What an object may hold, as data: the operator reads it (`findings`), and `cel.py` writes it for the API server."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from .faults import Finding

LARGEST_ID = 2**31 - 1
"""The largest user or group that Kubernetes takes."""


class Check:
    """A rule for one value."""

    def findings(self, value: Any, path: str) -> Iterator[Finding]:
        """What is wrong with `value`, which stands at `path`."""
        raise NotImplementedError


Shape: TypeAlias = Mapping[str, Check]
"""The fields that an object may have."""


@dataclass(frozen=True)
class Anything(Check):
    """Takes every value."""

    def findings(self, value: Any, path: str) -> Iterator[Finding]:
        yield from ()


@dataclass(frozen=True)
class Only(Check):
    """Takes these values; `why` no other one. Without any it refuses the field as such."""

    why: str
    allowed: tuple[str | bool, ...] = ()

    def findings(self, value: Any, path: str) -> Iterator[Finding]:
        # 1 is no true, and 0 no false.
        if not any(value == one and type(value) is type(one) for one in self.allowed):
            yield path, self.why


@dataclass(frozen=True)
class Number(Check):
    """Takes whole numbers between two bounds, both included."""

    why: str
    least: int
    most: int

    def findings(self, value: Any, path: str) -> Iterator[Finding]:
        if not isinstance(value, int) or isinstance(value, bool) or not self.least <= value <= self.most:
            yield path, self.why


@dataclass(frozen=True)
class Free(Check):
    """Takes every text but those in which this regular expression (of RE2's kind) is found; `why` follows the text."""

    taken: str
    why: str

    def findings(self, value: Any, path: str) -> Iterator[Finding]:
        if isinstance(value, str) and re.search(self.taken, value):
            yield path, f"{value} {self.why}"


@dataclass(frozen=True)
class Images(Check):
    """Takes images that match one of the patterns (`*`: any text); without patterns every image."""

    patterns: tuple[str, ...]

    def findings(self, value: Any, path: str) -> Iterator[Finding]:
        if isinstance(value, str) and not self.takes(value):
            yield path, f"is not allowed: this installation of the operator allows {', '.join(self.patterns)}"

    def takes(self, image: str) -> bool:
        """Whether it matches one of the patterns."""
        return not self.patterns or any(re.search(pattern_regex(pattern), image) for pattern in self.patterns)


@dataclass(frozen=True)
class Fields(Check):
    """Takes objects that have these fields; `others` says why no other one, None: others may be anything.

    A field that is null counts as absent, as it does for Kubernetes. Not `strict`: nothing is said of what is no
    object, because another check says it.
    """

    shape: Shape
    others: str | None = "is not allowed in a pod template; leave it out"
    strict: bool = True

    def findings(self, value: Any, path: str) -> Iterator[Finding]:
        if not isinstance(value, Mapping):
            if self.strict:
                yield path, "must be an object"
            return
        for name, one in cast(Mapping[str, Any], value).items():
            if one is None:
                continue
            if name in self.shape:
                yield from self.shape[name].findings(one, f"{path}.{name}")
            elif self.others is not None:
                yield f"{path}.{name}", self.others


@dataclass(frozen=True)
class Keys(Check):
    """Takes objects without a key in which this regular expression is found."""

    taken: str
    why: str

    def findings(self, value: Any, path: str) -> Iterator[Finding]:
        if not isinstance(value, Mapping):
            yield path, "must be an object"
            return
        for name in cast(Mapping[str, Any], value):
            if re.search(self.taken, name):
                yield f"{path}[{name}]", self.why


@dataclass(frozen=True)
class Each(Check):
    """Takes lists of which each item passes; not `strict`: and says nothing of what is no list."""

    item: Check
    strict: bool = True

    def findings(self, value: Any, path: str) -> Iterator[Finding]:
        if not isinstance(value, list):
            if self.strict:
                yield path, "must be a list"
            return
        for index, one in enumerate(cast(list[Any], value)):
            yield from self.item.findings(one, f"{path}[{index}]")


@dataclass(frozen=True)
class Named(Check):
    """Judges an object by its `name`: by the check of that name, by `others` where there is none."""

    checks: Mapping[str, Check]
    others: Check

    def findings(self, value: Any, path: str) -> Iterator[Finding]:
        name = cast(Mapping[str, Any], value).get("name") if isinstance(value, Mapping) else None
        check = self.checks.get(name, self.others) if isinstance(name, str) else self.others
        yield from check.findings(value, path)


@dataclass(frozen=True)
class All(Check):
    """Takes what every one of these takes."""

    checks: tuple[Check, ...]

    def findings(self, value: Any, path: str) -> Iterator[Finding]:
        for check in self.checks:
            yield from check.findings(value, path)


def pattern_regex(pattern: str) -> str:
    """A pattern in which `*` is any text and `?` any character, as a regular expression for the whole of a text.

    The chart's template says the same (`compression-operator.imageRegexes`).
    """
    return "^" + re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".") + "$"
