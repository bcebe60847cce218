"""What a teacher's license asks is kept: its name in the card, the line and the name of Llama's, the notice."""

from pathlib import Path

import pytest

from compression_pipeline.huggingface.terms import Terms


def terms(folder: Path, head: str) -> Terms:
    (folder / "README.md").write_text(f"---\n{head}\n---\n# Teacher\n")
    return Terms.of(folder)


@pytest.mark.parametrize(
    ("head", "line", "title"),
    [
        ("license: llama3.1", "Built with Llama", "Llama tiny compressed"),
        ("license: other\nlicense_name: llama3\nlicense_link: LICENSE", "Built with Meta Llama 3", "Llama 3 tiny comp"),
        ("license: llama2", None, "tiny compressed"),
        ("license: apache-2.0", None, "tiny compressed"),
        ("license: [a", None, "tiny compressed"),
        ("", None, "tiny compressed"),
    ],
)
def test_what_a_license_asks(tmp_path: Path, head: str, line: str | None, title: str) -> None:
    found = terms(tmp_path, head)
    assert (found.asked.line if found.asked else None) == line
    assert found.title("tiny compressed").startswith(title)
    assert found.title("Llama-3-8B compressed") == "Llama-3-8B compressed"
    made = tmp_path / "made"
    made.mkdir()
    found.write_notice(made)
    assert (made / "NOTICE").exists() == ("llama" in head)


def test_a_notice_that_came_along_is_kept(tmp_path: Path) -> None:
    found = terms(tmp_path, "license: llama3.2")
    (tmp_path / "Notice.txt").write_text("theirs")
    found.write_notice(tmp_path)
    assert not (tmp_path / "NOTICE").exists()


def test_the_fields_of_the_card_are_taken_as_they_are(tmp_path: Path) -> None:
    head = "license: other\nlicense_name: mine\nlicense_link: https://example.com\ntags: [a]\nbase_model: x/y"
    told = {"license": "other", "license_name": "mine", "license_link": "https://example.com"}
    assert terms(tmp_path, head).fields == told
    assert Terms.of(tmp_path / "nowhere").fields == {}
