"""The demo's text: Python's own documentation, which every machine that can run the demo has.

Two bodies of text that share a vocabulary and differ in style, so that teacher correction has a shift to correct:

- `teacher-text/`: docstrings of the standard library. The demo's teacher was trained on it (teacher.py).
- `dataset/`: the language reference as `help()` shows it (`pydoc_data.topics`) and the standard library's comments. The
  demo runs on it.
- `tasks/`: a task of lm-eval, made of the dataset's held-out text: which of four sentences goes on where a text stops?

Only prose is kept (code, tables and grammar rules are dropped), hard-wrapped lines are joined, and no paragraph occurs
twice, so validation text was never trained on. Modules are read, never imported. The order is fixed: two runs with one
Python version write the same bytes.
"""

import argparse
import ast
import hashlib
import inspect
import json
import re
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_OUTPUT = ROOT / "out" / "demo-input"

# Left out: what some distributions ship apart or don't ship at all, and other people's packages.
NOT_EVERYWHERE = frozenset(
    [
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "lib2to3",
        "distutils",
        "ensurepip",
        "lib-dynload",
        "pydoc_data",
        "__pycache__",
    ]
)
SHORTEST_DOCUMENT = 120  # characters
TEACHER_VALIDATION_SHARE = 1 / 24
DATASET_VALIDATION_SHARE = 1 / 10  # some ten thousand tokens: enough for steady figures
MOST_QUESTIONS = 200
CHOICES = 4
CONTEXT, CONTINUATION = 30, 12  # words
TASK = """\
task: continuation
dataset_path: json
dataset_kwargs:
  data_files: {test: questions.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
- {metric: acc, aggregation: mean, higher_is_better: true}
- {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


@dataclass(frozen=True)
class Document:
    """One document: its text (paragraphs parted by a blank line) and where it came from."""

    text: str
    source: str


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph (one line, single spaces) reads like sentences, not like code, a table or a grammar rule."""
    words = paragraph.split()
    if len(words) < 6 or paragraph.startswith((">>>", "...", "$")) or "::=" in paragraph:
        return False
    letters = sum(character.isalpha() or character in " ,." for character in paragraph)
    capitals = sum(character.isupper() for character in paragraph)
    plain = sum(word.strip("\"'`*(),.;:").isalpha() for word in words)
    return letters / len(paragraph) > 0.85 and capitals / letters < 0.2 and plain / len(words) > 0.65


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of hard-wrapped text, each one line with single spaces; words split at a line's end are joined."""
    for block in re.split(r"\n\s*\n", text):
        joined = re.sub(r"(?<=[a-z])-\n\s*(?=[a-z])", "-", block.strip())
        yield " ".join(joined.split())


def standard_library() -> Iterator[tuple[Path, str]]:
    """Source files of the standard library as (file, name relative to the library), in order of their names."""
    library = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(library).as_posix() for path in library.rglob("*.py"))
    for name in names:
        parts = Path(name).parts
        if NOT_EVERYWHERE.isdisjoint(parts) and not parts[0].startswith("config-"):
            yield library / name, name


def source_text(path: Path) -> str:
    """A source file's text, decoded as Python would."""
    with tokenize.open(path) as file:
        return file.read()


def docstrings(source: str, name: str) -> Iterator[Document]:
    """Docstrings of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=True)
            if text:
                yield Document(text, f"{name}:{getattr(node, 'name', '')}".rstrip(":"))


def comments(source: str, name: str) -> Document:
    """The comments of a module, one paragraph for each block of lines that hold nothing else."""
    lines = (line.strip() for line in source.splitlines())
    return Document("\n".join(line.lstrip("#! ") if line.startswith("#") else "" for line in lines), f"{name}#comments")


def language_reference() -> Iterator[Document]:
    """The topics of `help()`, one document for each of their sections."""
    from pydoc_data.topics import topics

    # Some topics repeat parts of others: shorter topics come first, so each part stays in the topic that is about it.
    for topic in sorted(topics, key=lambda topic: (len(topics[topic]), topic)):
        text = topics[topic]
        # A section starts at a line that is underlined by *, =, - or ~.
        starts = sorted({0, *(match.start() for match in re.finditer(r"^\S.*\n([*=~-])\1{3,}$", text, re.MULTILINE))})
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(text)], strict=True)):
            yield Document(inspect.cleandoc(text[start:end]), f"topics:{topic}:{number}")


def teacher_text() -> Iterator[Document]:
    """Docstrings of the standard library, as they stand."""
    for path, name in standard_library():
        yield from docstrings(source_text(path), name)


def dataset() -> Iterator[Document]:
    """The language reference and the standard library's comments, as they stand."""
    yield from language_reference()
    for path, name in standard_library():
        yield comments(source_text(path), name)


