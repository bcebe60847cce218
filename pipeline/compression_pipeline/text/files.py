"""Text files to rows, read in pieces: one reader per file format, chosen by the ending of the name."""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_pipeline.errors import UserError, one_of

from .documents import Document, Long, Marked

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

PIECE = 256 * 1024
"""Bytes of a text file that are decoded at once."""

_BUFFER = 1024**2
_PARQUET_ROWS = 1024
_CODECS = {".gz": "gzip", ".zst": "zstd"}


class TextFile:
    """A file to read rows of text from; `position` tells how far it has been read, `row` which row was read last."""

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        column: str,
        prompt: str | None = None,
        open: Callable[[Path], io.BufferedReader] | None = None,
    ) -> None:
        """`name`: what messages call it; its ending tells the format. `column`: of the text, where a row has several.

        `prompt`: the column of what comes before the text and is not learned. `open`: how the path is opened, if not as
        any other; nothing else reads the file.
        """
        self.path = path
        self._open = open or (lambda path: path.open("rb"))
        self.name = name
        self.columns = {column: "textColumn", **({prompt: "promptColumn"} if prompt else {})}
        """Those that are read, and the fields that name them."""
        self.position = 0  # bytes of the file as it lies on disk, about
        self.row = 0  # from 1

    def open(self) -> io.BufferedReader:
        """Its content, as it lies on disk."""
        return self._open(self.path)

    def rows(self) -> Iterator[Document]:
        """Its rows: a .txt file is one row, and is not held whole where it is long.

        Raises UserError for a file that is damaged or isn't what its name says, and for a missing column.
        """
        if kind(self.name) == "text":
            yield from _whole(self)
        else:
            marked = len(self.columns) > 1
            for text, *prompt in _reader(self.name)(self):
                if marked:
                    yield Marked.completion(prompt[0] or "", text or "")
                elif text is not None:
                    yield text
        self.position = self.path.stat().st_size

    def lines(self) -> Iterator[str]:
        """As `rows`, of the text alone, but a .txt file yields its lines."""
        yield from (text for text, *_ in _reader(self.name)(self) if text is not None)
        self.position = self.path.stat().st_size

    def first_lines(self) -> Iterator[str]:
        """The lines that it begins with: of a .txt file, those of its first `PIECE` characters."""
        if kind(self.name) != "text":
            return self.lines()
        with closing(_pieces(self, counted=False)) as pieces:
            return io.StringIO(next(pieces, ""))

    @property
    def place(self) -> str:
        """What messages call the row that was read last."""
        return self.name if kind(self.name) == "text" else f"{self.name}:{self.row}"


def is_text(name: str) -> bool:
    """Whether a file of this name can be read."""
    return any(name.lower().endswith(ending) for ending in FORMATS)


def kind(name: str) -> str:
    """The kind of file that a readable name tells: text, JSON Lines or Parquet."""
    reader = _reader(name)
    return "text" if reader is _lines_of_text else "Parquet" if reader is _parquet else "JSON Lines"


Row = tuple[str | None, ...]
"""What a row has in each of `TextFile.columns`."""


def _reader(name: str) -> Callable[[TextFile], Iterator[Row]]:
    for ending, reader in FORMATS.items():
        if name.lower().endswith(ending):
            return reader
    raise UserError(f"{name} is of an unsupported type; give one of {', '.join(FORMATS)}")


def _whole(file: TextFile) -> Iterator[Document]:
    """One row."""
    with closing(_pieces(file, counted=True)) as pieces:
        first = next(pieces, "")
        if next(pieces, None) is None:
            yield first
            return
    file.position = 0
    yield Long(file.name, partial(_pieces, file, counted=True), partial(_pieces, file, counted=False))


