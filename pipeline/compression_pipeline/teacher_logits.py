"""The teacher's logits of a training's text, as files: its likeliest tokens after each token, and the rest as one.

`logits` writes them and `distill` reads them in place of the teacher. They are in the order in which the training sees
the sequences, in parts of so many sequences that a part is no larger than `PART`; so they depend on no batch and no
layout. A part is a safetensors file:

- `low` (uint16) and `high` (uint8), [sequences, tokens, k]: the numbers of the likeliest tokens, the likeliest first.
- `logs` (uint16), [sequences, tokens, k]: their log-probabilities, negated, in steps of 1/2048 nats.
- `rest` (float32), [sequences, tokens, temperatures]: at each temperature the log-probability of all other tokens.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import LogitsConfig, Record
from .store.files import sync

PART = 64 * 1024**2
"""Bytes of a part, about; a sequence at least."""

CHUNK = 2**22
"""Logits that are looked at at once."""

STEP = 2048
"""Steps in a nat of a stored log-probability, which is right to half a step. The least is -32, no more than e-14."""


@dataclass(frozen=True)
class Likeliest:
    """What is known of a teacher's next-token distributions, at temperature 1."""

    tokens: Tensor
    """[..., k], int64: the likeliest tokens, the likeliest first."""
    logs: Tensor
    """[..., k], float32: their log-probabilities."""
    rest: Tensor
    """[..., temperatures], float32: at each of `temperatures`, the log-probability of all other tokens."""
    temperatures: tuple[float, ...]

    @classmethod
    def of(cls, logits: Tensor, top_k: int, temperatures: Sequence[float]) -> "Likeliest":
        """Of logits [..., vocabulary], some tokens at a time."""
        flat = logits.flatten(0, -2)
        parts = [_likeliest(_wide(rows), top_k, temperatures) for rows in flat.split(max(1, CHUNK // flat.size(-1)))]
        tokens, logs, rest = (torch.cat(each).unflatten(0, logits.shape[:-1]) for each in zip(*parts, strict=True))
        return cls(tokens, logs, rest, tuple(temperatures))

    @classmethod
    def joined(cls, parts: "Sequence[Likeliest]") -> "Likeliest":
        """One after the other."""
        tokens, logs, rest = (torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "logs", "rest"))
        return cls(tokens, logs, rest, parts[0].temperatures)

    def block(self, part: slice) -> "Likeliest":
        """Of some tokens of [tokens, k], as [tokens, 1, k]."""
        tokens, logs, rest = (each[part, None] for each in (self.tokens, self.logs, self.rest))
        return Likeliest(tokens, logs, rest, self.temperatures)

    def by_time(self) -> "Likeliest":
        """Of [batch, sequence, k], with all tokens in one dimension in the order of [sequence, batch]."""
        tokens, logs, rest = (each.transpose(0, 1).flatten(0, 1) for each in (self.tokens, self.logs, self.rest))
        return Likeliest(tokens, logs, rest, self.temperatures)

    def to(self, device: torch.device) -> "Likeliest":
        """On this device."""
        tokens, logs, rest = (each.to(device, non_blocking=True) for each in (self.tokens, self.logs, self.rest))
        return Likeliest(tokens, logs, rest, self.temperatures)

    def at(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities at a temperature: of the likeliest tokens [..., k], and of all others [...]. Their
        probabilities sum to 1.
        """
        rest = self.rest[..., self.temperatures.index(temperature)]
        warm = self.logs / temperature
        kept = torch.log1p(-rest.exp()) - torch.logsumexp(warm, dim=-1)
        return warm + kept.unsqueeze(-1), rest


def _wide(tensor: Tensor) -> Tensor:
    """In float32, or what is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _likeliest(logits: Tensor, top_k: int, temperatures: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Of [tokens, vocabulary]. The rest is summed up itself: as what is left of 1 it would be rounding alone."""
    logs = torch.log_softmax(logits, dim=-1)
    found, tokens = logs.topk(top_k, dim=-1)
    others = logs.scatter(-1, tokens, -torch.inf)
    rests = [torch.logsumexp(others / each, dim=-1) - torch.logsumexp(logs / each, dim=-1) for each in temperatures]
    rest = torch.stack(rests, dim=-1) if rests else logits.new_empty(len(logits), 0)
    return tokens, found, rest


class Written(Record):
    """A part that is there, beside it as JSON: a part without it is not whole."""

    sha256: str
    size: int
    made_of: str
    """Digest of the files that it was computed from: what is made again under its name may be another teacher."""
    sequences: int
    mass: float
    """Sum over its tokens of the probability of those that are kept."""


class Parts:
    """The parts of an artifact, and which sequences each has."""

    def __init__(self, sequences: int, size: int) -> None:
        self._total = sequences
        self.size = size
        """Sequences of each part but the last."""

    @classmethod
    def of(cls, logits: LogitsConfig, sequence_length: int) -> "Parts":
        """Those that are written."""
        return cls(logits.sequences, max(1, PART // (sequence_length * logits.bytes_per_token)))

    def __len__(self) -> int:
        return -(-self._total // self.size)

    def sequences(self, number: int) -> range:
        """Those of a part."""
        return range(number * self.size, min((number + 1) * self.size, self._total))

    @staticmethod
    def file(folder: Path, number: int) -> Path:
        """Of a part."""
        return folder / f"{number:06}.safetensors"


def write(path: Path, found: Likeliest, made_of: str) -> Written:
    """Write a part, whole or not at all: [sequences, tokens, ...]. Raises OSError."""
    from safetensors.torch import save

    tokens = found.tokens.cpu()
    steps = (found.logs.cpu() * -STEP).round().clamp(0, 2**16 - 1)
    content = save(
        {
            "low": (tokens % 2**16).to(torch.uint16).contiguous(),
            "high": (tokens // 2**16).to(torch.uint8).contiguous(),
            "logs": steps.to(torch.uint16).contiguous(),
            "rest": found.rest.float().cpu().contiguous(),
        }
    )
    written = Written(
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        made_of=made_of,
        sequences=len(tokens),
        mass=float(found.logs.exp().sum()),
    )
    _put(path, content)
    _put(path.with_suffix(".json"), written.model_dump_json().encode())
    return written


def written(path: Path, made_of: str, sequences: int) -> Written | None:
    """What is known of a part that is there, whole, and what `write` would make of so many sequences."""
    try:
        told = Written.model_validate_json(path.with_suffix(".json").read_bytes())
        same = (path.stat().st_size, made_of, sequences) == (told.size, told.made_of, told.sequences)
    except (OSError, ValueError):
        return None
    return told if same else None


def _put(path: Path, content: bytes) -> None:
    """A file that is whole once it has its name, whoever else writes the same."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class CachedLogits:
    """The logits of an artifact, to be read."""

    def __init__(self, folder: Path, logits: LogitsConfig, per_part: int) -> None:
        """`folder`: with the parts, of so many sequences each. `logits`: what was written there."""
        self._folder, self._logits = folder, logits
        self._parts = Parts(logits.sequences, per_part)

    def __getitem__(self, sequences: range) -> Likeliest:
        """Of these sequences, [sequences, tokens, ...]."""
        return Likeliest.joined(list(self._read(sequences)))

    def _read(self, sequences: range) -> Iterator[Likeliest]:
        from safetensors import safe_open

        start = sequences.start
        while start < sequences.stop:
            number, place = divmod(start, self._parts.size)
            count = min(sequences.stop - start, self._parts.size - place)
            opened: Any = safe_open(self._parts.file(self._folder, number), framework="pt")
            with opened as part:
                low, high, logs, rest = (
                    part.get_slice(name)[place : place + count] for name in ("low", "high", "logs", "rest")
                )
            tokens = low.to(torch.int64) + (high.to(torch.int64) << 16)
            yield Likeliest(tokens, logs.to(torch.float32) / -STEP, rest, self._logits.temperatures)
            start += count
