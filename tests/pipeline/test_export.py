"""export: what is published is the student that was trained, or nothing is."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from checkpoints import VOCABULARY
from exporting import DISTILLED, job, run, student_store
from safetensors.torch import load_file, save_file
from stores import DATA, TEACHER, context
from transformers import AutoModelForCausalLM, AutoTokenizer

from compression_pipeline.artifact import Store
from compression_pipeline.config import (
    Architecture,
    ExportResult,
    Family,
)
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.files import inspect
from compression_pipeline.huggingface.sample import clean, default_prompt, documents
from compression_pipeline.huggingface.writer import save_tensors
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import export as phase
from compression_pipeline.reference_logits import FILE, Reference
from compression_pipeline.report.ancestry import short_number


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, engine: Runtime) -> Store:
    """One student that the tests here export, each under its own fingerprint."""
    return student_store(tmp_path_factory.mktemp("export"), engine, "qwen3")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_type(store: Store, dtype: str) -> None:
    result, artifact = run(store, f"{dtype:a<32}"[:32].encode().hex()[:32], dtype=dtype)
    trained = weights(store.open(f"distill-{DISTILLED}").model)
    found = weights(artifact.model)
    kind = getattr(torch, dtype)
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], trained[name].to(kind)) for name in trained)
    files = inspect(artifact.model)
    assert files.config["dtype"] == dtype
    assert files.config["head_dim"] == 20
    assert files.architecture.tied_embeddings
    assert result.relative_error < 1e-5
    assert result.distilled_loss == store.open(f"distill-{DISTILLED}").manifest.result["roundedLosses"][dtype]
    assert result.parameters == files.architecture.parameters
    assert result.bytes == sum(path.stat().st_size for path in artifact.model.iterdir())
    loaded = AutoModelForCausalLM.from_pretrained(artifact.model, dtype="auto")
    assert loaded.dtype == kind
    assert loaded.num_parameters() == result.parameters
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_shards(store: Store) -> None:
    _, artifact = run(store, "4" * 32, max_shard_size="20KB")
    index = json.loads((artifact.model / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert not (artifact.model / "model.safetensors").exists()


def test_the_sample_is_greedy_and_the_same_every_time(store: Store) -> None:
    prompt, count = "config = ", 12
    result, artifact = run(store, "5" * 32, sample_prompt=prompt, sample_tokens=count, dtype="float32")
    again, _ = run(store, "6" * 32, sample_prompt=prompt, sample_tokens=count, dtype="float32")
    assert result.sample == again.sample
    tokenizer = AutoTokenizer.from_pretrained(artifact.model)
    model: Any = AutoModelForCausalLM.from_pretrained(artifact.model, dtype=torch.float32)
    told = model.generation_config.eos_token_id
    ends = told if isinstance(told, list) else [told]
    tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = tokens.shape[1]
    while tokens.shape[1] < start + count and int(tokens[0, -1]) not in (ends if tokens.shape[1] > start else ()):
        with torch.no_grad():
            best = model(tokens).logits[0, -1].argmax()
        tokens = torch.cat((tokens, best.view(1, 1)), dim=1)
    assert result.sample == clean(prompt + tokenizer.decode(tokens[0, start:], skip_special_tokens=True))


def test_the_teacher_continues_the_same_prompt(store: Store) -> None:
    result, _ = run(store, "b" * 32, sample_prompt="config = ", sample_tokens=3)
    teacher, tokenizer = phase.load(store.open(TEACHER).model, torch.bfloat16)
    tokens = tokenizer("config = ", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = teacher.generate(tokens, max_new_tokens=3, do_sample=False)
    assert result.teacher_sample == clean(tokenizer.decode(best[0], skip_special_tokens=True))
    assert result.teacher_sample != result.sample


def test_a_teacher_that_transformers_refuses_costs_its_sample_alone(store: Store, tmp_path: Path) -> None:
    """Other tools write safetensors whose metadata names no format; Megatron's side reads them."""
    teacher = shutil.copytree(store.open(TEACHER).model, tmp_path / "model")
    for file in teacher.glob("*.safetensors"):
        save_file(load_file(file), file, metadata={"mergekit_version": "0.0.6"})
    current, recorder = context(store, "d" * 32)
    assert phase.teacher_sample(teacher, inspect(teacher).architecture, "a", 4, current) is None
    assert [told["message"].partition(" (")[0] for told in recorder.seen] == ["the teacher's sample could not be had"]


def test_a_teacher_that_takes_more_memory_than_the_student_writes_nothing() -> None:
    teacher = Architecture(
        family=Family.LLAMA,
        layers=32,
        hidden_size=4096,
        ffn_hidden_size=14336,
        attention_heads=32,
        query_groups=8,
        head_dim=128,
        vocabulary_size=128256,
    )
    assert phase.fits(teacher, teacher.model_copy(update={"hidden_size": 3072, "ffn_hidden_size": 9216}))
    assert not phase.fits(teacher, teacher.model_copy(update={"layers": 12}))
    small = teacher.model_copy(update={"layers": 1, "vocabulary_size": 320})
    assert phase.fits(small, small.model_copy(update={"hidden_size": 512, "ffn_hidden_size": 512}))


