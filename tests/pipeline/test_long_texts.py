"""Texts of any length: read and encoded in parts, with the tokens of the whole, in memory that does not grow; and texts
that have no tokens, or too many."""

import codecs
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preparing import Preparation, rows
from test_prepare import documents
from tiny import END, texts, write_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers_of import ROWS, write_folder

from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.tokenizer import load
from compression_pipeline.text import files, indexed
from compression_pipeline.text.documents import Long
from compression_pipeline.text.encode import Held
from compression_pipeline.text.files import TextFile
from compression_pipeline.text.parts import parts

STORY = "\n\n".join(texts())[:60_000]
LONG = 20_000


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is long here would be a part of a real text."""
    monkeypatch.setattr("compression_pipeline.text.encode.LONG", LONG)
    monkeypatch.setattr(files, "PIECE", 7_000)


@given(st.text(), st.integers(4, 9))
def test_a_text_file_in_pieces_is_the_text(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    path = tmp_path_factory.mktemp("drawn") / "a.txt"
    path.write_bytes(codecs.BOM_UTF8 + text.encode("utf-8", "replace"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "PIECE", size)
        [row] = TextFile(path, name="a.txt", column="").rows()
        found = "".join(row.pieces()) if isinstance(row, Long) else row
    assert found == path.read_text("utf-8-sig")


@given(st.lists(st.text(max_size=9)), st.integers(0, 9))
def test_the_hash_of_pieces_is_that_of_the_text(pieces: list[str], seed: int) -> None:
    held = Held(seed, 0.1)
    assert held.hash(pieces) == held.hash(["".join(pieces)])


@pytest.mark.parametrize("size", [1, 700, 5000])
def test_parts_are_the_same_however_the_text_comes(tmp_path: Path, size: int) -> None:
    write_tokenizer(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = STORY[:20_000]
    pieces = (text[start : start + size] for start in range(0, len(text), size))
    assert [*parts(pieces, backend, 2000)] == [*parts([text], backend, 2000)]


@pytest.mark.parametrize("workers", [1, 2])
def test_long_documents_have_the_tokens_of_the_whole(
    preparation: Preparation, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("compression_pipeline.text.tokenize.SMALL_TEXT", 0)
    long = STORY
    held = next(text for text in texts()[:40] if len(text) > 2000)
    preparation.write("train/a.jsonl", *rows("short", long, "short, too"))
    (preparation.folder / "train" / "b.txt").write_text(long, newline="\r\n")
    (preparation.folder / "train" / "c.txt").write_text(" \n" * LONG)
    preparation.write("validation/a.jsonl", *rows(held))
    data = preparation.artifact(preparation.run("file:.", workers=workers)).data
    backend = Tokenizer.from_file(f"{preparation.teacher.removeprefix('file:')}/tokenizer.json")
    [end] = backend.encode(END).ids
    expected = [[*backend.encode(text).ids, end] for text in ("short", long, "short, too", long)]
    assert sorted(documents(data, "train")) == sorted(expected)
    assert documents(data, "validation") == [[*backend.encode(held).ids, end]]


def test_a_long_document_is_held_out_as_a_whole(preparation: Preparation) -> None:
    preparation.write("data/a.jsonl", *rows(*(f"document {number}" for number in range(30))))
    (preparation.folder / "data" / "long.txt").write_text(STORY)
    preparation.write("same.jsonl", *rows(STORY, *(f"document {number}" for number in range(30))))
    one, other = (
        preparation.artifact(preparation.run(source, validationFraction=0.5)).data
        for source in ("file:data", "file:same.jsonl")
    )
    for split in ("train", "validation"):
        assert sorted(documents(one, split)) == sorted(documents(other, split))


MEASURE = """
import resource, sys
from pathlib import Path
from tokenizers import Tokenizer
from compression_pipeline.config import DatasetConfig, DocumentFormat
from compression_pipeline.text.files import TextFile
from compression_pipeline.text.tokenize import Tokenization
from compression_pipeline.text.tokenizer import TeacherTokenizer

