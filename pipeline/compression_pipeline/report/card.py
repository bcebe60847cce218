"""The model card: what was made from what, on which data, how, how good it is, and how to load it."""

import json
import math
from pathlib import Path
from typing import Any

from compression_pipeline.artifact import versions
from compression_pipeline.config import Architecture, ExportDtype, Precision, PrepareResult, ResolvedSource
from compression_pipeline.config.schemes import scheme_of
from compression_pipeline.huggingface.terms import Terms

from . import markdown
from .ancestry import Ancestry
from .data import Exported
from .phases import all_phases

SIZES = (
    ("Parameters", "parameters"),
    ("Layers", "layers"),
    ("Hidden size", "hidden_size"),
    ("Feed-forward size", "ffn_hidden_size"),
    ("Attention heads", "attention_heads"),
    ("Key/value heads", "query_groups"),
    ("Head dimension", "head_dim"),
    ("Vocabulary", "vocabulary_size"),
)


def model_card(ancestry: Ancestry, exported: Exported, *, report: str | None = None) -> str:
    """README.md: Hugging Face's metadata header and a page. It names no run: two runs may share one export.

    `report`: where the report lies, relative to the card.
    """
    pruned, terms = ancestry.prune[1], ancestry.terms
    student, teacher = pruned.student, ancestry.prepare.teacher
    parts = [
        _header(ancestry),
        f"# {terms.title(ancestry.title)}",
        f"**{terms.asked.line}.**" if terms.asked and terms.asked.line else "",
        f"A {student.family} model of {student.parameters:,} parameters, "
        f"{100 * pruned.compression_ratio:.1f} % of its teacher's {teacher.parameters:,}: pruned by the importance of "
        "its parts, then distilled from the teacher (Minitron, [2407.14679](https://arxiv.org/abs/2407.14679) and "
        "[2408.11796](https://arxiv.org/abs/2408.11796)), by compression-operator.",
        "## Load it",
        markdown.code(
            "python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'folder = "."  # where this file lies, or the name of its repository\n'
            f'model = AutoModelForCausalLM.from_pretrained(folder, dtype="{exported.dtype}")\n'
            "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
            'inputs = tokenizer("Once", return_tensors="pt", return_token_type_ids=False)\n'
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))",
        ),
        "A prompt and its greedy continuation:" if exported.sample else "",
        markdown.code("text", exported.sample) if exported.sample else "",
        "## Sizes",
        markdown.table(("", "Teacher", "This model"), _sizes(teacher, student)),
        "## Validation loss",
        "Mean negative log-likelihood per token (nats), and its exponential, over the same "
        f"{ancestry.validation_sequences:,} sequences of {ancestry.distill[0].sequence_length:,} tokens of the "
        f"validation split{_arithmetic(ancestry)}.",
        markdown.table(("Model", "Loss", "Perplexity"), _losses(ancestry, exported)),
        "The loss of the teacher as it came is not among them: it was measured over another number of sequences."
        if ancestry.teacher_loss is None
        else "",
        f"Its [report]({report}), beside this folder in the store, shows the losses over the steps, what "
        "was pruned by which importance, and how to make it again."
        if report
        else "",
        "## How it was made",
        *(said for phase in all_phases() for said in phase.card(ancestry)),
        "## From what",
        markdown.table(("", "Source", "Revision", "Digest of the content"), source_rows(ancestry.prepare)),
        "The logits of these files in plain transformers were compared with those of the model that was trained "
        f"(float32 arithmetic, weights in {exported.dtype}): relative error {exported.relative_error:.1g}.",
        "Made with " + ", ".join(f"{package} {version}" for package, version in versions().items()) + ".",
        "The terms of the teacher and of the data hold for this model too"
        + (f"; the teacher's license is {said}." if (said := _license(ancestry)) else "."),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def intermediate_card(student: Architecture, step: int, steps: int, dtype: ExportDtype, template: Path) -> str:
    """README.md of weights that were exported in the middle of a distillation. `template`: what they descend from."""
    terms = Terms.of(template)
    header = {"library_name": "transformers", "pipeline_tag": "text-generation", **terms.fields}
    parts = [
        "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---"]),
        f"# {terms.title('Intermediate checkpoint')}",
        f"**{terms.asked.line}.**" if terms.asked and terms.asked.line else "",
        f"A {student.family} model of {student.parameters:,} parameters after step {step:,} of {steps:,} of its "
        f"distillation, by compression-operator. Its weights are {dtype.value}. It was not compared with the model "
        "that is trained, as the student is at the end. The terms of the teacher and of the data hold for it too.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(ancestry: Ancestry) -> str:
    teacher, texts = ancestry.prepare.resolved_teacher.source, ancestry.prepare.resolved_texts
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    fields |= ancestry.terms.fields
    if repository := scheme_of(teacher).repository(teacher):
        fields["base_model"] = repository
    repositories = [name for text in texts if (name := scheme_of(text.source).repository(text.source))]
    if repositories:
        fields["datasets"] = [*dict.fromkeys(repositories)]
    fields["tags"] = ["compression-operator", "minitron", "pruned", "distilled"]
    # JSON scalars and lists are YAML.
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())
    return "\n".join(["---", *lines, "---"])


def _license(ancestry: Ancestry) -> str | None:
    told = ancestry.terms.fields
    return told.get("license_name") or told.get("license")


def _sizes(teacher: Architecture, student: Architecture) -> list[tuple[str, ...]]:
    rows = [(label, f"{getattr(teacher, field):,}", f"{getattr(student, field):,}") for label, field in SIZES]
    return [*rows, ("Tied embeddings", *("yes" if each.tied_embeddings else "no" for each in (teacher, student)))]


def _losses(ancestry: Ancestry, exported: Exported) -> list[tuple[str, ...]]:
    result = ancestry.distill[1]
    rows: list[tuple[str, float]] = []
    if ancestry.finetuned is not None:
        if ancestry.teacher_loss is not None:
            rows.append(("Teacher as it came", ancestry.teacher_loss))
        rows.append(("Teacher, corrected on this data", result.teacher_loss))
    else:
        rows.append(("Teacher", result.teacher_loss))
    rows += [
        ("Student, pruned", result.pruned_loss),
        (f"**Student, distilled (this model, {exported.dtype})**", ancestry.loss_of(ExportDtype(exported.dtype))),
    ]
    return [(label, f"{loss:.4f}", f"{math.exp(min(loss, 700)):.2f}") for label, loss in rows]


def _arithmetic(ancestry: Ancestry) -> str:
    used = ancestry.arithmetic
    return f", computed in {Precision(used).words}" if used else ""


def source_rows(prepare: PrepareResult) -> list[tuple[str, ...]]:
    """The teacher and each source of text, which may be the same place several times."""

    def row(label: str, source: ResolvedSource) -> tuple[str, ...]:
        return label, f"`{source.source}`", f"`{source.revision}`" if source.revision else "", f"`{source.digest}`"

    several = [row(f"Data ({one.weight:.3g})", one) for one in prepare.resolved_sources]
    texts = several or [row("Data", text) for text in prepare.resolved_texts]
    return [row("Teacher", prepare.resolved_teacher), *texts]
