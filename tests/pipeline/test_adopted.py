"""What is adopted is what was published: a file overwritten at equal size is noticed, and the artifact made anew."""

import io
import os
from contextlib import closing
from pathlib import Path

import pytest
from launching import FINGERPRINT, NAME, PUBLISH, Launch
from meeting import Meeting
from preparing import Preparation, rows
from tests.support.waiting import until
from tiny import texts

from compression_pipeline.adoption import Adoption
from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.events import Events
from compression_pipeline.store import verified


def test_a_damaged_artifact_is_set_aside_and_made_anew(launch: Launch) -> None:
    assert launch(PUBLISH).wait() == 0
    weights = launch.store / "artifacts" / NAME / "weights"
    again = launch(PUBLISH, attempt=2)
    assert again.wait() == 0
    assert again.termination["result"]["cached"]
    times = weights.stat()
    weights.write_text("y")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    anew = launch(PUBLISH, attempt=3)
    assert anew.wait() == 0
    assert not anew.termination["result"].get("cached")
    assert f"{weights} is not what was published" in anew.events("warning")[0]["message"]
    assert weights.read_text() == "x"
    assert len(list(weights.parent.parent.glob(f".damaged-{NAME}-*"))) == 1


def test_what_a_step_made_under_another_key_is_adopted_without_its_note_which_is_written_again(launch: Launch) -> None:
    key = "f" * 32
    with Store(launch.store).draft("prune", key) as draft:
        draft.publish(config={"fingerprint": FINGERPRINT}, inputs={}, result={"parameters": 7})
    launched = launch("def run(job, context): raise AssertionError", key=key)
    assert launched.wait() == 0, launched.errors
    assert launched.termination["result"]["parameters"] == 7
    note = Store(launch.store).published(FINGERPRINT)
    assert note is not None and (note.artifact, note.result) == (f"prune-{key}", {"parameters": 7})


def test_what_was_verified_is_read_again_only_where_it_looks_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compression_pipeline.store.watched.SMALL", 0)
    store, read = Store(tmp_path), list[int]()
    with store.draft("prune", "0" * 32) as draft:
        (draft.path / "weights").write_text("weights")
        made = draft.publish(config={}, inputs={}, result={})
    digests = {name: record.sha256 for name, record in made.manifest.files.items()}

    def fault() -> str | None:
        return verified.fault(tmp_path, made.name, digests, lambda done, total: read.append(done))

    assert (fault(), fault(), read) == (None, None, [7])
    os.utime(made.path / "weights", (1, 1))
    assert (fault(), read) == (None, [7, 7])
    (made.path / "weights").write_text("WEIGHTS")
    assert fault() == fault() == "weights"


DAMAGED = """
def publish_damaged(job, context):
    with context.store.draft("prune", job.fingerprint) as draft:
        (draft.path / "weights").write_text("y")
        draft.hashed(draft.path / "weights", "0" * 64)
        draft.publish(config={}, inputs={}, result={})
"""


def publish_damaged(store: Store) -> Artifact:
    with store.draft("prune", FINGERPRINT) as draft:
        (draft.path / "weights").write_text("y")
        draft.hashed(draft.path / "weights", "0" * 64)
        return draft.publish(config={}, inputs={}, result={})


def test_a_damaged_artifact_is_not_adopted_after_a_wait(launch: Launch) -> None:
    first = launch(f"""{DAMAGED}
def run(job, context):
    (here / "started").touch()
    while not (here / "go").exists():
        time.sleep(0.01)
    publish_damaged(job, context)
    return Result()
""")
    until((launch.folder / "started").exists, "the first job works")
    second = launch(PUBLISH, run="other")
    assert second.process.stdout is not None
    assert "waits for" in second.process.stdout.readline()
    (launch.folder / "go").touch()
    assert first.wait() == second.wait() == 0, second.errors
    assert second.termination["result"] == {"parameters": 7}
    assert (launch.store / "artifacts" / NAME / "weights").read_text() == "x"


def test_a_damaged_artifact_is_not_adopted_where_the_ranks_were_interrupted(launch: Launch) -> None:
    interrupted = launch(f"""{DAMAGED}
def run(job, context):
    publish_damaged(job, context)
    raise __import__('compression_pipeline').errors.Interrupted('stopped')
""")
    assert interrupted.wait() == 143, interrupted.errors


def test_the_nodes_without_rank_0_leave_a_damaged_artifact_to_the_one_with_it(launch: Launch) -> None:
    publish_damaged(Store(launch.store))
    with closing(Meeting(2)) as meeting:
        nodes = [
            launch(PUBLISH, environment=meeting.of_pods | {"PET_NODE_RANK": rank}, rendezvousTimeoutSeconds=120)
            for rank in ("1", "0")
        ]
        assert [node.wait() for node in nodes] == [0, 0], [node.errors for node in nodes]
    assert nodes[1].termination["result"] == {"parameters": 7}
    assert not any("cached" in (node.termination.get("result") or {}) for node in nodes)
    assert (launch.store / "artifacts" / NAME / "weights").read_text() == "x"


def test_what_was_made_anew_meanwhile_is_not_set_aside(tmp_path: Path) -> None:
    store, log = Store(tmp_path), io.StringIO()
    events = Events(log)
    damaged = publish_damaged(store)

    def made_anew() -> bool:
        store.set_aside(damaged)
        with store.draft("prune", FINGERPRINT) as draft:
            (draft.path / "weights").write_text("x")
            draft.publish(config={}, inputs={}, result={})
        return True

    assert Adoption(store, events, owns=lambda: False).sound(damaged) is None
    assert store.find(NAME) == damaged, "it is another job's to set aside"
    assert Adoption(store, events, owns=made_anew).sound(damaged) is None
    fresh = store.find(NAME)
    assert fresh is not None and fresh != damaged
    assert Adoption(store, events, owns=lambda: True).sound(fresh) == fresh
    told = log.getvalue()
    store.set_aside(fresh)
    assert Adoption(store, events, owns=lambda: True).sound(fresh) is None, "gone, and no fault"
    assert log.getvalue() == told


def test_a_damaged_artifact_is_prepared_anew(preparation: Preparation) -> None:
    preparation.write("a.jsonl", *rows(*texts()[:20]))
    first = preparation.run("file:a.jsonl")
    file = preparation.artifact(first).data / "train.bin"
    content = file.read_bytes()
    file.write_bytes(bytes(len(content)))
    again = preparation.run("file:a.jsonl")
    assert not again.cached
    assert f"{file} is not what was published" in preparation.events("warning")[0]["message"]
    assert file.read_bytes() == content