class Context:
    def stop_if_requested(): pass
    class events:
        def progress(*_, **__): pass

folder = Path(sys.argv[1])
file = folder / "tokenizer.json"
words = Tokenizer.from_file(str(file)).pre_tokenizer
tokenizer = TeacherTokenizer(file, 0, None, None, 511, 512, False, (), None, words)
dataset = DatasetConfig(source="file:x", documents=DocumentFormat.ROWS, workers=1)
for name in sys.argv[2:]:
    one, few = (TextFile(folder / file, name=file, column="") for file in (name, "few.txt"))
    Tokenization(dataset, Context, tokenizer, folder).run([one], [few])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, flush=True)
"""


def test_memory_does_not_grow_with_a_text_file(tmp_path: Path) -> None:
    """The child does not fork: what it has in memory at most is its own."""
    write_folder(tmp_path)
    (tmp_path / "few.txt").write_text("a few words")
    for megabytes in (2, 24):
        (tmp_path / f"{megabytes}.txt").write_text("A line of a long story.\n" * (megabytes * 1024**2 // 24))
    told = [sys.executable, "-c", MEASURE, str(tmp_path), "2.txt", "24.txt"]
    done = subprocess.run(told, check=True, capture_output=True, text=True)
    small, large = map(int, done.stdout.split())
    assert large - small < 16, f"{small} MiB for 2 MB, {large} MiB for 24 MB"


@pytest.fixture
def without_unknown(preparation: Preparation) -> Preparation:
    """A teacher whose tokenizer knows a few words, those that it is tried with among them, and no token for others."""
    folder = preparation.folder / "teacher"
    folder.mkdir()
    for path in Path(preparation.teacher.removeprefix("file:")).iterdir():
        (folder / path.name).symlink_to(path)
    known = [END, "a", "b", "few", "words", "Probe", "of", "numbers", "42", ",", "é"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([END])
    (folder / "tokenizer.json").unlink()
    backend.save(str(folder / "tokenizer.json"))
    preparation.teacher = "file:teacher"
    return preparation


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("name", "place"),
    [("a.jsonl", "a.jsonl:4"), ("a.parquet", "a.parquet:3"), ("a.txt", "a.txt"), ("long.txt", "g.txt")],
)
def test_a_text_that_the_tokenizer_has_no_tokens_for(
    without_unknown: Preparation, monkeypatch: pytest.MonkeyPatch, workers: int, name: str, place: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr("compression_pipeline.text.tokenize.SMALL_TEXT", 0)
    content = ["a few words", "b", "unheard"]
    path = without_unknown.folder / "data" / name
    path.parent.mkdir()
    if name == "a.jsonl":
        without_unknown.write("data/a.jsonl", *rows(*content[:2]), "", *rows(content[2]))
    elif name == "a.parquet":
        pq.write_table(pa.table({"text": content}), path)
    else:
        path.write_text("a few words " * (LONG // 4 if name == "long.txt" else 1) + "unheard")
    with pytest.raises(UserError) as raised:
        without_unknown.run(f"file:data/{name}", workers=workers)
    said = str(raised.value)
    assert f"{place}: the teacher's tokenizer can't encode this text (WordLevel error: Missing [UNK] token" in said
    assert "\n" not in said
    assert without_unknown.leftovers() == []


def test_a_document_of_too_many_tokens(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "LONGEST", 5_000)
    preparation.write("data/a.jsonl", *rows("a few words", STORY))
    with pytest.raises(UserError, match=r"a\.jsonl:2: the document has [\d,]+ tokens or more, which the format of"):
        preparation.run("file:data")


@pytest.mark.parametrize("kind", ["words", "unigram"])
def test_a_tokenizer_without_a_token_for_the_unknown(tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path)
    model = models.WordLevel({END: 0, "a": 1, "b": 2}) if kind == "words" else models.Unigram([(END, 0.0), ("a", -1.0)])
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([END])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer\.json: transformers can't use this tokenizer \(.*(unk|UNK)"):
        load(tmp_path, ROWS)
