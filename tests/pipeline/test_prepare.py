"""prepare end to end on files of this machine: what it makes is what Megatron reads, byte for byte."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from preparing import FINGERPRINT, Preparation, rows
from tiny import END, texts

from compression_pipeline.artifact import Store
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.text import tokenize
from compression_pipeline.text.indexed import IndexedWriter


def documents(folder: Path, split: str) -> list[list[int]]:
    """The documents that Megatron reads from an indexed dataset."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(folder / split))
    found: list[list[int]] = []
    for start, end in zip(dataset.document_indices, dataset.document_indices[1:], strict=False):
        found.append([int(token) for sequence in range(start, end) for token in np.asarray(dataset[sequence])])
    return found


def decoded(preparation: Preparation, tokens: list[int]) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{preparation.teacher.removeprefix('file:')}/tokenizer.json")
    return tokenizer.decode(tokens, skip_special_tokens=False)


# -- what it makes ----------------------------------------------------------------------------------------------------


def test_the_artifact(preparation: Preparation, tiny_teacher: Path) -> None:
    preparation.write("corpus/train.jsonl", *rows(*texts()[:40]))
    preparation.write("corpus/validation.jsonl", *rows(*texts()[40:50]))
    result = preparation.run("file:corpus")
    artifact = preparation.artifact(result)
    for path in (path for path in tiny_teacher.iterdir() if path.name != "config.json"):
        assert (artifact.model / path.name).read_bytes() == path.read_bytes()
    assert read_architecture(artifact.model) == result.teacher
    assert result.teacher.layers == 4
    assert result.teacher_parameters == result.teacher.parameters
    assert result.documents == 50
    for split, expected, tokens in (
        ("train", texts()[:40], result.train_tokens),
        ("validation", texts()[40:50], result.validation_tokens),
    ):
        found = documents(artifact.data, split)
        assert [decoded(preparation, one) for one in found] == [text + END for text in expected]
        assert sum(map(len, found)) == tokens
    statistics = json.loads((artifact.data / "statistics.json").read_text())
    train = statistics["splits"]["train"]
    assert (train["documents"], train["tokens"]) == (40, result.train_tokens)
    assert sum(entry["documents"] for entry in train["histogram"]) == 40
    lengths = [len(one) for one in documents(artifact.data, "train")]
    assert (train["shortest"], train["longest"]) == (min(lengths), max(lengths))
    for entry in train["histogram"]:
        assert entry["documents"] == sum(entry["from"] <= length <= entry["to"] for length in lengths)
    progress = preparation.events("progress")[-1]
    assert progress["step"] == progress["totalSteps"]
    assert progress["documents"] == 50
    assert {"tokensPerSecond", "documentsPerSecond", "etaSeconds"} <= set(progress)


def test_the_same_content_is_found_again_wherever_it_lies(preparation: Preparation) -> None:
    preparation.write("one/a.jsonl", *rows(*texts()[:30]))
    first = preparation.run("file:one")
    assert not first.cached
    shutil.copytree(preparation.folder / "one", preparation.folder / "volume" / "two")
    second = preparation.run("pvc://claim/two")
    assert (second.key, second.cached) == (first.key, True)
    assert second.resolved_texts[0].source == "pvc://claim/two"
    assert second.resolved_texts[0].digest == first.resolved_texts[0].digest
    adopted = Store(preparation.store).find_published("prepare", FINGERPRINT)
    assert adopted is not None and adopted.manifest.result["resolvedDataset"]["source"] == "pvc://claim/two"
    third = preparation.run("file:one", seed=5)
    assert third.key != first.key
    preparation.write("one/a.jsonl", *rows(*texts()[:31]))
    assert preparation.run("file:one").key not in (first.key, third.key)


