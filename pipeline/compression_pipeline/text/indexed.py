"""Megatron's indexed dataset (`.bin` and `.idx`) without Megatron, whose import takes seconds.

The format is that of megatron.core.datasets.indexed_dataset (version 1). `.bin`: the tokens of all sequences, one after
the other. `.idx`, little-endian: the magic `MMIDIDX\\0\\0`, u64 version, u8 code of the token type, u64 number of
sequences, u64 number of document boundaries, then i32 sequence lengths, i64 byte offsets of the sequences, i64 document
boundaries (the first is 0, then after each document the number of sequences so far). Here a document is one sequence;
one without tokens has none, as in Megatron's own tool.

Where not all tokens are learned there is a third file, `.mask`: a byte for each token of `.bin`, 1 if it is learned.
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
"""Of a stored token, without its byte of a mask."""
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
        mask = prefix.with_name(prefix.name + ".mask")
        self.mask: np.ndarray | None = None
        """Of each token 1 if it is learned, else 0; None where all are."""
        if mask.exists():
            self.mask = np.empty(0, np.uint8) if empty else np.memmap(mask, dtype=np.uint8, mode="r")
            if len(self.mask) != len(self.tokens):
                raise ValueError(f"{mask} is for {len(self.mask)} tokens, and {tokens} has {len(self.tokens)}")

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

    def __init__(self, prefix: Path, dtype: np.dtype, *, masked: bool = False) -> None:
        """Opens the files. `masked`: not all is learned, and whoever adds tokens says which are. Raises OSError."""
        self.bin = prefix.with_name(prefix.name + ".bin")
        self.idx = prefix.with_name(prefix.name + ".idx")
        self.tokens = 0
        self.lengths = array("i")
        self.digests: dict[Path, str] = {}
        self._dtype = dtype
        self._part = 0  # tokens of the document that comes in parts
        self._hash = hashlib.sha256()
        self._file = self.bin.open("wb")
        self._mask = _MaskWriter(prefix.with_name(prefix.name + ".mask")) if masked else None

    @property
    def masked(self) -> bool:
        """Whether not all tokens are learned."""
        return self._mask is not None

    @property
    def learned(self) -> int:
        """Tokens that are learned."""
        return self.tokens if self._mask is None else self._mask.learned

    def add(self, tokens: bytes, lengths: Sequence[int], mask: bytes = b"") -> None:
        """Add documents: their tokens one after the other, in this writer's type, and the length of each in tokens.

        `mask`: of each token, where not all is learned.
        """
        self._write(tokens, mask)
        self.lengths.extend(lengths)

    def add_part(self, tokens: bytes, end: bytes | None, mask: bytes = b"") -> None:
        """Add the next tokens of a document that comes in parts.

        `end`: with the last part, the end-of-document token, which is learned if the one before it is; a document
        without any tokens has none. Raises TooLong.
        """
        self._part += self._write(tokens, mask)
        if self._part >= LONGEST:
            raise TooLong
        if end is not None:
            last = self._mask.last if self._mask is not None else b""
            self.lengths.append(self._part + (self._write(end, last) if self._part else 0))
            self._part = 0

    def _write(self, tokens: bytes, mask: bytes) -> int:
        """Tokens written."""
        self._file.write(tokens)
        self._hash.update(tokens)
        count = len(tokens) // self._dtype.itemsize
        if self._mask is not None:
            self._mask.write(mask)
        self.tokens += count
        return count

    def close(self) -> None:
        """Close `.bin` and `.mask`; nothing can be added any more."""
        self._file.close()
        if self._mask is not None:
            self._mask.file.close()

    def finish(self) -> None:
        """Write the index; `digests` then has the SHA-256 of all files. Raises OSError."""
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
        if self._mask is not None:
            self.digests[self._mask.path] = self._mask.hash.hexdigest()


class _MaskWriter:
    """Writes `<prefix>.mask`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.hash = hashlib.sha256()
        self.learned = 0
        self.last = b""
        """The last byte that was written."""

    def write(self, mask: bytes) -> None:
        self.file.write(mask)
        self.hash.update(mask)
        self.learned += mask.count(1)
        self.last = mask[-1:] or self.last
