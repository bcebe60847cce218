"""Text files to rows, read in pieces: one reader per file format, chosen by the ending of the name."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_pipeline.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_BUFFER = 1024**2
_PARQUET_ROWS = 1024
_CODECS = {".gz": "gzip", ".zst": "zstd"}


class TextFile:
    """A file to read rows of text from; `position` tells how far it has been read."""

    def __init__(self, path: Path, *, name: str, column: str) -> None:
        """`name`: what messages call it; its ending tells the format. `column`: where a row has several."""
        self.path = path
        self.name = name
        self.column = column
        self.position = 0  # bytes of the file as it lies on disk, about

    def rows(self) -> Iterator[str]:
        """Its rows: a .txt file is one row.

        Raises UserError for a file that is damaged or isn't what its name says, and for a missing column.
        """
        yield from _reader(self.name)(self)
        self.position = self.path.stat().st_size

    def lines(self) -> Iterator[str]:
        """As `rows`, but a .txt file yields its lines."""
        reader = _reader(self.name)
        yield from _lines_of_text(self) if reader is _whole_text else reader(self)
        self.position = self.path.stat().st_size


def is_text(name: str) -> bool:
    """Whether a file of this name can be read."""
    return any(name.lower().endswith(ending) for ending in FORMATS)


def kind(name: str) -> str:
    """The kind of file that a readable name tells: text, JSON Lines or Parquet."""
    reader = _reader(name)
    return "text" if reader is _whole_text else "Parquet" if reader is _parquet else "JSON Lines"


def _reader(name: str) -> Callable[[TextFile], Iterator[str]]:
    for ending, reader in FORMATS.items():
        if name.lower().endswith(ending):
            return reader
    raise UserError(f"{name} is of an unsupported type; give one of {', '.join(FORMATS)}")


def _whole_text(file: TextFile) -> Iterator[str]:
    try:
        yield file.path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name} is not UTF-8 (byte {error.start}); convert it") from error


def _lines_of_text(file: TextFile) -> Iterator[str]:
    for number, line in _lines(file):
        yield _decoded(line, file, number)


def _json_lines(file: TextFile) -> Iterator[str]:
    for number, line in _lines(file):
        if line.isspace():
            continue
        text = _decoded(line, file, number)
        try:
            row = json.loads(text.rstrip("\r\n"))  # its end would count as a line, of which the fault is in column 1
        except RecursionError as error:
            raise UserError(f"{file.name}:{number}: is nested too deeply; correct or remove the line") from error
        except json.JSONDecodeError as error:
            if number == 1 and text.lstrip().startswith("["):
                raise UserError(f"{file.name} is one JSON array; write one JSON object a line (JSON Lines)") from error
            raise UserError(
                f"{file.name}:{number}: is not JSON ({error.msg} at column {error.colno}); correct or remove the line"
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{file.name}:{number}: is not a JSON object; write one object a line")
        if file.column not in row:
            raise UserError(_no_column(f"{file.name}:{number}", file.column, list(row)))
        value = row[file.column]
        if value is None:
            continue
        if not isinstance(value, str):
            raise UserError(
                f"{file.name}:{number}: {file.column} is no string ({type(value).__name__}); set dataset.textColumn to "
                "a column of text"
            )
        # JSON may escape half a character, which is no text and no tokenizer takes.
        yield value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if b"\\u" in line else value


def _parquet(file: TextFile) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as parquet:
            names: list[str] = parquet.schema_arrow.names
            if file.column not in names:
                raise UserError(_no_column(file.name, file.column, names))
            kind = parquet.schema_arrow.field(file.column).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(
                    f"{file.name}: column {file.column} is of type {kind}; set dataset.textColumn to a column of text"
                )
            yield from _parquet_rows(file, parquet)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{file.name} is damaged or no Parquet file ({_first_line(error)}); get it again") from error


def _parquet_rows(file: TextFile, parquet: "ParquetFile") -> Iterator[str]:
    size, total, seen = file.path.stat().st_size, max(1, parquet.metadata.num_rows), 0
    for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, columns=[file.column]):
        seen += batch.num_rows
        file.position = size * seen // total
        for value in batch.column(0).to_pylist():
            if value is not None:
                yield value


def _lines(file: TextFile) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1, decompressed where the name says so."""
    codec = _CODECS.get(Path(file.name.lower()).suffix)
    if codec is None:
        with file.path.open("rb", buffering=_BUFFER) as stream:
            for number, line in enumerate(stream, 1):
                file.position += len(line)
                yield number, line
        return
    import pyarrow as pa

    try:
        with pa.OSFile(str(file.path)) as raw, closing(_Decompressed(raw, codec)) as stream:
            for number, line in enumerate(io.BufferedReader(stream, _BUFFER), 1):
                file.position = raw.tell()
                yield number, line
    except OSError as error:  # what Arrow raises for damaged data has no errno
        if error.errno is not None:
            raise
        raise UserError(f"{file.name} is damaged or not {codec} ({_first_line(error)}); get it again") from error


class _Decompressed(io.RawIOBase):
    """Arrow's decompression as a raw stream; unlike others it notices a truncated file."""

    def __init__(self, raw: Any, codec: str) -> None:
        import pyarrow as pa

        self._stream = pa.CompressedInputStream(raw, codec)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece: bytes = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def _decoded(line: bytes, file: TextFile, number: int) -> str:
    try:
        # Some editors mark the beginning of a file as UTF-8.
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name}:{number}: is not UTF-8 (byte {error.start} of the line); convert it") from error


def _no_column(where: str, column: str, names: list[str]) -> str:
    return f"{where}: there is no column {column}; set dataset.textColumn to one of {', '.join(names[:50])}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]


FORMATS: dict[str, Callable[[TextFile], Iterator[str]]] = {
    ".txt": _whole_text,
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".jsonl.zst": _json_lines,
    ".json": _json_lines,
    ".json.gz": _json_lines,
    ".json.zst": _json_lines,
    ".parquet": _parquet,
}
