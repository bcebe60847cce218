"""Tokens/s of prepare beside the logic of Megatron-LM's tools/preprocess_data.py, in one run on the same documents.

    python benchmarks/prepare.py [--megabytes 24] [--workers N] [--rounds 3] [--json]

The documents are the source files of Python's standard library; the tokenizer is a byte-level BPE trained on a part of
them, unless --teacher names the folder of a checkpoint. Each side runs in a process of its own, in turn, with the same
number of tokenizing processes; the outputs must be equal byte for byte. The figures: tokens/s from the first document
to the finished files (processes' start included on both sides), and seconds and processor seconds of the whole side,
imports included (the latter hardly depend on what else the machine does).
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron.core.tokenizers.text.libraries.huggingface_tokenizer import HuggingFaceTokenizer

SIDES = ("prepare", "megatron")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=24, help="text to tokenize")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="tokenizing processes")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side; the median counts")
    parser.add_argument("--teacher", type=Path, help="checkpoint whose tokenizer is used")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # one run, in the process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run = run_prepare if arguments.side == "prepare" else run_megatron
        sys.stdout.write(json.dumps(run(arguments.teacher, arguments.folder, arguments.workers)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "text.jsonl", arguments.megabytes * 10**6)
        teacher = arguments.teacher or write_tokenizer(folder)
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(arguments.rounds):
            for side in SIDES:
                runs[side].append(in_own_process(side, teacher, folder, arguments.workers))
        for ending in ("bin", "idx"):
            ours, theirs = (folder / f"{side}.{ending}" for side in SIDES)
            if ours.read_bytes() != theirs.read_bytes():
                raise SystemExit(f"the two sides wrote different .{ending} files")
        show(record(runs, arguments), as_json=arguments.json)


def write_text(path: Path, size: int) -> None:
    """JSON lines, one a source file, over again until there are `size` characters."""
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    written = 0
    with path.open("w") as file:
        while written < size:
            for source in library:
                if "site-packages" in source.parts:
                    continue
                text = source.read_text(encoding="utf-8", errors="replace")
                if text.strip() and written < size:
                    file.write(json.dumps({"text": text}) + "\n")
                    written += len(text)


def write_tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with (folder / "text.jsonl").open() as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(200), file, strict=False)]
    trainer = trainers.BpeTrainer(vocab_size=16_000, special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    teacher = folder / "teacher"
    teacher.mkdir()
    tokenizer.save(str(teacher / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (teacher / "tokenizer_config.json").write_text(json.dumps(told))
    return teacher


def in_own_process(side: str, teacher: Path, folder: Path, workers: int) -> dict[str, float]:
    arguments = ["--side", side, "--teacher", str(teacher), "--folder", str(folder), "--workers", str(workers)]
    told = {"USE_TORCH": "0"} if side == "prepare" else {}  # as the launcher has it
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(  # noqa: S603 (this very script)
        [sys.executable, __file__, *arguments], env=os.environ | told, check=True, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1]) | {"process": time.perf_counter() - start, "processor": used}


def run_prepare(teacher: Path, folder: Path, workers: int) -> dict[str, float]:
    from itertools import chain

    import numpy as np

    from compression_pipeline.huggingface.tokenizer import load
    from compression_pipeline.text import documents
    from compression_pipeline.text.encode import encode
    from compression_pipeline.text.files import TextFile
    from compression_pipeline.text.indexed import IndexedWriter, token_type

    start = time.perf_counter()
    tokenizer = load(teacher, sys.maxsize).tokenizer
    writer = IndexedWriter(folder / "prepare", token_type(tokenizer.largest))
    file = TextFile(folder / "text.jsonl", name="text.jsonl", column="text")
    texts = documents.rows(chain(file.rows()))
    end = np.array([tokenizer.end_of_document], token_type(tokenizer.largest)).tobytes()
    for encoded in encode(tokenizer, texts, None, workers=workers):
        if encoded.batch.part:
            writer.add_part(encoded.kept.tokens, end if encoded.batch.last else None)
        else:
            writer.add(encoded.kept.tokens, encoded.kept.lengths)
    writer.finish()
    return {"tokens": writer.tokens, "seconds": time.perf_counter() - start}


@cache
def megatron_tokenizer(teacher: Path) -> "HuggingFaceTokenizer":
    from megatron.core.tokenizers.text.libraries.huggingface_tokenizer import HuggingFaceTokenizer

    return HuggingFaceTokenizer(str(teacher), use_fast=True)


def encode_megatron(line: str, teacher: Path) -> tuple[list[int], list[int]]:
    """As in Megatron-LM's tool: a line of JSON to token ids, in a process of a pool."""
    tokenizer = megatron_tokenizer(teacher)
    ids: list[int] = tokenizer.text_to_ids(json.loads(line)["text"])
    lengths = [len(ids)] if ids else []
    if ids:
        ids.append(tokenizer.eod)
        lengths[-1] += 1
    return ids, lengths


def run_megatron(teacher: Path, folder: Path, workers: int) -> dict[str, float]:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    start = time.perf_counter()
    vocabulary = megatron_tokenizer(teacher).vocab_size
    builder = IndexedDatasetBuilder(str(folder / "megatron.bin"), dtype=DType.optimal_dtype(vocabulary))
    tokens = 0
    with (folder / "text.jsonl").open() as file, multiprocessing.Pool(workers) as pool:
        for ids, lengths in pool.imap(partial(encode_megatron, teacher=teacher), file, 32):
            builder.add_document(ids, lengths)  # pyright: ignore[reportArgumentType] (a list, as the tool itself gives)
            tokens += len(ids)
        pool.close()
        pool.join()  # so that its processes' time is counted
    builder.finalize(str(folder / "megatron.idx"))
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


def record(runs: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"workers": arguments.workers, "rounds": arguments.rounds}
    for side in SIDES:
        seconds = statistics.median(run["seconds"] for run in runs[side])
        found[side] = {
            "tokens": int(runs[side][0]["tokens"]),
            "tokensPerSecond": round(runs[side][0]["tokens"] / seconds),
            "processorSeconds": round(statistics.median(run["processor"] for run in runs[side]), 2),
            "processSeconds": round(statistics.median(run["process"] for run in runs[side]), 2),
        }
    found["ratio"] = round(found["prepare"]["tokensPerSecond"] / found["megatron"]["tokensPerSecond"], 2)
    found["processRatio"] = round(found["megatron"]["processSeconds"] / found["prepare"]["processSeconds"], 2)
    found["processorRatio"] = round(found["megatron"]["processorSeconds"] / found["prepare"]["processorSeconds"], 2)
    found["versions"] = {name: version(name) for name in ("megatron-core", "tokenizers", "transformers", "torch")}
    return found


def show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for side in SIDES:
        told = found[side]
        line = f"{side:10} {told['tokensPerSecond']:>10,} tokens/s   {told['processSeconds']:>7} s in all, "
        line += f"{told['processorSeconds']:>7} s of processors\n"
        sys.stdout.write(line)
    sys.stdout.write(f"ratio      {found['ratio']} in tokens/s, {found['processRatio']} in time in all, ")
    sys.stdout.write(f"{found['processorRatio']} in processors' time\n")
    sys.stdout.write(f"of {found['prepare']['tokens']:,} tokens, {found['workers']} processes, {found['versions']}\n")


if __name__ == "__main__":
    main()
