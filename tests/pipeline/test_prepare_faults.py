"""Bad input and bad days of prepare: each a sentence of one line, nothing lost and nothing left behind."""

import gzip
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from preparing import Preparation, rows
from tiny import texts

from compression_pipeline.errors import Interrupted, PhaseError, TransientError, UserError
from compression_pipeline.faults import classify
from compression_pipeline.text import tokenize
from compression_pipeline.text.indexed import IndexedWriter


def fault(preparation: Preparation, source: str, kind: type[PhaseError] = UserError, **told: object) -> str:
    """The sentence that prepare ends with; nothing may be left behind."""
    with pytest.raises(kind) as raised:
        preparation.run(source, **told)
    assert preparation.leftovers() == []
    said = str(raised.value)
    assert "\n" not in said
    return said


def test_sources_that_are_not_there(preparation: Preparation) -> None:
    preparation.write("ok.jsonl", *rows("a", "b", "c"))
    (preparation.folder / "nothing").mkdir()
    preparation.write("other/a.csv", "a,b")
    assert "spec.dataset.source: file:missing does not exist" in fault(preparation, "file:missing")
    assert "is an empty folder" in fault(preparation, "file:nothing")
    assert "matches no file" in fault(preparation, "file:*.parquet")
    assert "a.csv is none); give one of .txt, " in fault(preparation, "file:other")
    assert "unsupported type" in fault(preparation, "file:other/a.csv")
    said = fault(preparation, "file:ok.jsonl", teacher={"model": "file:missing"})
    assert "spec.teacher.model: file:missing does not exist" in said
    assert "has no safetensors weights" in fault(preparation, "file:ok.jsonl", teacher={"model": "file:nothing"})
    assert "this job was not told where pvc://other is" in fault(preparation, "pvc://other/a")


