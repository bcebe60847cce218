"""`compression gc`: what no run refers to goes, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from local_cli import Bench
from tests.support.waiting import until

from compression_operator.local.store_gc import in_use, unused

OLD = 10 * 24 * 3600
Edited = tuple[Bench, set[str], set[str]]


def tree(store: Path) -> set[str]:
    """Artifacts and work folders, by their names."""
    return {f"{kind}/{path.name}" for kind in ("artifacts", "work") for path in (store / kind).iterdir()}


def age(store: Path, seconds: float = OLD) -> None:
    """Let everything in the store be this old."""
    then = time.time() - seconds
    for path in (store, *store.rglob("*")):
        os.utime(path, (then, then), follow_symlinks=False)


@pytest.fixture
def edited(tmp_path: Path) -> Edited:
    """A run that was edited and run again; what it made first and needs no more, and what it needs."""
    bench = Bench(tmp_path)
    assert bench.run() == 0
    first = tree(bench.store)
    bench.write(distill={"steps": 12, "globalBatchSize": 4, "warmupSteps": 2})
    assert bench.run() == 0
    steps = bench.steps().values()
    needed = {f"artifacts/{step['artifact']}" for step in steps} | {f"work/{step['fingerprint']}" for step in steps}
    return bench, first - needed, needed & tree(bench.store)


def gc(bench: Bench, *arguments: str | Path) -> int:
    return bench.call("gc", "--workdir", bench.workdir, *arguments)


def test_what_an_edit_left_goes_and_the_run_goes_on_as_before(
    edited: Edited, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, left, needed = edited
    phases = {name.split("-")[0] for name in left if name.startswith("artifacts/")}
    assert phases == {"artifacts/distill", "artifacts/export"}
    capsys.readouterr()

    assert gc(bench) == 0
    assert capsys.readouterr().out == "nothing to remove\n"  # all of it is new
    age(bench.store)
    assert gc(bench, "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    assert {line.split(": ")[0].removeprefix("would remove ") for line in said[:-1]} == left
    size = sum(file.stat().st_size for name in left for file in (bench.store / name).rglob("*") if file.is_file())
    assert said[-1] == f"{size / 1000:.1f} kB would be free"
    assert tree(bench.store) == left | needed

    assert gc(bench) == 0
    assert capsys.readouterr().out.count("removed ") == len(left)
    assert tree(bench.store) == needed
    starts = bench.starts()
    assert bench.run() == 0
    assert bench.starts() == starts


def test_age_is_told_in_words(edited: Edited, capsys: pytest.CaptureFixture[str]) -> None:
    bench, left, needed = edited
    age(bench.store, 2 * 3600)
    assert gc(bench, "--older-than", "3h") == 0
    assert tree(bench.store) == left | needed
    assert gc(bench, "--older-than", "119m") == 0
    assert tree(bench.store) == needed
    with pytest.raises(SystemExit):
        gc(bench, "--older-than", "week")
    assert "week is not an age; write 7d, 12h, 30m or 0" in capsys.readouterr().err


def test_runs_that_share_a_store_are_all_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared, benches = tmp_path / "shared", list[Bench]()
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        bench = Bench(tmp_path / str(number))
        bench.write(name=f"demo-{number}", distill={"steps": 10 + number, "globalBatchSize": 4, "warmupSteps": 2})
        assert bench.run("--store", shared) == 0
        benches.append(bench)
    age(shared)
    everything = tree(shared)
    capsys.readouterr()
    for arguments in (("--store", shared), ("--workdir", benches[0].workdir)):
        assert benches[0].call("gc", *arguments) == 0
        assert capsys.readouterr().out == "nothing to remove\n"
    odd = shared / "workdirs" / "odd"
    odd.mkdir()  # no entry that can be read
    shutil.rmtree(benches[1].workdir)
    assert benches[0].call("gc", "--store", shared) == 2 and tree(shared) >= everything
    assert f"cannot read {odd}: Is a directory; without it there is no telling" in capsys.readouterr().err
    odd.rmdir()
    (shared / "workdirs" / ".0123.half").write_text("/nowhere/el")  # another command is just writing it
    assert benches[0].call("gc", "--store", shared) == 0
    said = capsys.readouterr().out
    assert "/nowhere/el" not in said
    assert f"{benches[1].workdir} no longer exists, so what only its run referred to counts as unused" in said
    steps = benches[0].steps().values()
    assert {f"artifacts/{step['artifact']}" for step in steps} <= tree(shared) < everything


def test_a_store_beside_a_manifest_called_run_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    shared, manifest = tmp_path / "store", bench.file.read_text()
    assert bench.run("--store", shared) == 0
    age(shared)
    before = tree(shared)
    capsys.readouterr()
    assert bench.call("gc", "--store", shared) == 0
    assert capsys.readouterr().out == "nothing to remove\n"
    shutil.rmtree(bench.workdir)
    assert bench.call("gc", "--store", shared) == 2
    assert "no run is known that uses" in capsys.readouterr().err, "a manifest says nothing of what is in use"
    assert tree(shared) == before
    assert bench.file.read_text() == manifest and not (tmp_path / "lock").exists()


def test_the_runs_of_a_cluster_are_told_as_kubectl_lists_them(
    edited: Edited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, left, needed = edited
    volume = tmp_path / "volume"
    bench.store.rename(volume)
    age(volume)
    assert bench.call("gc", "--store", volume) == 2
    assert "no run is known that uses" in capsys.readouterr().err  # and so all would be unused
    listed = tmp_path / "runs.yaml"
    run = yaml.safe_load((bench.workdir / "run.yaml").read_text())
    for step in run["status"]["steps"]:
        if step["phase"] != "prepare":  # whose artifact is known only once it is done
            del step["artifact"]
    listed.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [run]}))
    assert bench.call("gc", "--store", volume, "--runs", listed, "--dry-run") == 0
    assert tree(volume) == left | needed
    assert bench.call("gc", "--store", volume, "--runs", listed) == 0
    assert tree(volume) == needed


NO_RUN = "it contains something other than CompressionRuns"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[", "it is not YAML: while parsing a flow node"),
        ("items: 3", NO_RUN),
        ("- 1", NO_RUN),
        ("items: [{}]", NO_RUN),
        ("kind: Pod", NO_RUN),
        ("nonsense", NO_RUN),
    ],
)
def test_a_list_of_runs_that_is_none(
    tmp_path: Path, content: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "runs.yaml").write_text(content)
    assert bench.call("gc", "--store", tmp_path, "--runs", tmp_path / "runs.yaml") == 2
    said = capsys.readouterr().err
    assert said.endswith(f"cannot be read ({why}); give what kubectl get compressionruns -A -o yaml prints\n")


def test_where_a_job_works_nothing_is_touched(edited: Edited, capsys: pytest.CaptureFixture[str]) -> None:
    bench, left, needed = edited
    fingerprint = next(name for name in left if name.startswith("artifacts/distill")).rpartition("-")[2]
    heartbeat = bench.store / "work" / fingerprint / "heartbeat"
    heartbeat.parent.mkdir(exist_ok=True)
    heartbeat.write_text(json.dumps({"token": "ab", "job": "other/distill-width/1/7a3f"}))
    age(bench.store)
    os.utime(heartbeat)
    capsys.readouterr()
    assert gc(bench) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"other/distill-width/1 works in {bench.store}, or has lately, and belongs to no known run;")
    assert tree(bench.store) >= left | needed

    # Of a job that is known: its folder, and what it is about to publish or adopt.
    now = datetime.now(UTC)
    found = {
        str(one.path.relative_to(bench.store)) for one in unused(bench.store, (), now=now, older_than=timedelta(0))
    }
    assert found == tree(bench.store) - {f"work/{fingerprint}", f"artifacts/distill-{fingerprint}"}


def test_a_directory_that_a_command_works_on_is_left_alone(edited: Edited, capsys: pytest.CaptureFixture[str]) -> None:
    bench, left, needed = edited
    age(bench.store)
    hold = "import sys; from pathlib import Path; from compression_operator.local.workdir import Workdir\n"
    hold += "with Workdir(Path(sys.argv[1])).locked(): sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, bench.workdir], stdin=subprocess.PIPE) as holder:
        lock = bench.workdir / "lock"
        until(lambda: lock.read_text().strip() == str(holder.pid), "the lock to be held")
        assert gc(bench) == 2
        assert f"is in use by process {holder.pid}" in capsys.readouterr().err
        assert tree(bench.store) == left | needed


def test_what_a_kept_artifact_was_made_from_is_kept(edited: Edited) -> None:
    bench, left, _ = edited
    older = next(name for name in left if name.startswith("artifacts/distill")).removeprefix("artifacts/")
    export = bench.store / "artifacts" / bench.steps()["export-width"]["artifact"]
    manifest = json.loads((export / "manifest.json").read_text())
    (export / "manifest.json").write_text(json.dumps(manifest | {"inputs": {"distilled": older, "data": "file:x@12"}}))
    age(bench.store)
    assert gc(bench) == 0
    assert f"artifacts/{older}" in tree(bench.store)


def test_scores_stay_as_long_as_a_student_that_was_cut_by_them(edited: Edited) -> None:
    bench, _, needed = edited
    artifacts = bench.store / "artifacts"
    kept, left = f"scores-{'1' * 32}", f"scores-{'2' * 32}"
    for name in (kept, left):
        (artifacts / name).mkdir()
    pruned = artifacts / bench.steps()["prune-width"]["artifact"] / "manifest.json"
    manifest = json.loads(pruned.read_text())
    manifest["inputs"]["scores.ActivationMagnitude"] = kept
    pruned.write_text(json.dumps(manifest))
    age(bench.store)
    assert gc(bench) == 0
    assert tree(bench.store) == needed | {f"artifacts/{kept}"}


def test_what_is_not_ours_stays_and_what_was_left_half_removed_goes(edited: Edited, tmp_path: Path) -> None:
    bench, _, needed = edited
    artifacts = bench.store / "artifacts"
    for name in (".removing-distill-0", ".damaged-distill-0", "notes", "distill-mine"):
        (artifacts / name).mkdir()
    (bench.store / "hub").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (artifacts / f"prune-{'0' * 32}").symlink_to(tmp_path / "elsewhere")
    age(bench.store)
    assert gc(bench) == 0
    assert tree(bench.store) == needed | {"artifacts/notes", "artifacts/distill-mine", f"artifacts/prune-{'0' * 32}"}
    assert (bench.store / "hub").is_dir() and (tmp_path / "elsewhere").is_dir()


def test_a_file_with_another_name_frees_nothing(tmp_path: Path) -> None:
    artifact = tmp_path / "artifacts" / f"prepare-{'a' * 32}"
    artifact.mkdir(parents=True)
    (artifact / "weights").write_bytes(b"x" * 1000)
    (tmp_path / "hub").mkdir()
    os.link(artifact / "weights", tmp_path / "hub" / "blob")
    (artifact / "data").write_bytes(b"x" * 10)
    [found] = unused(tmp_path, in_use(tmp_path, ()), now=datetime.now(UTC), older_than=timedelta(0))
    assert (found.path, found.size) == (artifact, 10)


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_file_all_of_whose_names_go_is_freed_once(
    edited: Edited, dry_run: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher from the Hub has two: prepare's artifact holds the download by a hard link."""
    bench, left, _ = edited
    assert gc(bench, "--older-than", "0") == 0 and not left & tree(bench.store)
    blobs = bench.store / "hub" / "models--owner--old" / "blobs"
    artifact = bench.store / "artifacts" / f"prepare-{'a' * 32}"
    for folder in (blobs, artifact):
        folder.mkdir(parents=True)
    (blobs / "b10b").write_bytes(b"x" * 5_000_000)
    os.link(blobs / "b10b", artifact / "model.safetensors")
    os.link(blobs / "b10b", artifact / "again.safetensors")
    age(bench.store)
    capsys.readouterr()
    assert gc(bench, *(["--dry-run"] if dry_run else [])) == 0
    one, other, total = capsys.readouterr().out.splitlines()
    assert f"{artifact.name}: 0 bytes" in one and "models--owner--old: 5.0 MB" in other
    assert total == f"5.0 MB {'would be' if dry_run else 'are'} free"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--store", "nowhere"), "nowhere is not a store; name the folder that contains artifacts/"),
        ((), "name a store with --workdir or --store: there is none in out/"),
        (("--store", "store", "--workdir", "empty"), "empty contains no run; correct --workdir"),
    ],
)
def test_what_is_meant_must_be_clear(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    bench = Bench(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store" / "artifacts").mkdir(parents=True)
    assert bench.call("gc", *arguments) == 2
    assert said in capsys.readouterr().err


def test_downloads_that_no_run_names_go(edited: Edited, capsys: pytest.CaptureFixture[str]) -> None:
    bench, _, _ = edited
    hub = bench.store / "hub"
    sizes = {"models--owner--named": 10, "models--owner--old": 2000, "datasets--old": 300, "datasets--owner--text": 10}
    for name, size in sizes.items():
        blobs, snapshot = hub / name / "blobs", hub / name / "snapshots" / "c0ffee"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        (blobs / "b10b").write_bytes(b"x" * size)
        (snapshot / "model.safetensors").symlink_to("../../blobs/b10b")
    linked = next(bench.store.glob("artifacts/prepare-*")) / "linked"
    os.link(hub / "datasets--old" / "blobs" / "b10b", linked)
    (hub / ".locks" / "models--owner--old").mkdir(parents=True)
    other = bench.root / "other.yaml"
    manifest = yaml.safe_load(bench.file.read_text())
    manifest["spec"] |= {"teacher": {"model": "hf://owner/named"}}
    manifest["spec"]["dataset"] |= {"source": "hf://owner/text"}
    other.write_text(yaml.safe_dump(manifest))
    assert gc(bench, "--runs", other) == 0
    assert len(list(hub.glob("[a-z]*"))) == 4, "none is old enough"

    age(bench.store)
    capsys.readouterr()
    assert gc(bench, "--runs", other, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "would remove hub/models--owner--old: 2.0 kB" in said and "would remove hub/datasets--old: 0 bytes" in said
    assert gc(bench, "--runs", other) == 0
    assert {path.name for path in hub.iterdir()} == {"models--owner--named", "datasets--owner--text", ".locks"}
    assert linked.read_bytes() == b"x" * 300
