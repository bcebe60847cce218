"""prepare: the teacher as it came, and the text."""

from collections.abc import Iterator
from typing import Any

from compression_pipeline.config import DatasetConfig, DocumentAttention, learned_share, packing
from compression_pipeline.report import words
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.data import RunData

from .base import Fact, PhaseReport, Row, Spec
from .training import length_of


def _rows(run: RunData) -> Iterator[Row]:
    teacher = run.teacher
    yield Row(
        "Teacher",
        {
            "Parameters": words.count(teacher.parameters),
            "Of teacher": "100 %",
            "Loss": words.loss(teacher.loss),
            "Perplexity": words.perplexity(teacher.loss),
            "Weights": words.size(teacher.checkpoint_bytes),
        },
    )


def _facts(run: RunData) -> Iterator[Fact]:
    prepared = run.teacher.prepared
    if prepared is None:
        return
    shape = prepared.teacher
    yield (
        "Teacher",
        f"{shape.family.value}, {words.count(prepared.teacher_parameters)} parameters: {shape.layers} layers, "
        f"hidden {shape.hidden_size:,}, feed-forward {shape.ffn_hidden_size:,}, "
        f"{shape.attention_heads} heads in {shape.query_groups} groups, vocabulary {shape.vocabulary_size:,}",
    )
    yield (
        "Text",
        f"{prepared.documents:,} documents: {prepared.train_tokens:,} tokens to train on"
        f"{learned_share(prepared.train_tokens, prepared.learned_tokens)}, "
        f"{prepared.validation_tokens:,} held out; sequences of {length_of(run.spec):,} tokens. "
        f"{packing(_attention_of(run.spec), prompts=prepared.learned_tokens is not None)}",
    )

    if prepared.resolved_sources:
        told = (
            f"{one.source} with weight {one.weight:.3g}: {one.train_tokens:,} tokens to train on"
            f"{learned_share(one.train_tokens, one.learned_tokens)}"
            for one in prepared.resolved_sources
        )
        yield "Sources", "; ".join(told)


def _attention_of(spec: Spec) -> DocumentAttention:
    default = DatasetConfig.model_fields["document_attention"].default
    return DocumentAttention((spec.get("dataset") or {}).get("documentAttention", default))


def _seeds(spec: Spec) -> Iterator[tuple[str, Any]]:
    if spec.get("dataset"):
        yield "dataset", spec["dataset"].get("seed", DatasetConfig.model_fields["seed"].default)


def _card(ancestry: Ancestry) -> Iterator[str]:
    prepare = ancestry.prepare
    yield (
        f"**Data.** {prepare.documents:,} documents, {prepare.train_tokens:,} tokens to train on"
        f"{learned_share(prepare.train_tokens, prepare.learned_tokens)} and "
        f"{prepare.validation_tokens:,} to validate on. "
        f"{packing(ancestry.distill[0].document_attention, prompts=prepare.learned_tokens is not None)}."
    )


REPORT = PhaseReport(rows=_rows, facts=_facts, seeds=_seeds, card=_card)