def _pieces(file: TextFile, *, counted: bool) -> Generator[str, None, None]:
    """Its text in pieces of up to `PIECE` bytes. `counted`: reading them is progress."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    with _open(file, counted=counted) as stream:
        data = stream.read(PIECE)
        # Some editors mark the beginning of a file as UTF-8.
        done = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
        data = data[done:]
        while True:
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file.name} is not UTF-8 (byte {done - pending + error.start}); convert it"
                ) from error
            if text := newlines.decode(text, final=not data):
                yield text
            if not data:
                return
            done += len(data)
            data = stream.read(PIECE)


def _lines_of_text(file: TextFile) -> Iterator[Row]:
    for number, line in _lines(file):
        yield (_decoded(line, file, number),)


def _json_lines(file: TextFile) -> Iterator[Row]:
    told = False  # whether a row before had the columns
    for number, line in _lines(file):
        if line.isspace():
            continue
        row, place = _json_row(_decoded(line, file, number), file, number), f"{file.name}:{number}"
        found = [_json_value(row, column, field, place, told) for column, field in file.columns.items()]
        told = True
        # JSON may escape half a character, which is no text and no tokenizer takes.
        yield tuple(
            value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if value and b"\\u" in line else value
            for value in found
        )


def _json_value(row: dict[str, Any], column: str, field: str, place: str, told: bool) -> str | None:
    if column not in row:
        if not told:
            raise UserError(_no_column(place, column, field, list(row)))
        raise UserError(
            f"{place}: the row has no {column}, as the rows before it have; add it (null: no text), or remove the row"
        )
    value = row[column]
    if value is None or isinstance(value, str):
        return value
    raise UserError(f"{place}: {column} is no string ({type(value).__name__}); set dataset.{field} to a column of text")


def _json_row(text: str, file: TextFile, number: int) -> dict[str, Any]:
    row = text.rstrip("\r\n")  # the end would count as a line, of which the fault is in column 1
    try:
        try:
            found = json.loads(row)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer of more digits than Python reads, of another column
            found = json.loads(row, parse_int=float)
    except RecursionError as error:
        raise UserError(f"{file.name}:{number}: is nested too deeply; correct or remove the line") from error
    except json.JSONDecodeError as error:
        if number == 1 and row.lstrip().startswith("["):
            raise UserError(f"{file.name} is one JSON array; write one JSON object a line (JSON Lines)") from error
        if number == 1 and row.strip() == "{":
            raise UserError(
                f"{file.name} has a JSON object over several lines; write one object a line (JSON Lines)"
            ) from error
        why = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise UserError(f"{file.name}:{number}: is not JSON ({why}); correct or remove the line") from error
    if not isinstance(found, dict):
        raise UserError(f"{file.name}:{number}: is not a JSON object; write one object a line")
    return found


def _parquet(file: TextFile) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.open() as raw, pq.ParquetFile(raw) as parquet:
            names: list[str] = parquet.schema_arrow.names
            for column, field in file.columns.items():
                if column not in names:
                    raise UserError(_no_column(file.name, column, field, names))
                if names.count(column) > 1:
                    raise UserError(f"{file.name} has several columns {column}; rename all but one")
                kind = parquet.schema_arrow.field(column).type
                if pa.types.is_dictionary(kind):
                    kind = kind.value_type
                # Null is what writers make of a column without any value.
                if not (
                    pa.types.is_null(kind)
                    or pa.types.is_string(kind)
                    or pa.types.is_large_string(kind)
                    or pa.types.is_string_view(kind)
                ):
                    raise UserError(
                        f"{file.name}: column {column} is of type {kind}; set dataset.{field} to a column of text"
                    )
            yield from _parquet_rows(file, parquet)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise UserError(f"{file.name} is damaged or no Parquet file ({_first_line(error)}); get it again") from error


def _parquet_rows(file: TextFile, parquet: "ParquetFile") -> Iterator[Row]:
    size, total, seen = file.path.stat().st_size, max(1, parquet.metadata.num_rows), 0
    for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, columns=[*file.columns]):
        values: list[list[str | None]] = []
        for name in file.columns:
            try:
                values.append(batch.column(name).to_pylist())
            except UnicodeDecodeError as error:
                raise UserError(_not_utf8(file, name, batch.column(name), seen)) from error
        file.position = size * (seen + batch.num_rows) // total
        for file.row, row in enumerate(zip(*values, strict=True), seen + 1):
            yield row
        seen += batch.num_rows


def _not_utf8(file: TextFile, name: str, column: Any, before: int) -> str:
    for number, value in enumerate(column, before + 1):
        try:
            value.as_py()
        except UnicodeDecodeError as error:
            return (
                f"{file.name}: row {number}: {name} is not UTF-8 (byte {error.start} of the text); convert the "
                "file's text, or remove the row"
            )
    raise AssertionError("one of the rows was not UTF-8")


def _lines(file: TextFile) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1, decompressed where the name says so."""
    with _open(file) as stream:
        for file.row, line in enumerate(stream, 1):
            yield file.row, line


@contextmanager
def _open(file: TextFile, *, counted: bool = True) -> Iterator[io.BufferedReader]:
    """The file's content, decompressed where the name says so; what is wrong with that is told as a UserError."""
    codec = _CODECS.get(Path(file.name.lower()).suffix)
    with file.open() as raw:
        packed = _Counted(raw, file if counted else None)
        try:
            if codec == "gzip":
                with gzip.GzipFile(fileobj=io.BufferedReader(packed, _BUFFER)) as stream:
                    yield io.BufferedReader(stream, _BUFFER)
            elif codec == "zstd":
                with closing(_Zstandard(packed)) as stream:
                    yield io.BufferedReader(stream, _BUFFER)
            else:
                yield io.BufferedReader(packed, _BUFFER)
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the data
                raise
            if "too much memory" in str(error):
                raise UserError(
                    f"{file.name} needs a window of more than 128 MiB to be decompressed (zstd --long); compress it "
                    "anew: zstd -d --long=31 -c OLD | zstd -o NEW"
                ) from error
            raise UserError(f"{file.name} is damaged or not {codec} ({_first_line(error)}); get it again") from error


class _Counted(io.RawIOBase):
    """A file that tells how far it has been read."""

    def __init__(self, raw: io.BufferedReader, file: TextFile | None) -> None:
        """`file`: what to tell; None: nothing."""
        self._raw = raw
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._raw.readinto(buffer)
        if self._file is not None:
            self._file.position += count
        return count


class _Zstandard(io.RawIOBase):
    """Arrow's decompression as a raw stream; unlike others it notices a truncated file."""

    def __init__(self, raw: io.RawIOBase) -> None:
        import pyarrow as pa

        self._stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")

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


def _no_column(where: str, column: str, field: str, names: list[str]) -> str:
    return f"{where}: there is no column {column}; set dataset.{field} to {one_of(names)}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]


FORMATS: dict[str, Callable[[TextFile], Iterator[Row]]] = {
    ".txt": _lines_of_text,
    ".txt.gz": _lines_of_text,
    ".txt.zst": _lines_of_text,
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".jsonl.zst": _json_lines,
    ".json": _json_lines,
    ".json.gz": _json_lines,
    ".json.zst": _json_lines,
    ".parquet": _parquet,
}
