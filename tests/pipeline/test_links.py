"""What a job reads where a source holds links: on a cluster nothing that lies outside of it."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from preparing import Preparation, rows
from tiny import texts

from compression_pipeline.context import Context
from compression_pipeline.errors import PhaseError, UserError
from compression_pipeline.phases import prepare
from compression_pipeline.sources import open_source
from compression_pipeline.sources.links import Bounds
from compression_pipeline.store.watched import Selection, Watched


@pytest.fixture
def volume(preparation: Preparation) -> Path:
    """A claim with a text on it."""
    preparation.write("volume/data/a.jsonl", *rows(*texts()[:20]))
    return preparation.folder / "volume"


@pytest.mark.parametrize("source", ["data", "data/*", "data/*.txt", "data/x.txt"])
@pytest.mark.parametrize("target", ["/proc/self/environ", "/proc/self/cmdline", "/etc/hostname", "../other/b.txt"])
def test_no_link_leads_out_of_a_source_on_a_claim(
    preparation: Preparation, volume: Path, target: str, source: str
) -> None:
    preparation.write("volume/other/b.txt", "Text of somebody else.")
    (volume / "data/x.txt").symlink_to(target)
    if target.startswith("..") and source == "data/x.txt":
        return  # it was named, and lies on the claim
    with pytest.raises(UserError, match=r"x\.txt is a link ") as raised:
        preparation.run(f"pvc://claim/{source}")
    assert "\n" not in str(raised.value)
    assert not list(preparation.store.rglob("*.bin"))


def test_a_folder_that_leads_out_of_the_claim(preparation: Preparation, volume: Path) -> None:
    preparation.write("elsewhere/b.jsonl", *rows(*texts()[:20]))
    (volume / "out").symlink_to(preparation.folder / "elsewhere")
    with pytest.raises(UserError, match=r"b\.jsonl is a link that leads out of the source"):
        preparation.run("pvc://claim/out")
    (volume / "newest").symlink_to("data")
    assert preparation.run("pvc://claim/newest").documents == 20


def test_a_users_own_links_work_on_a_box_but_none_into_the_kernels_files(preparation: Preparation) -> None:
    preparation.write("elsewhere/b.jsonl", *rows(*texts()[:20]))
    (preparation.folder / "data").mkdir()
    (preparation.folder / "data/a.jsonl").symlink_to("../elsewhere/b.jsonl")
    assert preparation.run("file:data").documents == 20
    (preparation.folder / "data/x.txt").symlink_to("/proc/self/environ")
    with pytest.raises(UserError, match=r"x\.txt is a link into /proc"):
        preparation.run("file:data")


@pytest.mark.parametrize("kind", ["pipe", "device", "nothing"])
def test_what_is_no_regular_file_is_named(preparation: Preparation, volume: Path, kind: str) -> None:
    path = volume / "data/x.txt"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "gone.txt")
    for source in ("pvc://claim/data", "file:volume/data"):
        with pytest.raises(UserError, match=r"x\.txt is (no regular file|a link that leads nowhere)"):
            preparation.run(source)


@pytest.mark.parametrize("source", ["pvc://claim", "file:volume"])
def test_a_snapshot_of_a_cache_of_the_hub_is_readable(preparation: Preparation, volume: Path, source: str) -> None:
    def as_in_a_cache(name: str, files: list[Path]) -> str:
        snapshot = volume / "hub" / name / "snapshots" / "abc"
        for number, file in enumerate(files):
            blob = volume / "hub" / name / "blobs" / str(number)
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, blob)
            snapshot.mkdir(parents=True, exist_ok=True)
            (snapshot / file.name).symlink_to(f"../../blobs/{number}")
        return f"{source}/hub/{name}/snapshots/abc"

    text = as_in_a_cache("datasets--o--d", [volume / "data/a.jsonl"])
    model = as_in_a_cache("models--o--m", [*Path(preparation.teacher.removeprefix("file:")).iterdir()])
    assert preparation.run(text, teacher={"model": model}).documents == 20


def test_a_teachers_files_do_not_lead_out_either(preparation: Preparation, volume: Path) -> None:
    shutil.copytree(preparation.teacher.removeprefix("file:"), volume / "teacher")
    for name in ("generation_config.json", "config.json"):
        (volume / "teacher" / name).unlink(missing_ok=True)
        (volume / "teacher" / name).symlink_to("/proc/self/environ")
        with pytest.raises(UserError, match=rf"{name} is a link into /proc"):
            preparation.run("pvc://claim/data", teacher={"model": "pvc://claim/teacher"})


@pytest.mark.parametrize("ending", ["txt", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("becomes", ["link", "pipe"])
def test_a_file_is_held_against_the_bounds_as_it_is_opened(
    preparation: Preparation, volume: Path, monkeypatch: pytest.MonkeyPatch, ending: str, becomes: str
) -> None:
    path = volume / f"data/a.{ending}"
    (volume / "data/a.jsonl").rename(path)
    job = preparation.job("pvc://claim/data")
    context = Context.of(job, environment={}, stop=preparation.stop)
    [told] = job.dataset.texts
    source = open_source(told.source, field="dataset.source", revision=None, job=job, context=context)
    splits = source.text_files(told)
    [text] = prepare._fetch_text(splits.train, prepare.Text(told, "dataset", source, splits))
    path.unlink()
    if becomes == "link":
        path.symlink_to("/etc/hostname")
    else:
        os.mkfifo(path)
    with pytest.raises(UserError, match=r"is a link that leads out|is no regular file"):
        list(text.rows())


def test_a_teachers_file_is_held_against_the_bounds_as_it_is_copied(
    preparation: Preparation, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(preparation.teacher.removeprefix("file:"), volume / "teacher")
    weights = volume / "teacher" / "model.safetensors"
    outside = preparation.folder / "copy"
    weights.rename(outside)
    weights.symlink_to("../../copy")
    # As if it became a link after every look at the path; the content is what was found.
    monkeypatch.setattr(Bounds, "check", lambda *_: None)
    with pytest.raises(UserError, match=r"model\.safetensors is a link that leads out of the source"):
        preparation.run("pvc://claim/data", teacher={"model": "pvc://claim/teacher"})


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("becomes", ["a link", "a pipe", "another file"])
def test_a_teachers_file_is_read_once_and_as_it_was_checked(
    preparation: Preparation, volume: Path, monkeypatch: pytest.MonkeyPatch, name: str, becomes: str
) -> None:
    shutil.copytree(preparation.teacher.removeprefix("file:"), volume / "teacher")
    path = volume / "teacher" / name
    other = preparation.folder / "other"
    content = path.read_bytes()
    other.write_bytes(content + b"\n" if name.endswith(".json") else content[:-4] + bytes(4))

    def exchange(*_: object) -> None:
        """All files were listed and digested; none was looked at."""
        path.unlink()
        if becomes == "a link":
            path.symlink_to("../../other")
        elif becomes == "a pipe":
            os.mkfifo(path)
        else:
            shutil.copy(other, path)

    monkeypatch.setattr(prepare.space, "require", exchange)
    said = {
        "a link": rf"{name} is a link that leads out of the source",
        "a pipe": rf"{name} is no regular file",
        "another file": rf"{name} changed while it was read",
    }
    with pytest.raises(PhaseError, match=said[becomes]):
        preparation.run("pvc://claim/data", teacher={"model": "pvc://claim/teacher"})
    assert preparation.leftovers() == []


@pytest.mark.parametrize("target", ["/proc/self/environ", "/proc/self/pagemap", "outside"])
def test_what_leads_out_is_watched_by_where_it_leads(tmp_path: Path, target: str) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "outside").write_text("of somebody else")
    led = str(tmp_path / target)
    (tmp_path / "volume/weights.bin").symlink_to(led)
    selection = replace(Selection.at(tmp_path / "volume"), volume=tmp_path / "volume")
    seen = Watched.now(selection)
    assert seen.marks == {"weights.bin": f"leads to {led}"}
    assert Watched.model_validate_json(seen.model_dump_json()).unchanged()
