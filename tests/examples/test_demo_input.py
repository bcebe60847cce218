"""The demo's input: its text, its teacher, its manifest."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from compression_operator.api.manifest import World, load
from compression_pipeline.config import student_architecture, student_faults
from compression_pipeline.huggingface.files import inspect

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TEACHER = EXAMPLES / "demo" / "teacher"
BODIES = ("teacher-text", "dataset")
SPLITS = ("train", "validation")
MOST_TEACHER_BYTES = 8_000_000


def build_text(output: Path) -> str:
    """Run corpus.py; returns what it says."""
    command = [sys.executable, str(EXAMPLES / "demo" / "corpus.py"), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def documents(text: Path, body: str, split: str) -> list[dict[str, str]]:
    """The rows of one split of one body of text."""
    lines = (text / body / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's text, as `make demo` writes it."""
    folder = tmp_path_factory.mktemp("demo-input")
    build_text(folder)
    return folder


def test_there_is_enough_text_of_both_kinds(text: Path) -> None:
    for body in BODIES:
        characters = {split: sum(len(row["text"]) for row in documents(text, body, split)) for split in SPLITS}
        assert characters["train"] > 600_000
        assert 0.01 < characters["validation"] / characters["train"] < 0.35
        assert all(row["source"] for split in SPLITS for row in documents(text, body, split))


def test_no_paragraph_is_in_two_places(text: Path) -> None:
    for body in BODIES:
        everything = [p for split in SPLITS for row in documents(text, body, split) for p in row["text"].split("\n\n")]
        assert len(set(everything)) == len(everything)


def test_text_reads_like_sentences(text: Path) -> None:
    for body in BODIES:
        whole = " ".join(row["text"] for row in documents(text, body, "train"))
        letters = sum(character.isalpha() or character == " " for character in whole) / len(whole)
        assert letters > 0.9
        assert whole.count(">>>") < 100  # a few doctests hide within paragraphs
        assert not re.search(r"[^\S\n]{2}|\t", whole)


def test_the_bodies_differ_in_style(text: Path) -> None:
    def share(body: str, word: str) -> float:
        words = " ".join(row["text"] for row in documents(text, body, "train")).split()
        return words.count(word) / len(words)

    assert share("teacher-text", "Return") > 3 * share("dataset", "Return")


def test_building_again_changes_nothing(text: Path) -> None:
    files = [text / body / f"{split}.jsonl" for body in BODIES for split in SPLITS]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    build_text(text)
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before
    files[0].write_text("torn")
    build_text(text)
    assert files[0].read_bytes() == before[0][0]


def test_the_manifest_is_valid_and_fits_the_teacher() -> None:
    run = load(EXAMPLES / "demo.yaml", World.LOCAL)
    assert run.spec.teacher.model == "file:demo/teacher"
    [text] = run.spec.dataset.texts
    assert (EXAMPLES / text.source.removeprefix("file:")).resolve() == ROOT / "out" / "demo-input" / "dataset"
    teacher = inspect(TEACHER).architecture
    assert 1_000_000 <= teacher.parameters <= 3_000_000
    for student in run.spec.students:
        assert list(student_faults(teacher, student.prune)) == []
        small = student_architecture(teacher, student.prune)
        assert 0.4 <= small.parameters / teacher.parameters <= 0.7
        assert small.hidden_size % student.prune.divisor == 0
        assert small.ffn_hidden_size % student.prune.divisor == 0
    assert {student.name for student in run.spec.students} == {"width", "depth"}


def test_the_teacher_is_an_ordinary_checkpoint_that_has_learnt(text: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert sum(path.stat().st_size for path in TEACHER.iterdir()) <= MOST_TEACHER_BYTES
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32)
    said = re.search(r"\*\*(\d\.\d+)\*\* nats", (TEACHER / "README.md").read_text(encoding="utf-8"))
    assert said
    rows = documents(text, "teacher-text", "validation")
    tokens = [token for row in rows for token in [*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id]]
    sequences = torch.tensor([tokens[i : i + 129] for i in range(0, len(tokens) - 129, 128)])
    with torch.no_grad():
        logits = model(sequences[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten()).item()
    assert loss == pytest.approx(float(said[1]), abs=0.15)  # another Python has another text
    assert loss < 4.5


def test_the_teacher_can_be_trained_anew(text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    small = tmp_path / "text"
    for body in BODIES:
        (small / body).mkdir(parents=True)
        for split, count in (("train", 300), ("validation", 60)):
            lines = (text / body / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:count]
            (small / body / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    output = tmp_path / "teacher"
    command = [sys.executable, str(EXAMPLES / "demo" / "teacher.py"), "--steps", "4"]
    command += ["--text", str(small), "--work", str(tmp_path / "work"), "--output", str(output)]
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    losses = re.search(r"validation loss (\d+\.\d+) -> (\d+\.\d+)", first)
    assert losses
    assert float(losses[2]) < float(losses[1]) - 0.1
    names = {path.name for path in output.iterdir()}
    assert names == {path.name for path in TEACHER.iterdir()}
    assert sum(path.stat().st_size for path in output.iterdir()) <= MOST_TEACHER_BYTES
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(output).parameters())
    assert parameters == inspect(TEACHER).architecture.parameters
    again = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    results = [json.loads(line)["result"] for line in again.splitlines() if '"event": "result"' in line]
    assert [result["cached"] for result in results] == [True, True]