def test_a_later_job_is_told_without_looking_unless_a_file_has_changed(preparation: Preparation) -> None:
    preparation.write("corpus/a.jsonl", *rows(*texts()[:30]))
    job = preparation.job("file:corpus")

    def launch() -> tuple[dict[str, object], set[str]]:
        path = preparation.folder / "termination.json"
        told = {
            "COMPRESSION_CONFIG": job.model_dump_json(by_alias=True, exclude_none=True),
            "COMPRESSION_TERMINATION_MESSAGE": str(path),
            "PYTHONPROFILEIMPORTTIME": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "compression_pipeline", "prepare"],
            env=os.environ | told,
            check=True,
            capture_output=True,
            text=True,
        )
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        return json.loads(path.read_text())["result"], imported

    result, imported = launch()
    assert result["cached"] is False
    # What prepare needs is light: seconds of start-up are what jobs of this size would otherwise cost.
    assert not imported & {"torch", "megatron", "modelopt"}
    again, imported = launch()
    assert again == result | {"cached": True}
    assert not imported & {"numpy", "tokenizers", "transformers"}
    preparation.write("corpus/b.jsonl", *rows("one more document"))
    os.utime(preparation.folder / "corpus", (1, 1))
    changed, _ = launch()
    assert changed["cached"] is False
    assert changed["key"] != result["key"]


