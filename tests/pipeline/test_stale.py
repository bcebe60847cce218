"""A source that has changed is seen, whatever its sizes and times say; what changes nothing makes nothing anew."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preparing import FINGERPRINT, Preparation, rows
from tiny import texts

from compression_operator.local.source_files import signature
from compression_pipeline.artifact import Store
from compression_pipeline.config import PrepareResult
from compression_pipeline.store import watched


@pytest.fixture(params=["file", "pvc"])
def source(request: pytest.FixtureRequest) -> str:
    """Where the corpus is: read in both worlds by one hand."""
    return {"file": "file:volume/corpus", "pvc": "pvc://claim/corpus"}[request.param]


def known(preparation: Preparation) -> bool:
    """Whether a later job of the same fingerprint would take what there is, without a look at the contents."""
    return Store(preparation.store).find_published("prepare", FINGERPRINT) is not None


def _other(content: bytes) -> bytes:
    """Content of the same size: its end, the closing of a JSON line perhaps, stays."""
    place = max(0, len(content) - 7)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def overwritten(path: Path) -> None:
    """Other content of the same size, at the same time of change: rsync -t, tar --mtime, layers of images."""
    before = path.stat()
    path.write_bytes(_other(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    """Another file in its place, of the same size, at the same time of change."""
    before = path.stat()
    other = path.with_name(f"{path.name}.new")
    other.write_bytes(_other(path.read_bytes()))
    other.replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("small", [watched.SMALL, 0], ids=["small", "large"])
@pytest.mark.parametrize("change", [overwritten, replaced])
def test_other_contents_of_one_size_and_time_are_seen(
    preparation: Preparation,
    tiny_teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    change: Callable[[Path], None],
    small: int,
) -> None:
    monkeypatch.setattr(watched, "SMALL", small)
    shutil.copytree(tiny_teacher, preparation.folder / "volume" / "teacher")
    preparation.teacher = f"{source.removesuffix('corpus')}teacher"
    preparation.write("volume/corpus/deep/a.jsonl", *rows(*texts()[:20]))
    signatures = {signature("file:volume", preparation.folder)}
    keys = {preparation.run(source).key}
    assert known(preparation)
    for file in ("corpus/deep/a.jsonl", "teacher/model.safetensors"):
        change(preparation.folder / "volume" / file)
        assert not known(preparation)
        signatures.add(signature("file:volume", preparation.folder))
        result = preparation.run(source)
        assert not result.cached
        keys.add(result.key)
        assert known(preparation)
    assert len(keys) == len(signatures) == 3


def test_a_file_is_seen_wherever_it_is_added(preparation: Preparation, tiny_teacher: Path, source: str) -> None:
    shutil.copytree(tiny_teacher, preparation.folder / "volume" / "teacher")
    preparation.teacher = f"{source.removesuffix('corpus')}teacher"
    preparation.write("volume/corpus/en/2024/a.jsonl", *rows(*texts()[:20]))
    assert preparation.run(source).documents == 20
    folders = [path for path in (preparation.folder / "volume").rglob("*") if path.is_dir()]
    for name, count in (("corpus/de/2023/b.jsonl", 40), ("corpus/c.jsonl", 45), ("corpus/en/d.jsonl", 50)):
        times = {folder: folder.stat().st_mtime_ns for folder in folders}
        start = 20 if count == 40 else count - 5
        preparation.write(f"volume/{name}", *rows(*texts()[start:count]))
        for folder, time in times.items():
            os.utime(folder, ns=(time, time))
        assert not known(preparation), name
        assert preparation.run(source).documents == count
        assert known(preparation)
    (preparation.folder / "volume" / "teacher" / "generation_config.json").write_text("{}")
    assert not known(preparation)
    assert not preparation.run(source).cached
    for gone in ("corpus/en/2024/a.jsonl", "teacher/generation_config.json"):
        (preparation.folder / "volume" / gone).unlink()
        assert not known(preparation)
        preparation.run(source)
        assert known(preparation)


def test_a_folder_between_is_watched_of_a_glob_too(preparation: Preparation) -> None:
    preparation.write("volume/corpus/en/a.jsonl", *rows(*texts()[:20]))
    assert preparation.run("pvc://claim/c*/*/*.jsonl").documents == 20
    preparation.write("volume/corpora/de/b.jsonl", *rows(*texts()[20:30]))
    assert not known(preparation)
    assert preparation.run("pvc://claim/c*/*/*.jsonl").documents == 30
    preparation.write("volume/notes/de/c.jsonl", *rows("not meant"))
    assert known(preparation)


# -- the reverse: the same contents, the same key -------------------------------------------------------------------


@pytest.fixture
def made(preparation: Preparation, tiny_teacher: Path) -> PrepareResult:
    shutil.copytree(tiny_teacher, preparation.folder / "volume" / "teacher")
    preparation.teacher = "pvc://claim/teacher"
    (preparation.folder / "volume" / "teacher" / "LICENSE").write_text("Free.")
    for number in range(3):
        preparation.write(f"volume/corpus/train/{number}.jsonl", *rows(*texts()[number * 10 : number * 10 + 10]))
    preparation.write("volume/corpus/validation/a.jsonl", *rows(*texts()[30:40]))
    return preparation.run("pvc://claim/corpus")


def test_what_changes_no_contents_changes_no_key(preparation: Preparation, made: PrepareResult) -> None:
    volume = preparation.folder / "volume"
    assert preparation.run("pvc://claim/corpus", seed=7, validationFraction=0.5).key == made.key
    assert preparation.run("pvc://claim/corpus", validationSplit="validation").key == made.key
    (volume / "teacher" / "LICENSE").write_text("Free, as in beer.")
    assert preparation.run("pvc://claim/corpus").key == made.key
    (volume / "corpus" / "train" / "0.jsonl").rename(volume / "corpus" / "train" / "renamed.jsonl")
    assert preparation.run("pvc://claim/corpus").key == made.key
    (volume / "corpus" / "train").rename(volume / "corpus" / "mine")
    (volume / "corpus" / "validation").rename(volume / "corpus" / "test")
    again = preparation.run("pvc://claim/corpus", trainSplit="mine", validationSplit="test")
    assert (again.key, again.cached) == (made.key, True)


def test_what_changes_the_contents_changes_the_key(preparation: Preparation, made: PrepareResult) -> None:
    volume = preparation.folder / "volume"
    keys = {made.key}
    preparation.write("volume/corpus/train/more.jsonl", *rows("One more."))
    keys.add(preparation.run("pvc://claim/corpus").key)
    (volume / "corpus" / "train" / "more.jsonl").rename(volume / "corpus" / "validation" / "more.jsonl")
    keys.add(preparation.run("pvc://claim/corpus").key)
    (volume / "corpus" / "train" / "0.jsonl").rename(volume / "corpus" / "train" / "0.txt")
    keys.add(preparation.run("pvc://claim/corpus").key)
    shutil.rmtree(volume / "corpus" / "validation")
    keys.add(preparation.run("pvc://claim/corpus").key)
    keys.add(preparation.run("pvc://claim/corpus", seed=7).key)
    keys.add(preparation.run("pvc://claim/corpus", validationFraction=0.5).key)
    config = volume / "teacher" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bos_token_id": 1}))
    keys.add(preparation.run("pvc://claim/corpus").key)
    assert len(keys) == 8


# -- what files look like ---------------------------------------------------------------------------------------------

NAMES = st.lists(
    st.sampled_from(["a", "b/c", "b/d", "e/f/g", "e/f/h", ".hidden", "b/.cache/x"]), min_size=1, unique=True
)


@given(NAMES, st.sampled_from(["none", "touch", "add", "remove", "rename", "rewrite", "swap"]), st.integers(0, 99))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_change_of_contents_is_seen_and_no_other_of_small_files(
    tmp_path: Path, names: list[str], change: str, seed: int
) -> None:
    shutil.rmtree(tmp_path / "tree", ignore_errors=True)
    root, chance = tmp_path / "tree", random.Random(seed)
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{number:03}")
    selection = watched.Selection.at(root)
    before = watched.Watched.now(selection)

    def contents() -> dict[str, bytes]:
        return {name: (root / name).read_bytes() for name in selection.names()}

    was, one = contents(), root / chance.choice(names)
    match change:
        case "touch":
            os.utime(one, (1, 1))
        case "add":
            (one.parent / chance.choice(["new", ".new"])).write_text("new")
        case "remove":
            one.unlink()
        case "rename":
            one.rename(one.with_name("renamed"))
        case "rewrite":
            overwritten(one)
        case "swap":
            other = root / chance.choice(names)
            content = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(content)
        case _:
            pass
    assert before.unchanged() == (contents() == was)
    assert set(was) == {name for name in names if not any(part.startswith(".") for part in name.split("/"))}
