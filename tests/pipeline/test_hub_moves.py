"""What the Hub told once is no proof of what it tells now; where it doesn't answer, what is known goes on."""

import operator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import Hub, Repository, commit, serving
from preparing import FINGERPRINT, Preparation, rows
from tiny import texts

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import PrepareResult
from compression_pipeline.errors import UserError
from compression_pipeline.sources.base import Offline, Unreachable

DATA = "hf://owner/data"


@pytest.fixture
def preparation(tmp_path: Path, hub: Hub) -> Preparation:
    hub.repositories["datasets/owner/data"] = Repository({"train.jsonl": content(12)})
    return Preparation(tmp_path, "hf://owner/model")


def content(count: int) -> bytes:
    return "".join(f"{row}\n" for row in rows(*texts()[:count])).encode()


def launched(preparation: Preparation) -> Artifact | None:
    """What a later job of the same fingerprint takes without asking anybody."""
    return Store(preparation.store).find_published("prepare", FINGERPRINT)


def test_a_branch_that_has_moved_is_seen(preparation: Preparation, hub: Hub) -> None:
    first = preparation.run(DATA)
    assert launched(preparation) is None, "main may have moved, so the Hub is asked"
    again = preparation.run(DATA)
    assert (again.key, again.cached) == (first.key, True)
    hub.repositories["datasets/owner/data"].files["train.jsonl"] = content(20)
    moved = preparation.run(DATA)
    assert (moved.documents, moved.cached) == (20, False)
    model = hub.repositories["models/owner/model"].files
    model["generation_config.json"] = b"{}"
    other = preparation.run(DATA)
    assert not other.cached
    assert other.resolved_teacher.revision == commit(model)
    model["README.md"] = b"# A commit that changes no file of the checkpoint"
    same = preparation.run(DATA)
    assert (same.key, same.cached) == (other.key, True)
    assert same.resolved_teacher.revision == commit(model) != other.resolved_teacher.revision


def pinned(preparation: Preparation, hub: Hub) -> PrepareResult:
    teacher, data = (commit(hub.repositories[name].files) for name in ("models/owner/model", "datasets/owner/data"))
    return preparation.run(DATA, teacher={"model": "hf://owner/model", "revision": teacher}, revision=data)


def test_a_commit_never_moves_and_is_not_asked_again(preparation: Preparation, hub: Hub) -> None:
    result = pinned(preparation, hub)
    found = launched(preparation)
    assert found is not None and found.name == f"prepare-{result.key}"


def test_another_endpoint_is_another_source(
    preparation: Preparation, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pinned(preparation, hub)
    mirror = Hub({name: Repository(dict(one.files)) for name, one in hub.repositories.items()})
    mirror.repositories["datasets/owner/data"].files["train.jsonl"] = content(20)
    with serving(mirror):
        monkeypatch.setenv("HF_ENDPOINT", mirror.url)
        assert launched(preparation) is None
        assert preparation.run(DATA).key != first.key
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert preparation.run(DATA).key == first.key


@pytest.mark.parametrize("how", ["down", "offline", "answers 503"])
def test_where_the_hub_does_not_answer_what_is_known_goes_on_and_says_so(
    preparation: Preparation, hub: Hub, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    first = preparation.run(DATA)
    match how:
        case "down":
            # Nobody listens there, and yet it is the same place.
            monkeypatch.setattr("huggingface_hub.HfApi.repo_info", _refused)
        case "offline":
            monkeypatch.setattr("huggingface_hub.HfApi.repo_info", _offline)
        case _:
            hub.failures += [503] * 20
    again = preparation.run(DATA)
    assert again == first.model_copy(update={"cached": True})
    [warning] = preparation.events("warning")
    assert warning["message"].startswith("spec.teacher.model: hf://owner/model")
    assert f"goes on with what it was when last asked (commit {first.resolved_teacher.revision}" in warning["message"]


@pytest.mark.parametrize(("how", "kind"), [("_refused", Unreachable), ("_offline", Offline)])
def test_where_nothing_is_known_it_fails_as_it_did(
    preparation: Preparation, monkeypatch: pytest.MonkeyPatch, how: str, kind: type[Exception]
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", globals()[how])
    with pytest.raises(kind):
        preparation.run(DATA)


def test_what_was_known_of_another_place_or_of_other_files_is_not_known(
    preparation: Preparation, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparation.write("corpus/a.jsonl", *rows(*texts()[:12]))
    preparation.run("file:corpus")
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", _refused)
    assert preparation.run("file:corpus").cached
    preparation.write("corpus/a.jsonl", *rows(*texts()[:13]))
    with pytest.raises(Unreachable):
        preparation.run("file:corpus")
    preparation.write("corpus/a.jsonl", *rows(*texts()[:12]))
    assert preparation.run("file:corpus").cached
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unreachable):
        preparation.run("file:corpus")


@pytest.mark.parametrize("call", ["hf_hub_download", "HfApi.repo_info", "HfApi.list_repo_tree"])
def test_a_commit_that_was_told_is_not_passed_over_for_an_older_one(
    preparation: Preparation, hub: Hub, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    preparation.run(DATA)
    if call == "HfApi.repo_info":
        hub.repositories["models/owner/model"].files["generation_config.json"] = b"{}"
    else:
        hub.repositories["datasets/owner/data"].files["train.jsonl"] = content(20)
    answer = operator.attrgetter(call)(huggingface_hub)

    def of_datasets(*place: object, **told: object) -> object:
        return (_refused if told["repo_type"] == "dataset" else answer)(*place, **told)

    monkeypatch.setattr(f"huggingface_hub.{call}", of_datasets)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(Unreachable):
        preparation.run(DATA)
    assert preparation.events("warning") == []


def test_an_answer_is_no_silence(preparation: Preparation, hub: Hub) -> None:
    preparation.run(DATA)
    del hub.repositories["models/owner/model"]
    with pytest.raises(UserError, match="was refused"):
        preparation.run(DATA)


def _refused(*_: object, **__: object) -> None:
    import requests

    raise requests.ConnectionError("refused")


def _offline(*_: object, **__: object) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    raise OfflineModeIsEnabled("offline")
