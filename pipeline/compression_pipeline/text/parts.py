"""A long text in parts whose tokens, one part after the other, are those of the whole.

A tokenizer needs a hundred times the memory of the text that it is given at once.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .tokenizer import ids_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONG = 256 * 1024
"""Characters in a part, about."""

_AROUND = 512
"""Characters on both sides of a cut in which its tokens are compared with those of the uncut text."""
_TRIES = 64


def parts(pieces: Iterable[str], tokenizer: "Tokenizer", length: int = LONG) -> Iterator[tuple[int, str]]:
    """A text that comes in pieces of any lengths, in parts of about this many characters; no more of it is held. Each
    with its place in the text, in characters.

    A cut lies between signs of two classes (letters or digits, space, others), where the text around it has the same
    tokens cut and uncut. So tokens are the same wherever what is further away than that makes no difference, as with
    all tokenizers that split text into words first. Where there is no such place a part is longer. Raises CannotEncode,
    and what reading the pieces does.
    """
    coming = iter(pieces)
    text, end, whole, place = "", length, False, 0
    while True:
        if not whole and len(text) <= end + _AROUND:
            text, whole = _more(text, coming, end + _AROUND)
        if len(text) - end <= _AROUND:
            break
        cut = _cut(text, end, tokenizer)
        if cut is None:
            end += length
            continue
        yield place, text[: cut[0]]
        text, end, place = text[cut[1] :], length, place + cut[1]
    yield place, text


def _more(text: str, coming: Iterator[str], wanted: int) -> tuple[str, bool]:
    """The text with pieces added until it has more signs than wanted, and whether that was all of it."""
    found, size = [text], len(text)
    for piece in coming:
        found.append(piece)
        size += len(piece)
        if size > wanted:
            return "".join(found), False
    return "".join(found), True


def _cut(text: str, end: int, tokenizer: "Tokenizer") -> tuple[int, int] | None:
    """Where the last part that ends before `end` may end, and the next one begin."""
    tries = 0
    for place in range(end, max(_AROUND, end - LONG // 2), -1):
        if _class(text[place - 1]) == _class(text[place]):
            continue
        before, after = text[place - _AROUND : place], text[place : place + _AROUND]
        whole, left = _ids(tokenizer, before + after), _ids(tokenizer, before)
        # Some tokenizers put a space before every text: there the part goes without its own.
        for skipped in (0, 1) if after[0] == " " else (0,):
            if left + _ids(tokenizer, after[skipped:]) == whole:
                return place, place + skipped
        tries += 1
        if tries == _TRIES:
            break
    return None


def _ids(tokenizer: "Tokenizer", text: str) -> list[int]:
    return ids_of(tokenizer, [text])[0]


def _class(sign: str) -> int:
    return 0 if sign.isalnum() else 1 if sign.isspace() else 2
