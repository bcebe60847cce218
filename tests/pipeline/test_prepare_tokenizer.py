"""What a teacher's tokenizer is in the artifact of prepare, and so in every student."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preparing import Preparation, rows
from tiny import texts, write_checkpoint
from tokenizers_of import made_by_transformers_5, tell, with_a_gap, with_code_beside_a_known_class

from compression_pipeline.huggingface.writer import copy_companions

CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


def plain(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture
def teacher(preparation: Preparation, tiny_teacher: Path) -> Path:
    """A copy of the teacher, below the folder that file: paths are relative to; it may be changed."""
    preparation.write("corpus.jsonl", *rows(*texts()[:9]))
    return Path(shutil.copytree(tiny_teacher, preparation.folder / "teacher"))


def student(preparation: Preparation, into: Path, model: str = "file:teacher") -> Path:
    """The folder of a student, without weights: what each phase after prepare keeps of the teacher."""
    artifact = preparation.artifact(preparation.run("file:corpus.jsonl", teacher={"model": model}))
    into.mkdir()
    shutil.copyfile(artifact.model / "config.json", into / "config.json")
    copy_companions(artifact.model, into)
    return into


def test_every_document_ends_with_a_token_beyond_a_gap(preparation: Preparation) -> None:
    preparation.write("corpus.jsonl", *rows(*texts()[:9]))
    write_checkpoint(preparation.folder / "teacher", vocabulary=66_048)
    with_a_gap(preparation.folder / "teacher", 66_000)
    result = preparation.run("file:corpus.jsonl", teacher={"model": "file:teacher"})
    data = preparation.artifact(result).data
    tokens = np.fromfile(data / "train.bin", np.int32)
    assert len(tokens) == result.train_tokens
    assert tokens[-1] == tokens.max() == 66_000
    assert (tokens == 66_000).sum() + (np.fromfile(data / "validation.bin", np.int32) == 66_000).sum() == 9


@pytest.mark.parametrize("change", [made_by_transformers_5, with_code_beside_a_known_class])
def test_students_get_a_tokenizer_that_loads(
    preparation: Preparation, teacher: Path, tmp_path: Path, change: Any
) -> None:
    change(teacher)
    found = student(preparation, tmp_path / "student")
    (warning,) = preparation.events("warning")
    assert warning["message"].startswith(f"spec.teacher.model: {teacher / 'tokenizer_config.json'}: ")
    assert "the same ids" in warning["message"]
    before = plain(Path(preparation.teacher.removeprefix("file:")))
    assert plain(found)("def save")["input_ids"] == before("def save")["input_ids"]


def test_a_tokenizer_that_loads_is_left_as_it_is(preparation: Preparation, teacher: Path, tmp_path: Path) -> None:
    found = student(preparation, tmp_path / "student")
    assert preparation.events("warning") == []
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (found / name).read_bytes() == (teacher / name).read_bytes()


@pytest.mark.parametrize("where", ["config", "list in config", "file", "files"])
@pytest.mark.parametrize("source", ["file:teacher", "pvc://claim/teacher"])
def test_chat_templates_come_along(
    preparation: Preparation, teacher: Path, tmp_path: Path, where: str, source: str
) -> None:
    named = None
    match where:
        case "config":
            tell(teacher, chat_template=TEMPLATE)
        case "list in config":
            named = "tool_use"
            both = {"default": TEMPLATE, named: f"tools: {TEMPLATE}"}
            tell(teacher, chat_template=[{"name": name, "template": text} for name, text in both.items()])
        case "file":
            (teacher / "chat_template.jinja").write_text(TEMPLATE)
            (teacher / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
        case "files":
            named = "rag"
            (teacher / "chat_template.jinja").write_text(TEMPLATE)
            (teacher / "additional_chat_templates").mkdir()
            (teacher / "additional_chat_templates/rag.jinja").write_text(f"rag: {TEMPLATE}")
    if source.startswith("pvc:"):
        shutil.copytree(teacher, preparation.folder / "volume/teacher")
    found = student(preparation, tmp_path / "student", source)
    for template in (None, named):
        told = plain(found).apply_chat_template(CHAT, tokenize=False, chat_template=template)
        assert told == plain(teacher).apply_chat_template(CHAT, tokenize=False, chat_template=template)
        assert told.endswith("<user>Why?<assistant>Because.")
    assert (found / "chat_template.json").exists() is (where == "file")