def test_damaged_and_wrong_rows(preparation: Preparation) -> None:
    preparation.write("bad.jsonl", *rows("a", "b"), '{"text": "c"', *rows("d"))
    path = preparation.folder / "bad.jsonl"
    assert f"{path}:3: is not JSON" in fault(preparation, "file:bad.jsonl")
    preparation.write("cut.jsonl", *rows("a"), '{"text": ')
    assert "cut.jsonl:2: is not JSON (Expecting value at column 10)" in fault(preparation, "file:cut.jsonl")
    preparation.write("column.jsonl", '{"content": "a", "id": 1}')
    said = fault(preparation, "file:column.jsonl")
    assert "there is no column text; set dataset.textColumn to one of content, id" in said
    preparation.write("number.jsonl", '{"text": 5}')
    assert "column.jsonl" not in fault(preparation, "file:number.jsonl")
    assert "number.jsonl:1: text is no string (int)" in fault(preparation, "file:number.jsonl")
    preparation.write("deep.jsonl", "[" * 100_000)
    assert "deep.jsonl:1: is nested too deeply" in fault(preparation, "file:deep.jsonl")
    preparation.write("list.jsonl", "[1]")
    assert "is one JSON array" not in fault(preparation, "file:list.jsonl")
    preparation.write("array.jsonl", "[", '{"text": "a"}', "]")
    assert "is one JSON array; write one JSON object a line" in fault(preparation, "file:array.jsonl")
    (preparation.folder / "latin.txt").write_bytes(b"caf\xe9 ")
    assert "is not UTF-8 (byte 3)" in fault(preparation, "file:latin.txt")
    whole = gzip.compress("".join(f"{line}\n" for line in rows(*texts())).encode())
    (preparation.folder / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "cut.jsonl.gz is damaged or not gzip" in fault(preparation, "file:cut.jsonl.gz")
    (preparation.folder / "no.jsonl.zst").write_bytes(b"no zstd at all")
    assert "no.jsonl.zst is damaged or not zstd" in fault(preparation, "file:no.jsonl.zst")


def test_the_store_is_no_source(preparation: Preparation) -> None:
    preparation.write("a.jsonl", *rows(*texts()[:20]))
    preparation.write("store/work/old.jsonl", "no text of ours")
    assert preparation.run("file:.").documents == 20


def test_wrong_parquet(preparation: Preparation) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = preparation.folder / "a.parquet"
    pq.write_table(pa.table({"content": ["a"], "id": [1]}), path)
    assert f"{path}: there is no column text; set dataset.textColumn to one of content, id" in fault(
        preparation, "file:a.parquet"
    )
    assert "column id is of type int64" in fault(preparation, "file:a.parquet", textColumn="id")
    path.write_bytes(path.read_bytes()[:-20])
    assert "is damaged or no Parquet file" in fault(preparation, "file:a.parquet")


def test_too_little_text(preparation: Preparation) -> None:
    preparation.write("empty.jsonl", *rows("", "  ", "\n"), '{"text": null}')
    assert "is empty: it has no document" in fault(preparation, "file:empty.jsonl")
    preparation.write("one.jsonl", *rows("one", "one"))
    assert "too few different documents" in fault(preparation, "file:one.jsonl")
    preparation.write("splits/train.jsonl", *rows("one", "two"))
    preparation.write("splits/validation.jsonl", *rows(""))
    assert "has no text in its split for validation" in fault(preparation, "file:splits")
    preparation.write("short.jsonl", *rows(*(text[:300] for text in texts()[:9])))
    said = fault(preparation, "file:short.jsonl", sequenceLength=512)
    assert "fewer than one sequence of dataset.sequenceLength (512)" in said
    assert preparation.run("file:short.jsonl").train_tokens > 0  # the text serves shorter ones


def test_missing_splits(preparation: Preparation) -> None:
    preparation.write("corpus/train.jsonl", *rows(*texts()[:9]))
    preparation.write("corpus/test.jsonl", *rows(*texts()[9:12]))
    said = fault(preparation, "file:corpus", validationSplit="dev_set")
    assert "has no split dev_set; set dataset.validationSplit to one of its splits: train, test" in said
    assert "has no split learn; set dataset.trainSplit" in fault(preparation, "file:corpus", trainSplit="learn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no end", "names no eos_token"),
        ("strange end", "tokenizer_config.json: token id 512 ('<nowhere>') is outside of the model's embedding of 512"),
        ("no tokenizer", "tokenizer.json is missing; load the model's tokenizer once"),
        ("larger vocabulary", "is outside of the model's embedding of 512 rows"),
        ("pickle", "only as pickle (pytorch_model.bin)"),
        ("truncated", "model.safetensors is truncated"),
        ("unknown", "architecture"),
    ],
)
def test_teachers_that_cannot_be_used(preparation: Preparation, tiny_teacher: Path, change: str, message: str) -> None:
    folder = preparation.folder / "teacher"
    shutil.copytree(tiny_teacher, folder)
    preparation.write("corpus.jsonl", *rows(*texts()[:9]))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    match change:
        case "no end":
            (folder / "tokenizer_config.json").write_text("{}")
            (folder / "special_tokens_map.json").unlink()
        case "strange end":
            (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<nowhere>"}}')
            (folder / "special_tokens_map.json").unlink()
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "larger vocabulary":
            tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 512, "content": "<more>"})
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        case "pickle":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        case "truncated":
            os.truncate(folder / "model.safetensors", 500_000)
        case "unknown":
            config = json.loads((folder / "config.json").read_text())
            config |= {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
            (folder / "config.json").write_text(json.dumps(config))
    said = fault(preparation, "file:corpus.jsonl", teacher={"model": "file:teacher"})
    assert message in said
    assert said.startswith((f"spec.teacher.model: {folder}", "spec.teacher.model: file:teacher ")), (
        "the draft's folder is gone"
    )
    assert not list(preparation.store.glob("artifacts/*"))


def test_sequences_longer_than_the_teacher_knows_are_refused_before_any_text_is_read(
    preparation: Preparation, tiny_teacher: Path
) -> None:
    most = json.loads((tiny_teacher / "config.json").read_text())["max_position_embeddings"]
    preparation.write("corpus.jsonl", *rows(*texts()[:9]), "no JSON")
    said = fault(preparation, "file:corpus.jsonl", sequenceLength=most + 1)
    assert f"dataset.sequenceLength: {most + 1} is more than the teacher's {most} positions" in said
    assert "no JSON" not in fault(preparation, "file:corpus.jsonl", sequenceLength=most)
    assert "corpus.jsonl:10" in fault(preparation, "file:corpus.jsonl", sequenceLength=most)


def test_a_disk_that_fills_in_mid_write(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own ENOSPC: /dev/full lies behind the name of the tokens' file."""
    preparation.write("corpus.jsonl", *rows(*texts()[:30]))
    original = IndexedWriter.__init__

    def on_a_full_disk(self: IndexedWriter, prefix: Path, dtype: np.dtype, *, masked: bool) -> None:
        prefix.with_name(prefix.name + ".bin").symlink_to("/dev/full")
        original(self, prefix, dtype, masked=masked)

    with monkeypatch.context() as patched:
        patched.setattr(IndexedWriter, "__init__", on_a_full_disk)
        with pytest.raises(OSError, match="No space left") as raised:
            preparation.run("file:corpus.jsonl")
    assert isinstance(classify(raised.value), UserError)
    assert "the disk is full" in str(classify(raised.value))
    assert preparation.leftovers() == []
    assert preparation.run("file:corpus.jsonl").cached is False  # there is space again


def test_told_to_stop(preparation: Preparation) -> None:
    preparation.write("corpus.jsonl", *rows(*texts()[:30]))
    preparation.stop.raised = True
    assert "told to stop" in fault(preparation, "file:corpus.jsonl", Interrupted)


def test_text_that_changes_while_it_is_read(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    preparation.write("corpus.jsonl", *rows(*texts()[:30]))
    original = tokenize.Tokenization.run

    def changed_meanwhile(self: tokenize.Tokenization, *files: object) -> tokenize.Tokenized:
        found = original(self, *files)  # pyright: ignore[reportArgumentType] (passed on as they came)
        preparation.write("corpus.jsonl", *rows(*texts()[:31]))
        return found

    monkeypatch.setattr(tokenize.Tokenization, "run", changed_meanwhile)
    assert "corpus.jsonl changed while it was read; try again" in fault(
        preparation, "file:corpus.jsonl", TransientError
    )


def test_a_killed_tokenizing_process(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "SMALL_TEXT", 0)
    preparation.write("corpus.jsonl", *rows(*texts()))
    original = tokenize.Tokenization._documents

    def kills_children(self: tokenize.Tokenization, files: list[object]):
        import multiprocessing

        for document in original(self, files):  # pyright: ignore[reportArgumentType] (passed on as they came)
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGKILL)
            yield document

    monkeypatch.setattr("compression_pipeline.text.encode.BATCH_CHARACTERS", 1000)
    monkeypatch.setattr(tokenize.Tokenization, "_documents", kills_children)
    assert "a tokenizing process was killed" in fault(preparation, "file:corpus.jsonl", TransientError, workers=2)


@pytest.mark.parametrize("error", [OSError("handle is closed"), ValueError("bad value(s) in fds_to_keep")])
def test_a_tokenizing_process_killed_while_the_next_one_starts(
    preparation: Preparation, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(tokenize, "SMALL_TEXT", 0)
    preparation.write("corpus.jsonl", *rows(*texts()))

    def closed(*_: object) -> None:
        raise error  # what CPython says where the pool broke inside `submit`

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor._spawn_process", closed)
    assert "a tokenizing process was killed" in fault(preparation, "file:corpus.jsonl", TransientError, workers=2)
