"""Rows to documents: one file's rows as they are, or WikiText's lines joined into articles."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from compression_pipeline.config import DocumentFormat

# " = Title = " and not " = = Section = = ".
_ARTICLE = re.compile(r"\s*=(?!\s*=).*(?<!=)(?<!=\s)=\s*")


_FIRST_HEADING = re.compile(r" = (?!= )\S.* = \n?")
_LOOKED_AT = 5
"""Lines with text that tell WikiText from other text."""


def detect(lines: Iterable[str]) -> DocumentFormat:
    """What Auto means for text that begins so: WikiText has a line a row, each after a space, and a heading first."""
    first = list(islice((line for line in lines if line and not line.isspace()), _LOOKED_AT))
    told = bool(first) and _FIRST_HEADING.fullmatch(first[0]) and all(re.fullmatch(" .*\n?", line) for line in first)
    return DocumentFormat.WIKITEXT_ARTICLES if told else DocumentFormat.ROWS


@dataclass(frozen=True)
class Long:
    """A document that is never held whole: it is read piece by piece, more than once."""

    where: str  # what messages call it
    pieces: Callable[[], Iterator[str]]
    look: Callable[[], Iterator[str]]  # as `pieces`, where reading them is no progress


Spans = tuple[tuple[int, int], ...]
"""Ranges of characters, each from its first one up to the one behind its last one."""


@dataclass(frozen=True)
class Marked:
    """A document of which some characters are learned, and the others are only read."""

    text: str
    learned: Spans

    @classmethod
    def completion(cls, prompt: str, text: str) -> "Marked":
        """`text` is learned, behind `prompt`."""
        return cls(prompt + text, ((len(prompt), len(prompt) + len(text)),))

    @property
    def teaches(self) -> bool:
        """Whether there is anything to learn."""
        return any(part and not part.isspace() for part in (self.text[start:end] for start, end in self.learned))


Document = str | Long | Marked


def rows(texts: Iterable[Document]) -> Iterator[Document]:
    """One document a row; rows without text, or with none to learn, are none."""
    return (text for text in texts if has_text(text))


def has_text(text: Document) -> bool:
    """Whether a row is a document."""
    if isinstance(text, Marked):
        return text.teaches
    if isinstance(text, Long):
        return any(piece and not piece.isspace() for piece in text.look())
    return bool(text) and not text.isspace()


def wikitext_articles(lines: Iterable[str]) -> Iterator[str]:
    """Articles: the lines from one level-1 heading (` = Title = `) up to the next, blank lines around them cut off.

    Lines may end in a newline or not. What comes before the first heading is a document of its own.
    """
    article: list[str] = []
    for line in lines:
        if _ARTICLE.fullmatch(line):
            yield from _joined(article)
            article = []
        article.append(line.rstrip("\n"))
    yield from _joined(article)


def _joined(lines: list[str]) -> Iterator[str]:
    text = "\n".join(lines).strip("\n")
    if text and not text.isspace():
        yield text
