"""Whose artifacts a job takes: what it was told of, whatever stands on the volume."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from launching import FINGERPRINT, NAME, Launch
from preparing import Preparation, rows
from tiny import texts

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import Cache
from compression_pipeline.errors import MissingArtifact
from compression_pipeline.store.trust import Trust
from compression_pipeline.store.watched import mark

MAKE = """
def run(job, context):
    made = publish(job, context, {"parameters": 7})
    return Result(parameters=7, digest=made.digest)
"""
READ = """
def run(job, context):
    context.store.open(job.data)
    return Result(parameters=7)
"""


def published(root: Path, name: str, text: str = "planted") -> Artifact:
    phase, _, key = name.partition("-")
    with Store(root).draft(phase, key) as draft:
        (draft.path / "weights").write_text(text)
        return draft.publish(config={}, inputs={}, result={"parameters": 1})


def test_a_digest_is_that_of_the_manifest_as_it_stands(tmp_path: Path) -> None:
    made = published(tmp_path, NAME)
    assert made.digest == hashlib.sha256((made.path / "manifest.json").read_bytes()).hexdigest()
    assert Store(tmp_path).find(NAME) == made


def test_a_job_tells_the_digest_of_what_it_has_made_or_adopted(launch: Launch) -> None:
    made = launch(MAKE)
    assert made.wait() == 0, made.errors
    found = Store(launch.store).find(NAME)
    assert found is not None
    assert made.termination["result"] == {"parameters": 7, "digest": found.digest}
    adopted = launch("def run(job, context): raise AssertionError", attempt=2)
    assert adopted.wait() == 0, adopted.errors
    assert adopted.termination["result"] == {"parameters": 7, "cached": True, "digest": found.digest}


def test_a_planted_artifact_is_adopted_from_the_store(launch: Launch) -> None:
    planted = published(launch.store, NAME)
    launched = launch(MAKE, runUid="uid", expected={"prepare-x": "0" * 64})
    assert launched.wait() == 0, launched.errors
    assert launched.termination["result"] == {"parameters": 1, "cached": True, "digest": planted.digest}


def test_a_planted_artifact_is_made_anew_in_a_run_of_its_own(launch: Launch) -> None:
    planted = published(launch.store, NAME)
    data = published(launch.store, "prepare-x")
    told: dict[str, Any] = {"cache": "Run", "expected": {"prepare-x": data.digest}}
    launched = launch(MAKE, known=["0" * 64], **told)
    assert launched.wait() == 0, launched.errors
    assert f"{planted.path} was not made by this run, which takes only its own artifacts (cache: Run)" in {
        event["message"] for event in launched.events("warning")
    }
    found = Store(launch.store).find(NAME)
    assert found is not None
    assert launched.termination["result"] == {"parameters": 7, "digest": found.digest}
    assert found.digest != planted.digest
    assert len(list((launch.store / "artifacts").glob(f".damaged-{NAME}-*"))) == 1
    assert not (launch.store / "work" / FINGERPRINT).exists(), "what its attempts left is removed"
    again = launch("def run(job, context): raise AssertionError", attempt=2, known=[found.digest], **told)
    assert again.wait() == 0, again.errors
    assert again.termination["result"]["cached"]


def test_an_input_that_was_changed_meanwhile_is_missed(launch: Launch) -> None:
    published(launch.store, "prepare-x")
    launched = launch(READ, expected={"prepare-x": "0" * 64})
    assert launched.wait() == 75
    assert launched.termination["missing"] == ["prepare-x"]
    assert launched.termination["message"] == (
        f"{launch.store}/artifacts/prepare-x is not the one that this run has seen made: another has taken its place "
        "since; the step that makes prepare-x must run again"
    )


def test_all_of_an_input_is_read_where_the_cache_is_limited(launch: Launch) -> None:
    """Whatever a note on the volume says of an earlier look, which anybody may have written."""
    data = published(launch.store, "prepare-x")
    weights = data.path / "weights"
    weights.write_text("PLANTED")
    digests = {"weights": data.manifest.files["weights"].sha256}
    record = launch.store / "verified" / "prepare-x.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"digests": digests, "marks": {"weights": mark(weights)}}))
    told: dict[str, Any] = {"expected": {"prepare-x": data.digest}}
    assert launch(READ, **told).wait() == 0
    launched = launch(READ, attempt=2, cache="Run", **told)
    assert launched.wait() == 75
    assert launched.termination["missing"] == ["prepare-x"]
    assert f"{weights} is not what was published" in launched.termination["message"]


def test_an_input_that_nobody_told_of_is_said_in_the_store_and_missed_in_a_run_of_its_own(launch: Launch) -> None:
    published(launch.store, "prepare-x")
    launched = launch(READ, runUid="uid")
    assert launched.wait() == 0, launched.errors
    assert [event["message"] for event in launched.events("warning")] == [
        "an older version made prepare-x and told no digest of it: it is taken as it stands"
    ]
    own = launch(READ, attempt=2, runUid="uid", cache="Run")
    assert own.wait() == 75
    assert own.termination["missing"] == ["prepare-x"]


def test_no_note_on_the_volume_is_believed_where_the_cache_is_limited(tmp_path: Path) -> None:
    made = published(tmp_path, NAME)
    note = tmp_path / "work" / ("f" * 32)
    note.mkdir(parents=True)
    (note / "published.json").write_text(json.dumps({"artifact": NAME, "result": {"parameters": 2}}))
    limited = Store(tmp_path, trust=Trust(Cache.RUN, known=frozenset({made.digest})))
    assert Store(tmp_path).find_published("prune", "f" * 32) is not None
    assert limited.find_published("prune", "f" * 32) is None
    assert limited.find(NAME) == made


def test_what_is_passed_over_is_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    made = published(tmp_path, NAME)
    store = Store(tmp_path, trust=Trust(Cache.RUN), passed_over=told.append)
    assert store.find(NAME) is store.find(NAME) is None
    with pytest.raises(MissingArtifact):
        Store(tmp_path, trust=Trust(expected={NAME: "0"})).open(NAME)
    assert [sentence.partition(" was not made by this run")[0] for sentence in told] == [str(made.path)]


def test_what_is_prepared_has_a_name_of_its_own_where_the_cache_is_limited(preparation: Preparation) -> None:
    preparation.write("a.jsonl", *rows(*texts()[:20]))
    job = preparation.job("file:a.jsonl")
    own = job.model_copy(update={"cache": Cache.RUN})
    shared, first, unknown = map(preparation.take, (job, own, own))
    assert {shared.cached, first.cached, unknown.cached} == {False}
    assert shared.key != first.key == unknown.key
    known = preparation.take(own.model_copy(update={"known": [unknown.digest]}))
    assert known == unknown.model_copy(update={"cached": True})
