"""What files hold that is no text: read past where it is none of the text's business, else told by file and row."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard

from compression_pipeline.errors import UserError
from compression_pipeline.text.documents import Long
from compression_pipeline.text.files import TextFile


def read(path: Path, column: str = "text") -> list[str]:
    found = TextFile(path, name=path.name, column=column).rows()
    return ["".join(row.pieces()) if isinstance(row, Long) else str(row) for row in found]


def said(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        read(path)
    sentence = str(raised.value)
    assert sentence.startswith(path.name)
    assert "\n" not in sentence
    return sentence


def written(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def long_window(content: bytes, log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=log, enable_ldm=True, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(content) + compressor.flush()


@pytest.mark.parametrize("number", ["7" * 5000, "-" + "7" * 5000, "[" + "7" * 5000 + "]", "1e400", "NaN"])
def test_a_number_in_another_field_is_none_of_the_texts(tmp_path: Path, number: str) -> None:
    assert read(written(tmp_path / "a.jsonl", [f'{{"answer": {number}, "text": "a"}}'])) == ["a"]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (['{"text": "a"}', '{"text": null}', '{"id": 7}'], "a.json:3: the row has no text, as the rows before it have"),
        (['{"id": 7}', '{"text": "a"}'], "a.json:1: there is no column text; set dataset.textColumn to id"),
        (['{"text": %s}' % ("7" * 5000)], "a.json:1: text is no string"),
        (['{"text": %s' % ("7" * 5000)], "a.json:1: is not JSON"),
        (['{"text": "a'], "a.json:1: is not JSON (Unterminated string starting at column 10)"),
        (['{"text": "a", "x": ' + "[" * 100_000], "a.json:1: is nested too deeply"),
        (["{", '  "text": "a"', "}"], "a.json has a JSON object over several lines; write one object a line"),
        (["[", '{"text": "a"}', "]"], "a.json is one JSON array"),
    ],
)
def test_faults_of_a_row_are_told_by_its_number(tmp_path: Path, lines: list[str], sentence: str) -> None:
    assert said(written(tmp_path / "a.json", lines)).startswith(sentence)


def test_parquet_that_is_not_utf8_is_told_by_its_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [b"good"] * 3000
    rows[2007] = b"caf\xe9 au lait"
    column = pa.array(rows, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(column), column.buffers())
    for values in (text, text.dictionary_encode()):
        pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
        assert "a.parquet: row 2008: text is not UTF-8 (byte 3 of the text)" in said(tmp_path / "a.parquet")


def test_parquet_of_other_shapes(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    for values, expected in (
        (pa.nulls(5), []),
        (pa.array(["a", None, "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array(["a", None], pa.large_string()), ["a"]),
        (pa.array([], pa.string()), []),
    ):
        pq.write_table(pa.table({"text": values}), path)
        assert read(path) == expected
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    assert "has several columns text; rename all but one" in said(path)
    pq.write_table(pa.table({"text": [["a"], ["b"]]}), path)
    assert "column text is of type list<" in said(path)


def test_compressed_files(tmp_path: Path) -> None:
    lines = "".join(f"{json.dumps({'text': f'text {number}'})}\n" for number in range(1000)).encode()
    expected = [f"text {number}" for number in range(1000)]
    for name, content in (
        ("a.jsonl.gz", gzip.compress(lines)),
        ("padded.jsonl.gz", gzip.compress(lines) + bytes(1000)),
        ("a.jsonl.zst", zstandard.compress(lines)),
        ("long.jsonl.zst", long_window(lines, 27)),
        ("a.json.zst", zstandard.compress(lines)),
    ):
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == expected, name
    for name, content in (
        ("cut.jsonl.gz", gzip.compress(lines)[:-20]),
        ("more.jsonl.gz", gzip.compress(lines) + b"no member"),
        ("none.jsonl.gz", lines),
        ("cut.jsonl.zst", zstandard.compress(lines)[:-20]),
        ("cut.txt.gz", gzip.compress(lines)[:-20]),
        ("none.txt.zst", lines),
    ):
        (tmp_path / name).write_bytes(content)
        assert "is damaged or not " in said(tmp_path / name), name
    (tmp_path / "longer.jsonl.zst").write_bytes(long_window(lines, 31))
    sentence = said(tmp_path / "longer.jsonl.zst")
    assert "needs a window of more than 128 MiB" in sentence
    assert "zstd -d --long=31" in sentence


def test_a_text_is_whole_whatever_ends_its_lines(tmp_path: Path) -> None:
    for name, content in (
        ("a.txt", b"\xef\xbb\xbfa\r\nb"),
        ("a.txt.gz", gzip.compress(b"a\r\nb")),
        ("a.txt.zst", zstandard.compress(b"a\nb")),
    ):
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == ["a\nb"]
    (tmp_path / "latin.txt").write_bytes(b"a" * 3_000_000 + b"caf\xe9 ")
    assert "latin.txt is not UTF-8 (byte 3000003)" in said(tmp_path / "latin.txt")
