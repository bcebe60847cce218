"""A long text in parts whose tokens, one part after the other, are those of the whole.

A tokenizer needs a hundred times the memory of the text that it is given at once.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONG = 256 * 1024
"""Characters in a part, about."""

_AROUND = 512
"""Characters on both sides of a cut in which its tokens are compared with those of the uncut text."""
_TRIES = 64


def parts(text: str, tokenizer: "Tokenizer", length: int = LONG) -> Iterator[str]:
    """The text, in parts of about this many characters.

    A cut lies between signs of two classes (letters or digits, space, others), where the text around it has the same
    tokens cut and uncut. So tokens are the same wherever what is further away than that makes no difference, as with
    all tokenizers that split text into words first. Where there is no such place a part is longer.
    """
    start, end = 0, length
    while len(text) - end > _AROUND:
        cut = _cut(text, start, end, tokenizer)
        if cut is None:
            end += length
            continue
        yield text[start : cut[0]]
        start = cut[1]
        end = start + length
    yield text[start:]


def _cut(text: str, start: int, end: int, tokenizer: "Tokenizer") -> tuple[int, int] | None:
    """Where the last part that ends before `end` may end, and the next one begin."""
    tries = 0
    for place in range(end, max(start + _AROUND, end - LONG // 2), -1):
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
    return tokenizer.encode(text, add_special_tokens=False).ids


def _class(sign: str) -> int:
    return 0 if sign.isalnum() else 1 if sign.isspace() else 2
