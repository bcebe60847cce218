"""The numbers of a checkpoint: whether all of them are finite, and whether a head that is tied is the embedding. Reads
every weight once, a few megabytes at a time; no torch.
"""

import time
from collections.abc import Iterator

import numpy

from compression_pipeline.context import Context
from compression_pipeline.errors import UserError

from .files import CheckpointFiles
from .headers import WEIGHT_TYPES, TensorEntry
from .layout import CONFIG
from .names import EMBEDDING, OUTPUT

PIECE = 8 * 1024**2
PROGRESS_SECONDS = 2.0

_EXPONENTS = {"F64": 0x7FF0 << 48, "F32": 0x7F80 << 16, "BF16": 0x7F80, "F16": 0x7C00}
"""Bits of the exponent: all of them are set in NaN and infinity, and in no other number."""

_MANTISSAS = {"F64": (1 << 52) - 1, "F32": (1 << 23) - 1, "BF16": (1 << 7) - 1, "F16": (1 << 10) - 1}


def check_values(files: CheckpointFiles, context: Context) -> None:
    """Raise UserError, naming file, tensor and place, for the first weight that isn't a finite number."""
    total, done, said = sum(entry.size for entry in files.tensors.values()), 0, time.monotonic()
    for name, entry in sorted(files.tensors.items(), key=lambda each: (each[1].file, each[1].start)):
        if entry.dtype not in WEIGHT_TYPES:  # one that no model uses, e.g. a buffer that is computed anew
            continue
        for offset, piece in _pieces(files, entry):
            context.stop_if_requested()
            found = first_not_finite(piece, entry.dtype)
            if found is not None:
                place, value = found
                index = numpy.unravel_index(offset // WEIGHT_TYPES[entry.dtype] + place, entry.shape)
                raise UserError(
                    f"{files.folder / entry.file}: tensor {name} has {value} at {[int(each) for each in index]}; the "
                    "checkpoint is broken, use one whose weights are all finite"
                )
            done += len(piece)
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                context.events.progress(done, total, unit="bytes", doing="check the teacher's weights")
    _check_tied_head(files)


def first_not_finite(content: bytes, dtype: str) -> tuple[int, str] | None:
    """Position and name ("nan" or "inf") of the first number of `content` that isn't finite."""
    exponent = _EXPONENTS[dtype]
    values = numpy.frombuffer(content, f"<u{WEIGHT_TYPES[dtype]}")
    exponents = values & values.dtype.type(exponent)
    if not len(values) or exponents.max() != exponent:
        return None
    place = int(exponents.argmax())
    return place, "nan" if int(values[place]) & _MANTISSAS[dtype] else "inf"


def _check_tied_head(files: CheckpointFiles) -> None:
    """A head of its own in a model that ties it is left out: it must be the embedding, or config.json is wrong."""
    if not (files.architecture.tied_embeddings and OUTPUT in files.tensors):
        return
    head, embedding = files.tensors[OUTPUT], files.tensors[EMBEDDING]
    if head.dtype == embedding.dtype and head.shape == embedding.shape:
        pairs = zip(_pieces(files, head), _pieces(files, embedding), strict=True)
        if all(one[1] == other[1] for one, other in pairs):
            return
    raise UserError(
        f"{files.folder / head.file}: {OUTPUT} differs from {EMBEDDING}, but {CONFIG} ties them; set "
        f"tie_word_embeddings to false there if the model has a head of its own, else remove {OUTPUT}"
    )


def _pieces(files: CheckpointFiles, entry: TensorEntry) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a tensor's data."""
    with files.open(entry.file) as file:
        file.seek(entry.start)
        for offset in range(0, entry.size, PIECE):
            yield offset, file.read(min(PIECE, entry.size - offset))
