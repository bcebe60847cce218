"""Byte-level BPE with the tokens of each word kept: a word is met again long before the next one is new.

The tokens are those of the library `tokenizers`, several times as fast. It fits tokenizers that split text by one
pattern into words, and those into bytes (GPT-2, Llama 3, Qwen, Mistral Nemo). Texts that hold an added token, or a
character that a pattern which ignores case may take for a letter, are encoded by the library itself.
"""

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .patterns import Splitter, understood
from .tokenizer import stored, tokens_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORDS = 1 << 17
"""Words whose tokens are kept, at about 200 bytes each; then all are forgotten."""

LONGEST = 32
"""Characters of a word that is kept. Longer ones hardly come again."""

SAMPLE = 64 * 1024
"""Characters of the sample by which a tokenizer is compared with its words."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern that the pre-tokenizer ByteLevel has of its own."""


class WordEncoder:
    """Encodes texts as a tokenizer that it fits does. Tokens are bytes, as they are stored."""

    def __init__(self, tokenizer: "Tokenizer", pattern: str, dtype: np.dtype[Any]) -> None:
        """`pattern`: what `pattern_of` says of the tokenizer. `dtype`: of a stored token. Takes 0.2 s."""
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._splitter = Splitter(pattern)
        self._kept = _Kept(tokenizer, dtype)
        added = [re.escape(token.content) for token in tokenizer.get_added_tokens_decoder().values() if token.content]
        self._added = re.compile("|".join(added) or r"(?!)")

    @property
    def kept(self) -> int:
        """Words whose tokens are kept now."""
        return len(self._kept)

    def tokens(self, texts: list[str]) -> list[bytes]:
        """The tokens of each text. Raises CannotEncode."""
        try:
            found = [self.of_words(text) for text in texts]
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException:  # the library raises plain ones, and a panic of Rust is no Exception
            return tokens_of(self._tokenizer, texts, self._dtype)  # which says for which text
        left = [number for number, tokens in enumerate(found) if tokens is None]
        asked = tokens_of(self._tokenizer, [texts[number] for number in left], self._dtype)
        for number, tokens in zip(left, asked, strict=True):
            found[number] = tokens
        return [tokens for tokens in found if tokens is not None]

    def agrees(self, texts: list[str]) -> bool:
        """Whether the tokens of a sample of these texts are the tokenizer's own. Raises CannotEncode."""
        sample, room = list[str](), SAMPLE
        for text in texts:
            room -= len(text)
            if room >= 0:
                sample.append(text)
        return self.tokens(sample) == tokens_of(self._tokenizer, sample, self._dtype)

    def of_words(self, text: str) -> bytes | None:
        """The text's tokens; None where the tokenizer itself must be asked."""
        if self._added.search(text):
            return None
        words = self._splitter.split(text)
        return None if words is None else b"".join(map(self._kept.__getitem__, words))


class _Kept(dict[str, bytes]):
    """The tokens of words."""

    def __init__(self, tokenizer: "Tokenizer", dtype: np.dtype[Any]) -> None:
        super().__init__()
        from tokenizers.pre_tokenizers import ByteLevel

        self._bytes = ByteLevel(add_prefix_space=False, use_regex=False)
        self._model: Any = tokenizer.model
        self._dtype = dtype

    def __missing__(self, word: str) -> bytes:
        [(spelled, _)] = self._bytes.pre_tokenize_str(word)
        tokens = stored([token.id for token in self._model.tokenize(spelled)], self._dtype)
        if len(word) <= LONGEST:
            if len(self) >= WORDS:
                self.clear()
            self[word] = tokens
        return tokens


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
    return pattern if understood(pattern) else None