def clean(documents: Iterable[Document]) -> Iterator[Document]:
    """Prose alone, each paragraph once, documents of a useful length."""
    seen: set[str] = set()
    for document in documents:
        kept: list[str] = []
        for paragraph in paragraphs(document.text):
            if is_prose(paragraph) and paragraph not in seen:
                seen.add(paragraph)
                kept.append(paragraph)
        text = "\n\n".join(kept)
        if len(text) >= SHORTEST_DOCUMENT:
            yield Document(text, document.source)


def held_out(document: Document, share: float) -> bool:
    """Whether a document is for validation: by a hash of its text, so that other documents don't matter."""
    return int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:8]) < share * 2**64


def replace(file: Path, content: bytes) -> None:
    """Write `content` unless the file has it already: an untouched file tells prepare that nothing changed."""
    if not file.exists() or file.read_bytes() != content:
        draft = file.with_suffix(".draft")
        draft.write_bytes(content)
        draft.replace(file)


def write(documents: Iterable[Document], folder: Path, validation_share: float, *, prompts: bool = False) -> str:
    """Write `documents` as train.jsonl and validation.jsonl (text, source) into `folder`; returns a line about them.

    `prompts`: with a column that asks for the text, as instructions do (prompt).
    """
    splits: dict[str, list[Document]] = {"train": [], "validation": []}
    for document in clean(documents):
        splits["validation" if held_out(document, validation_share) else "train"].append(document)
    folder.mkdir(parents=True, exist_ok=True)
    for split, kept in splits.items():
        rows = ({"text": d.text, "source": d.source} | ({"prompt": asked(d)} if prompts else {}) for d in kept)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        replace(folder / f"{split}.jsonl", "".join(lines).encode())
    sizes = ", ".join(f"{split} {len(kept):,}" for split, kept in splits.items())
    characters = sum(len(d.text) for kept in splits.values() for d in kept)
    return f"{folder.name}: {sizes} documents, {characters / 1e6:.2f} M characters"


def asked(document: Document) -> str:
    """What a docstring is the answer to."""
    file, _, name = document.source.partition(":")
    return f"What does {name or 'the module'} of {file} do?\n\n"


def questions(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """How each paragraph goes on, among ways in which others do. The place of the right one follows from the text."""
    end = CONTEXT + CONTINUATION
    parts = [words for text in texts for paragraph in text.split("\n\n") if len(words := paragraph.split()) >= end]
    found = [(" ".join(words[:CONTEXT]), " ".join(words[CONTEXT:end])) for words in parts[:MOST_QUESTIONS]]
    for number, (text, right) in enumerate(found):
        others = [found[(number + step) % len(found)][1] for step in range(1, CHOICES)]
        answer = hashlib.sha256(text.encode()).digest()[0] % CHOICES
        yield {"text": text, "choices": [*others[:answer], right, *others[answer:]], "answer": answer}


def write_task(held_out: Path, folder: Path) -> str:
    """Write the task, made of the JSON lines `held_out`, into `folder`; returns a line about it."""
    texts = [json.loads(line)["text"] for line in held_out.read_text(encoding="utf-8").splitlines()]
    asked = [json.dumps(question, ensure_ascii=False) + "\n" for question in questions(texts)]
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "continuation.yaml", TASK.encode())
    replace(folder / "questions.jsonl", "".join(asked).encode())
    return f"{folder.name}: {len(asked):,} questions"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's text as JSON lines.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder to write to (%(default)s)")
    output: Path = parser.parse_args().output
    print(write(teacher_text(), output / "teacher-text", TEACHER_VALIDATION_SHARE, prompts=True))
    print(write(dataset(), output / "dataset", DATASET_VALIDATION_SHARE))
    print(write_task(output / "dataset" / "validation.jsonl", output / "tasks"))


if __name__ == "__main__":
    main()
