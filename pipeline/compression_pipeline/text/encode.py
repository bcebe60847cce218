"""Documents to tokens, in parallel and in order, with the held-out documents picked out on the way."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context

import numpy as np

from compression_pipeline.errors import TransientError
from compression_pipeline.machine import die_with_parent

from .indexed import token_type
from .parts import LONG, parts
from .tokenizer import TeacherTokenizer

BATCH_CHARACTERS = 512 * 1024
BATCH_DOCUMENTS = 4096


@dataclass(frozen=True)
class Held:
    """Which documents are held out: those whose hash, as a share of all hashes, is below `fraction`.

    The hash is of the text and the seed alone, so the choice is the same in whatever order, by however many workers and
    beside whatever other documents; documents of the same text always stay together, so none is both trained on and
    validated on. `at_most`: a hash that is held out too, whatever its share.
    """

    seed: int
    fraction: float
    at_most: int = -1

    def hash(self, text: str) -> int:
        """64 bits."""
        key = self.seed.to_bytes(8, "little")
        found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
        return int.from_bytes(found, "little")

    def takes(self, hashed: int) -> bool:
        return hashed < int(self.fraction * 2**64) or hashed <= self.at_most


@dataclass(frozen=True)
class Encoded:
    """Tokens of some documents, one after the other, and the length of each in tokens."""

    tokens: bytes
    lengths: list[int]


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of documents: those kept and those held out."""

    kept: Encoded
    held: Encoded
    tokens: int
    lowest_hash: int | None  # of the batch, where anything is held out


class Encoder:
    """Encodes batches in this process."""

    def __init__(self, tokenizer: TeacherTokenizer) -> None:
        self._backend = tokenizer.backend()
        self._end = tokenizer.end_of_document
        self._dtype = token_type(tokenizer.largest)

    def encode(self, texts: list[str], held: Held | None) -> EncodedBatch:
        """The tokens of each text and an end-of-document token after it, where it has any tokens at all."""
        hashes = [held.hash(text) for text in texts] if held else []
        sides: tuple[list[bytes], list[bytes]] = ([], [])
        lengths: tuple[list[int], list[int]] = ([], [])
        for number, (tokens, count) in enumerate(self._documents(texts)):
            side = int(held is not None and held.takes(hashes[number]))
            sides[side].append(tokens)
            lengths[side].append(count)
        kept, out = (Encoded(b"".join(tokens), found) for tokens, found in zip(sides, lengths, strict=True))
        return EncodedBatch(kept, out, sum(map(sum, lengths)), min(hashes, default=None))

    def _documents(self, texts: list[str]) -> Iterator[tuple[bytes, int]]:
        """The stored tokens of each text, and how many they are. Long texts go part by part, to bound the memory."""
        short = iter(self._encoded([text for text in texts if len(text) <= LONG]))
        for text in texts:
            if len(text) <= LONG:
                found = [self._stored(next(short))]
            else:
                found = [self._stored(ids) for part in parts(text, self._backend) for ids in self._encoded([part])]
            if any(found):
                found.append(self._stored([self._end]))
            tokens = b"".join(found)
            yield tokens, len(tokens) // self._dtype.itemsize

    def _encoded(self, texts: list[str]) -> Iterator[list[int]]:
        return (encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False))

    def _stored(self, ids: list[int]) -> bytes:
        return np.array(ids, dtype=self._dtype).tobytes()


def _start_worker(parent: int) -> None:
    die_with_parent(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism


@lru_cache(maxsize=1)
def _encoder(tokenizer: TeacherTokenizer) -> Encoder:
    """The encoder of a worker process, loaded with its first batch."""
    return Encoder(tokenizer)


def _work(tokenizer: TeacherTokenizer, texts: list[str], held: Held | None) -> EncodedBatch:
    return _encoder(tokenizer).encode(texts, held)


def batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in batches of about `BATCH_CHARACTERS`, so that memory is bounded whatever their lengths."""
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode(
    tokenizer: TeacherTokenizer, documents: Iterable[str], held: Held | None, *, workers: int
) -> Iterator[EncodedBatch]:
    """Encode documents, in order, by this many processes (1: by this one).

    Raises TransientError where a process is killed, and what reading the documents raises.
    """
    if workers == 1:
        encoder = Encoder(tokenizer)
        for batch in batches(documents):
            yield encoder.encode(batch, held)
        return
    # Spawned, not forked: threads of Arrow and of downloads run in this process.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (os.getpid(),))
    try:
        yield from _in_order(pool, tokenizer, documents, held, ahead=2 * workers)
    except BrokenProcessPool as error:
        raise TransientError(
            "a tokenizing process was killed, most likely for lack of memory; lower dataset.workers or raise prepare's "
            "memory limit"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _in_order(
    pool: Executor, tokenizer: TeacherTokenizer, documents: Iterable[str], held: Held | None, *, ahead: int
) -> Iterator[EncodedBatch]:
    waiting: deque[Future[EncodedBatch]] = deque()
    for batch in batches(documents):
        waiting.append(_submit(pool, tokenizer, batch, held))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _submit(pool: Executor, tokenizer: TeacherTokenizer, texts: list[str], held: Held | None) -> Future[EncodedBatch]:
    try:
        return pool.submit(_work, tokenizer, texts, held)
    except OSError as error:
        # `submit` starts processes: one that dies meanwhile has its pool close the pipes under it (CPython 3.11, 3.12).
        raise BrokenProcessPool(f"no process could be started: {error}") from error
