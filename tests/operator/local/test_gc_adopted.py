"""Nothing goes that a live run has adopted, though gc knows of runs from an older snapshot alone."""

import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs_world import World, manifest
from looks import FINETUNED, at

from compression_operator.api.run import CPU, DEVICES_ANNOTATION
from compression_operator.core.plan import discovered_in, plan
from compression_operator.local.store_gc import in_use, remove, unused
from compression_pipeline.artifact import Store
from compression_pipeline.store import verified
from compression_pipeline.store.published import Published

GRACE = timedelta(days=7)
DAY = 24 * 3600


def artifact(store: Store, phase: str, number: int, days: float = 30) -> str:
    """An artifact that was made so many days ago."""
    with store.draft(phase, f"{number:032x}") as draft:
        (draft.path / "weights").write_text("x")
        made = draft.publish(config={}, inputs={}, result={})
    aged(made.path, days)
    return made.name


def aged(folder: Path, days: float) -> None:
    then = time.time() - days * DAY
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))


def left(store: Store, *worlds: World) -> set[str]:
    used = in_use(store.root, [world.run for world in worlds])
    found = unused(store.root, used, now=datetime.now(UTC), older_than=GRACE)
    return {one.path.name for one in found}


AGES = st.lists(st.sampled_from([1, 6, 8, 400]), min_size=1, max_size=6)


@given(AGES, st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
def test_what_a_job_used_lately_stays_whoever_it_belongs_to(
    tmp_path_factory: pytest.TempPathFactory, ages: list[float], opened: set[int], raced: set[int]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    names = [artifact(store, "finetune", number, days) for number, days in enumerate(ages)]
    for number in opened & set(range(len(names))):
        store.open(names[number])  # a run that was registered after the snapshot was taken
    old = {name for number, name in enumerate(names) if ages[number] > 7 and number not in opened}
    found = unused(store.root, in_use(store.root, []), now=datetime.now(UTC), older_than=GRACE)
    assert {one.path.name for one in found} == old
    late = {names[number] for number in raced if number < len(names)}
    for name in late:
        store.open(name)  # while gc is at it
    for one in found:
        remove(one)
    assert {name for name in names if store.find(name)} == set(names) - (old - late)


def test_what_a_step_noted_stays_before_its_run_knows(tmp_path: Path) -> None:
    world, store = World(), Store(tmp_path)
    world.look()
    prepare = world.status.steps[0]
    assert prepare.fingerprint and prepare.artifact is None
    name = artifact(store, "prepare", 7)
    assert left(store, world) == {name}
    store.record_published(prepare.fingerprint, Published(artifact=name))
    assert left(store, world) == set()


def test_what_says_that_an_artifact_was_verified_goes_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept, old, gone, young = (artifact(store, "prune", number) for number in range(4))
    for name in (kept, old, gone, young):
        found = store.find(name)
        assert found is not None and store.holds_what_was_published(found)
    marks = {name: verified.marker(tmp_path, name) for name in (kept, old, gone, young)}
    aged(tmp_path / "verified", 30)
    torn = tmp_path / "verified" / f".{kept}.{7:032x}"
    torn.touch()
    other = tmp_path / "verified" / "notes.json"
    other.touch()
    for path in (torn, other):
        os.utime(path, (1, 1))
    os.utime(marks[young])
    for name in (gone, young):
        shutil.rmtree(store.artifacts / name)
    found = unused(tmp_path, [store.artifacts / kept], now=datetime.now(UTC), older_than=GRACE)
    assert {one.path.relative_to(tmp_path).as_posix() for one in found} == {
        f"artifacts/{old}",
        f"verified/{gone}.json",
        f"verified/{torn.name}",
    }
    assert all(remove(one) for one in found)
    assert sorted(path.name for path in (tmp_path / "verified").iterdir()) == sorted(
        [marks[kept].name, marks[young].name, other.name]
    )


def test_what_is_set_aside_counts_as_verified_no_more(tmp_path: Path) -> None:
    store = Store(tmp_path)
    found = store.find(artifact(store, "prune", 1))
    assert found is not None and store.holds_what_was_published(found)
    store.set_aside(found)
    assert list((tmp_path / "verified").iterdir()) == []


def test_what_is_about_to_be_made_or_measured_stays(tmp_path: Path) -> None:
    """Weights whose key is not the step's fingerprint, of a step that is under way."""
    world, store = World(manifest(validation={"samples": 3})), Store(tmp_path)
    at(world, *FINETUNED)
    steps = plan(world.run.spec, discovered=discovered_in(world.status)).steps
    distill = next(step for step in steps if step.name == "distill-width")
    assert distill.key
    name = artifact(store, "distill", int(distill.key, 16))
    other = artifact(store, "distill", 7)
    work = store.work_folder(distill.key)
    work.mkdir(parents=True)
    aged(work, 30)
    assert left(store, world) == {other}
    assert name == distill.artifact


def test_what_an_edited_run_without_a_gpu_is_about_to_adopt_stays(tmp_path: Path) -> None:
    world, store = World(), Store(tmp_path)
    world.annotate(DEVICES_ANNOTATION, CPU)
    at(world, *FINETUNED)
    world.edit(distill={"steps": 7})
    told = plan(world.run.spec, discovered=discovered_in(world.status), gpus=False).get("distill-width")
    assert told and told.artifact and told.fingerprint
    assert artifact(store, "distill", int(told.fingerprint, 16)) == told.artifact
    assert left(store, world) == set()
