"""Megatron's indexed dataset (`.bin` and `.idx`) without Megatron, whose import takes seconds.

The format is that of megatron.core.datasets.indexed_dataset (version 1). `.bin`: the tokens of all sequences, one after
the other. `.idx`, little-endian: the magic `MMIDIDX\\0\\0`, u64 version, u8 code of the token type, u64 number of
sequences, u64 number of document boundaries, then i32 sequence lengths, i64 byte offsets of the sequences, i64 document
boundaries (the first is 0, then after each document the number of sequences so far). Here a document is one sequence;
one without tokens has none, as in Megatron's own tool.
"""

import hashlib
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_CODES = {"uint16": 8, "int32": 4}
MOST_BYTES = 4
"""Of a stored token."""
_HEADER = struct.Struct("<QBQQ")
_SMALL_VOCABULARY = 65500
LONGEST = 2**31 - 1
"""Tokens that a document may have, the end-of-document token among them: the format has 32 bits for it."""


class IndexedText:
    """An indexed dataset that is there: its documents, end to end."""

    def __init__(self, prefix: Path) -> None:
        """Opens `<prefix>.idx` and `<prefix>.bin`. Raises OSError, ValueError."""
        with prefix.with_name(prefix.name + ".idx").open("rb") as file:
            head = file.read(len(_MAGIC) + _HEADER.size)
            if not head.startswith(_MAGIC):
                raise ValueError(f"{prefix}.idx is not an index of Megatron's")
            _, code, count, _ = _HEADER.unpack(head[len(_MAGIC) :])
            kind = next((name for name, known in _CODES.items() if known == code), None)
            if kind is None:
                raise ValueError(f"{prefix}.idx has tokens of an unknown type ({code})")
            self.lengths = np.fromfile(file, np.int32, count)
            """Tokens of each sequence; those without any are left out."""
            offsets = np.fromfile(file, np.int64, count)
        dtype = np.dtype(kind)
        self.places = offsets // dtype.itemsize
        """Where each sequence begins in `tokens`."""
        tokens = prefix.with_name(prefix.name + ".bin")
        empty = tokens.stat().st_size == 0  # which can't be mapped
        self.tokens: np.ndarray = np.empty(0, dtype) if empty else np.memmap(tokens, dtype=dtype, mode="r")
        """Of all sequences, one after the other."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """The tokens of a sequence."""
        start = int(self.places[index])
        return self.tokens[start : start + int(self.lengths[index])]


class TooLong(Exception):
    """A document of more tokens than `LONGEST`."""


def token_type(largest: int) -> "np.dtype[np.uint16] | np.dtype[np.int32]":
    """Type of the stored tokens, whose ids are `largest` at most.

    Where ids have no gaps it is Megatron's own `DType.optimal_dtype`, which takes their count; its readers know both.
    """
    return np.dtype(np.uint16) if largest + 1 < _SMALL_VOCABULARY else np.dtype(np.int32)


class IndexedWriter:
    """Writes `<prefix>.bin` as documents come and `<prefix>.idx` at the end; keeps 4 bytes a document in memory."""

    def __init__(self, prefix: Path, dtype: np.dtype) -> None:
        """Opens the files. Raises OSError."""
        self.bin = prefix.with_name(prefix.name + ".bin")
        self.idx = prefix.with_name(prefix.name + ".idx")
        self.tokens = 0
        self.lengths = array("i")
        self.digests: dict[Path, str] = {}
        self._dtype = dtype
        self._part = 0  # tokens of the document that comes in parts
        self._hash = hashlib.sha256()
        self._file = self.bin.open("wb")

    def add(self, tokens: bytes, lengths: Sequence[int]) -> None:
        """Add documents: their tokens one after the other, in this writer's type, and the length of each in tokens."""
        self._write(tokens)
        self.lengths.extend(lengths)

    def add_part(self, tokens: bytes, end: bytes | None) -> None:
        """Add the next tokens of a document that comes in parts.

        `end`: with the last part, the end-of-document token; a document without any tokens has none. Raises TooLong.
        """
        self._part += self._write(tokens)
        if self._part >= LONGEST:
            raise TooLong
        if end is not None:
            self.lengths.append(self._part + self._write(end if self._part else b""))
            self._part = 0

    def _write(self, tokens: bytes) -> int:
        """Tokens written."""
        self._file.write(tokens)
        self._hash.update(tokens)
        count = len(tokens) // self._dtype.itemsize
        self.tokens += count
        return count

    def close(self) -> None:
        """Close `.bin`; nothing can be added any more."""
        self._file.close()

    def finish(self) -> None:
        """Write the index; `digests` then has the SHA-256 of both files. Raises OSError."""
        self.close()
        documents = np.frombuffer(self.lengths, np.int32) if self.lengths else np.empty(0, np.int32)
        sequences = documents[documents > 0]
        offsets = np.zeros(len(sequences), np.int64)
        np.cumsum(sequences[:-1], dtype=np.int64, out=offsets[1:])
        offsets *= self._dtype.itemsize
        boundaries = np.zeros(len(documents) + 1, np.int64)
        np.cumsum(documents > 0, dtype=np.int64, out=boundaries[1:])
        header = _HEADER.pack(_VERSION, _CODES[self._dtype.name], len(sequences), len(boundaries))
        found = hashlib.sha256()
        with self.idx.open("wb") as file:
            for part in (_MAGIC + header, sequences.tobytes(), offsets.tobytes(), boundaries.tobytes()):
                file.write(part)
                found.update(part)
        self.digests = {self.bin: self._hash.hexdigest(), self.idx: found.hexdigest()}
