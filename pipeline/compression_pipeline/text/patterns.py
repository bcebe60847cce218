r"""Text split into words by a tokenizer's pattern, with Python's `re`, which takes a third of the library's own time.

`re` knows no `\p{L}`: the library that the tokenizer splits with is asked for the characters of each class, so the two
cannot differ by their versions of Unicode.
"""

import re
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import Split

_CLASS = re.compile(r"\\p\{\w+\}|\\[sS]")
_PART = re.compile(r"\[[^]]*\]|\\p\{\w+\}|\\[sS]|\((?!\?)")
"""What means something else to `re`: sets and classes of characters, groups."""

_UNDERSTOOD = re.compile(
    r"(?:\\p\{\w+\}|\\[sSrn]|\(\?(?:i:['a-zA-Z|]*\)|:|[!=])|\((?!\?)|\[\^?(?:\\p\{\w+\}|\\[srn]|[ '/a-zA-Z0-9-])+\]"
    r"|\{\d+(?:,\d*)?\}(?!\+)|[)|?*+ '/a-zA-Z0-9-])*"
)
"""Patterns in which both libraries mean the same by every sign, classes apart."""

_BASIC = "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000)
"""The Basic Multilingual Plane. `re` is slow at sets with characters beyond it."""

_BEYOND = re.compile("[\U00010000-\U0010ffff]")


def understood(pattern: str) -> bool:
    """Whether a `Splitter` can be made for this pattern."""
    return _UNDERSTOOD.fullmatch(pattern) is not None


class Splitter:
    """Splits texts into the words that a pattern finds."""

    def __init__(self, pattern: str) -> None:
        """`pattern`: one that is `understood`. Takes 0.2 s."""
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import Split

        self._classes = {name: Split(Regex(f"{name}+"), "removed") for name in sorted(set(_CLASS.findall(pattern)))}
        self._members = {name: _members(others) for name, others in self._classes.items()}
        self._pattern = re.compile(_PART.sub(self._translated, pattern))
        self._ignores_case = "(?i:" in pattern
        self._beyond: dict[str, str | None] = {}

    def split(self, text: str) -> list[str] | None:
        """The words; None where the library's may be others."""
        if text.isascii():
            words = self._pattern.findall(text)
        else:
            if self._ignores_case and self._folding.search(text):
                return None
            words = self._beyond_ascii(text)
        return words if words is not None and sum(map(len, words)) == len(text) else None

    def _beyond_ascii(self, text: str) -> list[str] | None:
        if _BEYOND.search(text) is None:
            return self._pattern.findall(text)
        likes = {sign: self._like(sign) for sign in set(_BEYOND.findall(text))}
        if None in likes.values():
            return None
        alike = _BEYOND.sub(lambda found: likes[found[0]] or "", text)
        ends = accumulate(map(len, self._pattern.findall(alike)), initial=0)
        return [text[start:end] for start, end in pairwise(ends)]

    def _translated(self, found: re.Match[str]) -> str:
        part = found[0]
        if part == "(":  # so that whole words are found
            return "(?:"
        inner = _CLASS.sub(lambda name: _ranges(self._members[name[0]]), part)
        return inner if part.startswith("[") else f"[{inner}]"

    def _like(self, sign: str) -> str | None:
        """A character of the Basic Multilingual Plane that is in the same classes as this one beyond it, if any is."""
        if sign not in self._beyond:
            self._beyond[sign] = self._alike.get(
                tuple(not others.pre_tokenize_str(sign) for others in self._classes.values())
            )
        return self._beyond[sign]

    @cached_property
    def _alike(self) -> dict[tuple[bool, ...], str]:
        """By the classes that they are in, characters that no pattern names."""
        kinds = zip(*(members[128:].tolist() for members in self._members.values()), strict=True)
        found = dict[tuple[bool, ...], str]()
        for kind, sign in zip(kinds, _BASIC[128:], strict=False):
            found.setdefault(kind, sign)
        return found

    @cached_property
    def _folding(self) -> re.Pattern[str]:
        """Characters that may be one or two of ASCII's letters to a library that ignores case, and not to another."""
        signs = (sign for sign in _BASIC[128:] if any(folded.isascii() for folded in sign.casefold() + sign.lower()))
        return re.compile(f"[{''.join(map(re.escape, signs))}]")


def _members(others: "Split") -> np.ndarray:
    """Of each of `_BASIC`, whether it is in the class. `others`: finds what is not."""
    found = np.ones(len(_BASIC), bool)
    for _, span in others.pre_tokenize_str(_BASIC):
        found[slice(*span)] = False
    return found


def _ranges(members: np.ndarray) -> str:
    """The inner of a set of `re`."""
    edges = np.flatnonzero(np.diff(members, prepend=False, append=False)).reshape(-1, 2)
    found = "".join(f"{re.escape(_BASIC[start])}-{re.escape(_BASIC[end - 1])}" for start, end in edges)
    return found or "\udfff"  # which no text that has tokens holds: a set of `re` can't be empty