@pytest.mark.parametrize("ending", ["txt", "json", "jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_every_format_gives_the_same_tokens(preparation: Preparation, ending: str) -> None:
    content = texts()[:20]
    preparation.write("plain/a.jsonl", *rows(*content))
    plain = preparation.run("file:plain")
    folder = preparation.folder / "corpus"
    folder.mkdir()
    lines = "".join(f"{line}\n" for line in rows(*content)).encode()
    match ending:
        case "txt":
            for number, text in enumerate(content):
                (folder / f"{number:02}.txt").write_text(text)
        case "json" | "jsonl":
            (folder / f"a.{ending}").write_bytes(lines)
        case "jsonl.gz":
            padding = bytes(512)  # what tapes and some tools leave behind the last member
            (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines[:5000]) + gzip.compress(lines[5000:]) + padding)
        case "jsonl.zst":
            import zstandard

            half = len(lines) // 2
            frames = [zstandard.compress(lines[:half]), zstandard.compress(lines[half:])]
            (folder / "a.jsonl.zst").write_bytes(b"".join(frames))
        case "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pa.table({"id": list(range(20)), "text": pa.array(content)})
            pq.write_table(table, folder / "a.parquet", row_group_size=7)
    one, other = (preparation.artifact(found).data for found in (plain, preparation.run("file:corpus")))
    if ending == "txt":  # files of their own, whose order is that of their content
        assert all(
            sorted(documents(one, split)) == sorted(documents(other, split)) for split in ("train", "validation")
        )
        return
    for name in ("train.bin", "train.idx", "validation.bin", "validation.idx"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_single_file_and_a_glob(preparation: Preparation) -> None:
    preparation.write("corpus/deep/a.jsonl", *rows(*texts()[:10]))
    preparation.write("corpus/b.jsonl", *rows(*texts()[10:30]))
    preparation.write("corpus/notes.md", "not text")
    preparation.write("corpus/.hidden.jsonl", "not JSON")
    assert preparation.run("file:corpus/b.jsonl").documents == 20
    assert preparation.run("file:corpus").documents == 30
    assert preparation.run("file:corpus/*/*.jsonl").documents == 10
    assert preparation.run(f"file:{preparation.folder}/corpus/**/*.jsonl").documents == 30


def test_what_auto_means_is_taken_from_the_text_and_not_from_its_path(preparation: Preparation) -> None:
    preparation.write("other/a.jsonl", *rows(*texts()[:30]))
    preparation.write("wikitext-experiments/corpus/a.jsonl", *rows(*texts()[:30]))
    other = preparation.run("file:other")
    assert other.documents == 30
    assert preparation.run("file:wikitext-experiments/corpus").key == other.key
    articles = [f" = Title {number} = \n\n {text.splitlines()[0]} \n" for number, text in enumerate(texts()[:9])]
    preparation.write("copy/a.txt", *articles)
    found = preparation.run("file:copy")
    assert found.documents == 9
    assert preparation.run("file:copy", documents="WikiTextArticles").key == found.key


def test_a_mark_of_utf8_is_no_text(preparation: Preparation) -> None:
    plain, marked = preparation.folder / "plain", preparation.folder / "marked"
    for folder, mark in ((plain, b""), (marked, b"\xef\xbb\xbf")):
        folder.mkdir()
        (folder / "a.txt").write_bytes(mark + texts()[0].encode())
        (folder / "b.jsonl").write_bytes(mark + "".join(f"{row}\n" for row in rows(*texts()[1:9])).encode())
    one, other = (
        preparation.artifact(preparation.run(f"file:{folder}")).data / "train.bin" for folder in (plain, marked)
    )
    assert one.read_bytes() == other.read_bytes()


def test_a_folder_that_is_a_link_is_told_of(preparation: Preparation) -> None:
    preparation.write("corpus/a.jsonl", *rows(*texts()[:10]))
    preparation.write("elsewhere/b.jsonl", *rows(*texts()[10:20]))
    (preparation.folder / "corpus" / "more").symlink_to(preparation.folder / "elsewhere")
    for source in ("file:corpus/**/*.jsonl", "file:corpus"):
        assert preparation.run(source).documents == 10
        [warning] = preparation.events("warning")
    assert (
        f"what is below {preparation.folder / 'corpus' / 'more'} is not read, because it is a link"
        in warning["message"]
    )
    assert preparation.run("file:corpus/more").documents == 10
    assert preparation.events("warning") == []


# -- what is held out -------------------------------------------------------------------------------------------------


def held_out(preparation: Preparation, source: str, **told: object) -> tuple[set[str], set[str]]:
    data = preparation.artifact(preparation.run(source, **told)).data
    train, validation = (
        {decoded(preparation, one).removesuffix(END) for one in documents(data, split)}
        for split in ("train", "validation")
    )
    return train, validation


def test_held_out_documents_are_the_same_in_any_order_and_never_trained_on(preparation: Preparation) -> None:
    content = [f"document {number}: {number * 7919}" for number in range(400)]
    shuffled = [*content, *content[:50]]  # some twice
    random.Random(0).shuffle(shuffled)
    preparation.write("one.jsonl", *rows(*content))
    for part in range(4):
        preparation.write(f"other/{part}.jsonl", *rows(*shuffled[part::4]))
    train, validation = held_out(preparation, "file:one.jsonl", validationFraction=0.1)
    assert train | validation == set(content)
    assert not train & validation
    assert 15 <= len(validation) <= 80
    assert held_out(preparation, "file:other", validationFraction=0.1) == (train, validation)
    assert held_out(preparation, "file:one.jsonl", validationFraction=0.1, seed=7)[1] != validation
    more = held_out(preparation, "file:one.jsonl", validationFraction=0.2)[1]
    assert validation < more


def test_of_few_documents_one_is_held_out(preparation: Preparation) -> None:
    content = ["first of three documents", "second of three documents", "third of three documents"]
    preparation.write("few.jsonl", *rows(*content))
    train, validation = held_out(preparation, "file:few.jsonl", validationFraction=0.001)
    assert len(validation) == 1
    assert train | validation == set(content)


def test_processes_change_nothing(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression_pipeline.text.encode.BATCH_CHARACTERS", 20_000)
    preparation.write("corpus/a.jsonl", *rows(*texts()))
    one = preparation.artifact(preparation.run("file:corpus", validationFraction=0.1))
    expected = {path.name: path.read_bytes() for path in one.data.iterdir()}
    shutil.rmtree(one.path)
    monkeypatch.setattr(tokenize, "SMALL_TEXT", 0)
    other = preparation.artifact(preparation.run("file:corpus", validationFraction=0.1, workers=3))
    assert {path.name: path.read_bytes() for path in other.data.iterdir()} == expected


# -- WikiText ---------------------------------------------------------------------------------------------------------

FIRST = [" = First = ", "", " Text of the first . ", " = = Section = = ", " More . "]
WIKITEXT = ["", *FIRST, "", " = Second one = ", " End . "]
ARTICLES = ["\n".join(FIRST), " = Second one = \n End . "]


@pytest.mark.parametrize("newlines", [True, False])
def test_wikitext_lines_become_articles_and_splits_keep_their_names(preparation: Preparation, newlines: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [line + "\n" if newlines and line else line for line in WIKITEXT]
    folder = preparation.folder / "wikitext-2-v1"
    folder.mkdir()
    pq.write_table(pa.table({"text": lines[:5]}), folder / "train-00000-of-00002.parquet")
    pq.write_table(pa.table({"text": lines[5:]}), folder / "train-00001-of-00002.parquet")
    pq.write_table(pa.table({"text": [" = Validation = ", " text . "]}), folder / "validation-00000-of-00001.parquet")
    pq.write_table(pa.table({"text": [" = Test = ", " text . "]}), folder / "test-00000-of-00001.parquet")
    data = preparation.artifact(preparation.run("file:wikitext-2-v1")).data
    assert [decoded(preparation, one).removesuffix(END) for one in documents(data, "train")] == ARTICLES
    found = [decoded(preparation, one).removesuffix(END) for one in documents(data, "validation")]
    assert found == [" = Validation = \n text . "]
    tested = preparation.run("file:wikitext-2-v1", validationSplit="test")
    found = documents(preparation.artifact(tested).data, "validation")
    assert decoded(preparation, found[0]).startswith(" = Test = ")


def test_a_text_file_of_wikitext(preparation: Preparation) -> None:
    preparation.write("wiki.train.txt", *WIKITEXT)
    preparation.write("wiki.valid.txt", " = Validation = ", " text . ")
    told = {"documents": "WikiTextArticles"}
    data = preparation.artifact(preparation.run("file:*.txt", **told)).data
    assert [decoded(preparation, one).removesuffix(END) for one in documents(data, "train")] == ARTICLES


# -- byte for byte what Megatron's own tool writes --------------------------------------------------------------------


def megatron_writes(teacher: Path, lines: list[str], prefix: Path) -> None:
    """What Megatron-LM's tools/preprocess_data.py does with JSON lines, --append-eod, a Hugging Face tokenizer."""
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from megatron.core.tokenizers.text.libraries.huggingface_tokenizer import HuggingFaceTokenizer

    tokenizer = HuggingFaceTokenizer(str(teacher), use_fast=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(tokenizer.vocab_size))
    for line in lines:
        ids = tokenizer.text_to_ids(json.loads(line)["text"])
        lengths = [len(ids)] if ids else []
        if ids:
            ids.append(tokenizer.eod)
            lengths[-1] += 1
        builder.add_document(torch.tensor(ids, dtype=torch.int64), lengths)
    builder.finalize(f"{prefix}.idx")


def test_the_bytes_are_those_of_megatrons_tool(preparation: Preparation, tiny_teacher: Path) -> None:
    odd = [
        "ünïcödé 漢字 🎉",
        "a\x00b\t\r\n",
        "x" * 5000,
        f"a special {END} inside",
        "   leading",
        "\ufeffbom",
        "\n\nlines\n",
    ]
    lines = rows(*texts()[:30], *odd)
    preparation.write("corpus/train.jsonl", *lines)
    preparation.write("corpus/validation.jsonl", *lines[:3])
    data = preparation.artifact(preparation.run("file:corpus")).data
    for split, given in (("train", lines), ("validation", lines[:3])):
        prefix = preparation.folder / split
        megatron_writes(tiny_teacher, given, prefix)
        for ending in (".bin", ".idx"):
            assert (data / f"{split}{ending}").read_bytes() == prefix.with_name(split + ending).read_bytes()


@pytest.mark.parametrize("vocabulary", [65499, 65500])
def test_the_format_is_megatrons_whatever_the_lengths(tmp_path: Path, vocabulary: int) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    from compression_pipeline.text.indexed import token_type

    generator = np.random.default_rng(0)
    lengths = [5, 0, 1, 0, 0, 70_000, *generator.integers(0, 50, 300).tolist(), 0]
    found = [generator.integers(0, vocabulary, length) for length in lengths]
    builder = IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=DType.optimal_dtype(vocabulary))
    writer = IndexedWriter(tmp_path / "b", token_type(vocabulary - 1))
    for tokens in found:
        builder.add_document(torch.from_numpy(tokens), [len(tokens)] if len(tokens) else [])
    for start in range(0, len(found), 7):
        part = found[start : start + 7]
        joined = np.concatenate(part).astype(token_type(vocabulary - 1)).tobytes()
        writer.add(joined, [len(tokens) for tokens in part])
    builder.finalize(str(tmp_path / "a.idx"))
    writer.finish()
    for ending in ("bin", "idx"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
