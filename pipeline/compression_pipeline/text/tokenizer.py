"""The teacher's tokenizer as text is encoded with it: by the library `tokenizers` alone, which starts in no time.

Its ids are those of `transformers.AutoTokenizer(...)(text, add_special_tokens=False)`, which is what Megatron's
HuggingFaceTokenizer yields by default: no BOS, and an end-of-document token after each document.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding, Tokenizer
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer


class CannotEncode(Exception):
    """A text that the tokenizer has no tokens for: which of the texts (from 0), and why."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(number, reason)
        self.number = number
        self.reason = reason


def ids_of(tokenizer: "Tokenizer", texts: list[str]) -> list[list[int]]:
    """The tokens of each text. Raises CannotEncode."""
    return [found.ids for found in encodings_of(tokenizer, texts)]


def tokens_of(tokenizer: "Tokenizer", texts: list[str], dtype: np.dtype[Any]) -> list[bytes]:
    """The tokens of each text, as they are stored. Raises CannotEncode."""
    return [stored(ids, dtype) for ids in ids_of(tokenizer, texts)]


def stored(ids: list[int], dtype: np.dtype[Any]) -> bytes:
    """Tokens as they are stored, in this type."""
    return np.array(ids, dtype).tobytes()


def encodings_of(tokenizer: "Tokenizer", texts: list[str], *, offsets: bool = False) -> "list[Encoding]":
    """The tokens of each text and, with `offsets`, which characters each is of. Raises CannotEncode."""
    try:
        encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
        return encode(texts, add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library raises plain ones, and a panic of Rust is no Exception
        if len(texts) == 1:
            raise CannotEncode(0, " ".join(str(error).split())[:300]) from error
        for number, text in enumerate(texts):
            try:
                encodings_of(tokenizer, [text], offsets=offsets)
            except CannotEncode as alone:
                raise CannotEncode(number, alone.reason) from error
        raise


@dataclass(frozen=True)
class TeacherTokenizer:
    """How each process makes the tokenizer: from a tokenizer.json, and what is not as it stands there.

    Small enough to be sent to processes. `huggingface.tokenizer.load` finds it out.
    """

    file: Path
    end_of_document: int  # id of the EOS token
    begin: int | None  # id of the BOS token, which texts are stored without
    padding: int | None
    largest: int  # id, of all tokens
    vocabulary: int  # tokens, added ones included: len() of transformers' tokenizer
    split_special: bool  # whether text that spells a special token is as any other text
    added: "tuple[AddedToken, ...]" = field(compare=False)  # in the order of their ids
    normalizer: "Normalizer | None" = field(compare=False)
    pre_tokenizer: "PreTokenizer | None" = field(compare=False)

    @classmethod
    def of(cls, theirs: Any, file: Path) -> "TeacherTokenizer":
        """That of a fast tokenizer of transformers which was loaded from `file` and has an EOS token.

        Raises ValueError where such a one can't be made again, and whatever the library may.
        """
        backend = theirs.backend_tokenizer
        ids = theirs.get_vocab()
        made = cls(
            file=file,
            end_of_document=theirs.eos_token_id,
            begin=theirs.bos_token_id,
            padding=theirs.pad_token_id,
            largest=max(ids.values()),
            vocabulary=len(theirs),
            split_special=theirs.split_special_tokens,
            added=tuple(token for _, token in sorted(backend.get_added_tokens_decoder().items())),
            normalizer=backend.normalizer,
            pre_tokenizer=backend.pre_tokenizer,
        )
        again = made.backend()
        probe = " ".join(["Probe", *(token.content for token in made.added), "of\n\tnumbers 42, é"])
        same = again.encode(probe, add_special_tokens=False).ids == theirs(probe, add_special_tokens=False)["input_ids"]
        if again.get_vocab(with_added_tokens=True) != ids or not same:
            raise ValueError("two of its tokens share an id, or its class changes more than it adds")
        return made

    def backend(self) -> "Tokenizer":
        """The tokenizer. (The library can't save one as a whole whose ids have gaps: it prints them all on stdout.)"""
        from tokenizers import Tokenizer

        made = Tokenizer.from_file(str(self.file))
        made.no_truncation()  # some files come with it; text is never cut
        made.no_padding()
        made.add_tokens(list(self.added))
        made.normalizer = self.normalizer  # pyright: ignore[reportAttributeAccessIssue] (None is allowed)
        made.pre_tokenizer = self.pre_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        made.encode_special_tokens = self.split_special
        return made
