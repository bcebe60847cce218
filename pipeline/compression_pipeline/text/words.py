"""Byte-level BPE with the tokens of each word kept: a word is met again long before the next one is new.

The tokens are those of the library `tokenizers`, several times as fast. It fits tokenizers that split text by one
pattern into words, and those into bytes (GPT-2, Llama 3, Qwen, Mistral Nemo). Texts that hold an added token, or a
character of which the two libraries of patterns think otherwise, are encoded by the library itself.
"""

import json
import re
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from .tokenizer import ids_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORDS = 1 << 17
"""Words whose tokens are kept, at about 250 bytes each; then all are forgotten."""

LONGEST = 32
"""Characters of a word that is kept. Longer ones hardly come again."""

SAMPLE = 64 * 1024
"""Characters of the sample by which a tokenizer is compared with its words."""

PLANES = 0x40000
"""Code points from here on have no characters yet, or nobody knows which: texts with them are left to the library."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern that the pre-tokenizer ByteLevel has of its own."""

_CLASS = re.compile(r"\\p\{\w+\}|\\[sS]")
_UNDERSTOOD = re.compile(
    r"(?:\\p\{\w+\}|\\[sSrn]|\(\?(?:i?:|[!=])|\((?!\?)|\[\^?(?!\[)|\{\d+(?:,\d*)?\}(?!\+)|[])|?*+ '/a-zA-Z0-9-])*"
)
"""Patterns in which both libraries mean the same by every sign."""


class WordEncoder:
    """Encodes texts as a tokenizer that it fits does."""

    def __init__(self, tokenizer: "Tokenizer", pattern: str) -> None:
        """`pattern`: what `pattern_of` says of the tokenizer. Takes half a second."""
        self._tokenizer = tokenizer
        self._pattern = regex.compile(pattern)
        self._kept = _Kept(tokenizer)
        added = [re.escape(token.content) for token in tokenizer.get_added_tokens_decoder().values() if token.content]
        self._added = re.compile("|".join(added) or r"(?!)")
        self._strange = strange_characters(pattern)

    @property
    def kept(self) -> int:
        """Words whose tokens are kept now."""
        return len(self._kept)

    def split(self, text: str) -> list[str]:
        """The text's words, of whatever characters, as the pattern finds them."""
        return self._pattern.findall(text)

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text. Raises CannotEncode."""
        try:
            found = [self.of_words(text) for text in texts]
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException:  # the library raises plain ones, and a panic of Rust is no Exception
            return ids_of(self._tokenizer, texts)  # which says for which text
        left = [number for number, ids in enumerate(found) if ids is None]
        asked = ids_of(self._tokenizer, [texts[number] for number in left])
        for number, ids in zip(left, asked, strict=True):
            found[number] = ids
        return [ids for ids in found if ids is not None]

    def agrees(self, texts: list[str]) -> bool:
        """Whether the tokens of a sample of these texts are the tokenizer's own. Raises CannotEncode."""
        sample, room = list[str](), SAMPLE
        for text in texts:
            room -= len(text)
            if room >= 0:
                sample.append(text)
        return self.ids(sample) == ids_of(self._tokenizer, sample)

    def of_words(self, text: str) -> list[int] | None:
        """The text's tokens; None where the tokenizer itself must be asked."""
        if not text.isascii():
            signs = set(text)
            if max(signs) >= chr(PLANES) or not signs.isdisjoint(self._strange):
                return None
        if self._added.search(text):
            return None
        return list(chain.from_iterable(map(self._kept.__getitem__, self.split(text))))


class _Kept(dict[str, list[int]]):
    """The tokens of words."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        super().__init__()
        from tokenizers.pre_tokenizers import ByteLevel

        self._bytes = ByteLevel(add_prefix_space=False, use_regex=False)
        self._model: Any = tokenizer.model

    def __missing__(self, word: str) -> list[int]:
        [(spelled, _)] = self._bytes.pre_tokenize_str(word)
        ids = [token.id for token in self._model.tokenize(spelled)]
        if len(word) <= LONGEST:
            if len(self) >= WORDS:
                self.clear()
            self[word] = ids
        return ids


def pattern_of(tokenizer: "Tokenizer") -> str | None:
    """The pattern by which the tokenizer splits text into words; None where its tokens depend on more than words."""
    if tokenizer.normalizer is not None or tokenizer.pre_tokenizer is None:
        return None
    if type(tokenizer.model).__name__ != "BPE" or tokenizer.model.dropout:
        return None
    told = json.loads(tokenizer.pre_tokenizer.__getstate__())
    match told["pretokenizers"] if told["type"] == "Sequence" else [told]:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            pattern = GPT2
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            pass
        case _:
            return None
    return pattern if _UNDERSTOOD.fullmatch(pattern) else None


def strange_characters(pattern: str) -> frozenset[str]:
    """The characters below `PLANES` that only one of the tokenizer's library and `regex` takes for a letter, digit or
    space: their versions of Unicode differ. If the pattern ignores case, also those that may fold to ASCII's letters.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    every = "".join(chr(code) for code in range(PLANES) if not 0xD800 <= code < 0xE000)
    strange = np.zeros(len(every), bool)
    for name in sorted(set(_CLASS.findall(pattern))):
        ours, others = np.zeros(len(every), bool), np.zeros(len(every), bool)
        for found in regex.finditer(f"{name}+", every):
            ours[slice(*found.span())] = True
        for _, span in Split(Regex(f"{name}+"), "removed").pre_tokenize_str(every):
            others[slice(*span)] = True
        strange |= ours == others
    found = {every[place] for place in np.flatnonzero(strange)}
    if "(?i:" in pattern:
        found |= {sign for sign in every[128:] if any(folded.isascii() for folded in sign.casefold() + sign.lower())}
    return frozenset(found)