def test_the_card(store: Store) -> None:
    _, artifact = run(store, "7" * 32)
    card = (artifact.model / "README.md").read_text()
    import yaml

    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "someone/Tiny-Llama",
        "tags": ["compression-operator", "minitron", "pruned", "distilled"],
    }
    student, teacher = inspect(artifact.model).architecture, inspect(store.open(TEACHER).model).architecture
    distilled = store.open(f"distill-{DISTILLED}").manifest.result
    for said in (
        "# Tiny-Llama compressed to",
        f"| Parameters | {teacher.parameters:,} | {student.parameters:,} |",
        "| Hidden size | 48 | 32 |",
        "| Teacher as it came | 5.9000 | 365.04 |",
        f"| Teacher, corrected on this data | {distilled['teacherLoss']:.4f} |",
        f"| Student, pruned | {distilled['prunedLoss']:.4f} |",
        f"| **Student, distilled (this model, bfloat16)** | {distilled['roundedLosses']['bfloat16']:.4f} |",
        "of the validation split, computed in float32.",
        "| Teacher | `hf://someone/Tiny-Llama` | `abc123` | `d1` |",
        "| Data | `file:texts` |  | `d2` |",
        "Kept: layers 1, 3 of 3 (counted from 1)",
        "over the same 4 sequences of 32 tokens",
        "the activations of 8 sequences of 32 tokens",
        "| Steps | 2 |",
        "| Peak learning rate | 0.001 |",
        "| Arithmetic | float32 |",
        "| Trained on | 256 tokens: 0.0645 epochs, 256 different ones |",
        "Documents are laid end to end, so those in one sequence see each other",
        'AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")',
        f"torch {torch.__version__.partition('+')[0]}",
    ):
        assert said in body
    assert str(store.root) not in card
    given = store.open(TEACHER).model / "tokenizer_config.json"  # one that makes token_type_ids, as many do
    assert (artifact.model / given.name).read_bytes() == given.read_bytes()
    code = body.split("```python\n")[1].split("```")[0]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=artifact.model, capture_output=True)


def test_export_needs_neither_megatron_nor_modelopt(store: Store) -> None:
    """As the launcher starts it, and nothing but events on stdout."""
    code = (
        "import atexit, os, runpy, sys; sys.argv = ['worker', 'export']\n"
        "from compression_pipeline import worker\n"
        "worker.main(['export'])\n"
        "assert not {'megatron', 'modelopt', 'matplotlib', 'sklearn', 'scipy'} & set(sys.modules), 'heavy'\n"
    )
    environment = {**os.environ, "COMPRESSION_CONFIG": json.dumps(job(store, "8" * 32).to_json())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "result"
    assert ExportResult.model_validate(events[-1]["result"]).relative_error < 1e-5


@contextlib.contextmanager
def changed_reference(store: Store, **tensors: torch.Tensor) -> Any:
    path = store.open(f"distill-{DISTILLED}").path / FILE
    whole = path.read_bytes()
    save_tensors({**load_file(path), **tensors}, path)  # as it was written, and so of the size that it had
    try:
        yield
    finally:
        path.write_bytes(whole)


def test_another_model_is_not_published(store: Store) -> None:
    reference = Reference.read(store.open(f"distill-{DISTILLED}").path)
    wrong = next(iter(reference.logits.values())).clone()
    wrong[0, 5, 7] += 3e-4 * wrong.abs().max()
    named: dict[str, torch.Tensor] = {"logits.bfloat16": wrong}
    with changed_reference(store, **named), pytest.raises(UserError, match=r"the logits differ by .*please report"):
        run(store, "9" * 32)
    assert store.find("export-" + "9" * 32) is None


def test_a_type_that_is_too_narrow_is_refused(store: Store) -> None:
    reference = Reference.read(store.open(f"distill-{DISTILLED}").path)
    overflown = torch.full_like(next(iter(reference.logits.values())), float("nan"))
    named = {"logits.float16": overflown}
    with changed_reference(store, **named), pytest.raises(UserError, match=r"export.dtype: float16 can't hold"):
        run(store, "a" * 32, dtype="float16")


def test_a_file_that_transformers_reads_otherwise_is_caught(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    load = phase.load

    def other_epsilon(folder: Path) -> Any:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.3}))
        return load(folder)

    monkeypatch.setattr(phase, "load", other_epsilon)
    with pytest.raises(UserError, match="the logits differ by"):
        run(store, "b" * 32)


def test_documents_are_megatrons(store: Store, engine: Runtime) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    prefix = store.open(DATA).data / "validation"
    expected = IndexedDataset(str(prefix))
    found = list(documents(prefix))
    assert len(found) == len(expected) > 5
    assert all(numpy.array_equal(tokens, expected[index]) for index, tokens in enumerate(found))


class Words:
    """A tokenizer whose token n is the word wn; token 0 is special."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(f"w{token}" for token in tokens if token)


def test_the_default_prompt_is_the_start_of_a_long_enough_document(tmp_path: Path) -> None:
    from compression_pipeline.text.indexed import IndexedWriter

    writer = IndexedWriter(tmp_path / "validation", numpy.dtype(numpy.uint16))
    texts = [[1, 2, 0], [*range(3, 30), 0]]
    for tokens in texts:
        writer.add(numpy.array(tokens, numpy.uint16).tobytes(), [len(tokens)])
    writer.finish()
    assert default_prompt(tmp_path / "validation", Words()) == " ".join(f"w{n}" for n in range(3, 15))
    short = IndexedWriter(tmp_path / "short", numpy.dtype(numpy.int32))
    short.add(numpy.array(texts[0], numpy.int32).tobytes(), [3])
    short.finish()
    assert default_prompt(tmp_path / "short", Words()) == "w1 w2"


def test_clean() -> None:
    assert clean(" a\x00b\x1b[0m\nc\ufffd\ufffd") == "ab[0m\nc"
    assert len(clean("x" * 5000)) == 1000


@pytest.mark.parametrize(
    ("count", "said"), [(4_512_746_496, "4.51B"), (63_200_000, "63.2M"), (1_000, "1K"), (VOCABULARY, "320")]
)
def test_short_number(count: int, said: str) -> None:
    assert short_number(count) == said
