"""A store with what the phases before the tested one would have published."""

from pathlib import Path
from typing import Any

import numpy
from checkpoints import VOCABULARY, save_model, save_tokenizer

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import (
    DatasetConfig,
    FinetuneConfig,
    FinetuneJob,
    FinetuneResult,
    PrepareJob,
    PrepareResult,
    ResolvedSource,
    TeacherConfig,
    ValidationConfig,
)
from compression_pipeline.context import Context
from compression_pipeline.events import Events
from compression_pipeline.huggingface.files import read_architecture

DATA, TEACHER = "prepare-data", "finetune-teacher"


class Recorder(Events):
    """Events kept in a list instead of printed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def _write(self, event: str, **fields: Any) -> None:
        self.seen.append({"event": event, **fields})


def save_text(folder: Path, tokens: int, validation: int, *, seed: int = 0, document: int = 37) -> None:
    """Tokenized text that a model can learn: every token mostly decides the next. Token 0 ends documents."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    folder.mkdir(parents=True, exist_ok=True)
    generator = numpy.random.default_rng(seed)
    follows = numpy.random.default_rng(7).permutation(VOCABULARY)
    for name, count in (("train", tokens), ("validation", validation)):
        builder = IndexedDatasetBuilder(str(folder / f"{name}.bin"), dtype=numpy.uint16)
        for start in range(0, count, document):
            text = [int(generator.integers(1, VOCABULARY))]
            for _ in range(min(document, count - start) - 2):
                text.append(
                    int(follows[text[-1]]) if generator.random() < 0.9 else int(generator.integers(1, VOCABULARY))
                )
            builder.add_document(
                torch.tensor([*text, 0][-min(document, count - start) :]), [min(document, count - start)]
            )
        builder.finalize(str(folder / f"{name}.idx"))


def publish(store: Store, name: str, fill: Any, *, config: Any = None, result: Any = None) -> Artifact:
    """Publish an artifact whose folder `fill` fills."""
    phase, _, key = name.rpartition("-")
    with store.draft(phase, key) as draft:
        fill(draft.path)
        told = config.to_json() if config else {}
        return draft.publish(config=told, inputs={}, result=result.to_json() if result else {})


def make_store(root: Path, kind: str = "llama3", *, tokens: int = 4000, validation: int = 400, **fields: Any) -> Store:
    """A store with tokenized text and a random teacher of `checkpoints.MODELS[kind]`, each its own artifact."""
    store = Store(root)
    sources = {
        "teacher": TeacherConfig(model="hf://someone/Tiny-Llama", revision="main"),
        "dataset": DatasetConfig(source="file:texts", sequence_length=32),
    }

    def teacher(path: Path) -> None:
        save_model(path / "model", kind, **fields)
        save_tokenizer(path / "model")

    correction = FinetuneJob(
        **common(store, "finetune"),
        data=DATA,
        teacher=DATA,
        sequence_length=32,
        finetune=FinetuneConfig(steps=5),
        validation=ValidationConfig(),
    )
    corrected = FinetuneResult(teacher_loss=5.9, corrected_teacher_loss=5.8, validation_sequences=4)
    made = publish(store, TEACHER, teacher, config=correction, result=corrected)
    prepared = PrepareResult(
        key="data",
        teacher=read_architecture(made.model),
        teacher_parameters=read_architecture(made.model).parameters,
        resolved_teacher=ResolvedSource(source="hf://someone/Tiny-Llama", revision="abc123", digest="d1"),
        resolved_dataset=ResolvedSource(source="file:texts", digest="d2"),
        documents=9,
        train_tokens=tokens,
        validation_tokens=validation,
    )
    publish(
        store,
        DATA,
        lambda path: save_text(path / "data", tokens, validation),
        config=PrepareJob(**common(store, "prepare"), **sources),
        result=prepared,
    )
    return store


def context(store: Store, fingerprint: str = "0" * 32, attempt: int = 1) -> tuple[Context, Recorder]:
    """The context of a lone rank, and what it tells."""
    recorder = Recorder()
    folder = store.attempt_folder(fingerprint, attempt)
    return Context(store=Store(store.root, drafts=folder), events=recorder, folder=folder), recorder


def common(store: Store, step: str, fingerprint: str = "0" * 32, attempt: int = 1) -> dict[str, Any]:
    """The fields that every job has."""
    return {
        "run": "test",
        "step": step,
        "student": "width",
        "attempt": attempt,
        "fingerprint": fingerprint,
        "store": str(store.root),
        "threads": 1,
    }
