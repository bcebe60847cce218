"""Which files a `file:` source names: `compression run` watches those that prepare reads, and no others."""

from pathlib import Path

import pytest
from preparing import Preparation

from compression_operator.local.source_files import local_files, signature
from compression_operator.local.workdir import Workdir
from compression_pipeline.config import DatasetConfig
from compression_pipeline.context import Context, StopFlag
from compression_pipeline.errors import UserError
from compression_pipeline.sources import open_source

READ = ["a.txt", "texts/b.txt", "texts/more/c.txt"]
NOT_READ = [".hidden.txt", ".cache/d.txt", "texts/.e.txt"]
READ_IN_WORKDIR = ["f.txt", "data/g.txt", "notes/jobs/h.txt"]
NOT_READ_IN_WORKDIR = ["jobs/demo-prepare/i.txt", "report/j.txt", "students/k.txt"]
EXPORTED = "artifacts/export-x/model/l.txt"


class Place:
    """A manifest's folder, with a work directory and a store in it."""

    def __init__(self, folder: Path, workdir: str, store: str) -> None:
        self.folder = folder
        self.workdir = Workdir(folder / workdir)
        shared = None if store == "its own" else folder / store
        self.workdir.make(shared)
        self.store = shared or self.workdir.store
        for name in (*READ, *NOT_READ):
            self.write(folder / name)
        for name in (*READ_IN_WORKDIR, *NOT_READ_IN_WORKDIR):
            self.write(self.workdir.root / name)
        self.write(self.workdir.store / EXPORTED)
        (self.workdir.students / "width").symlink_to((self.workdir.store / EXPORTED).parent)

    def write(self, path: Path, text: str = "some text") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def watched(self, source: str) -> list[Path]:
        return list(local_files(source, self.folder, self.workdir.ours))

    def signature(self, source: str) -> str | None:
        return signature(source, self.folder, self.workdir.ours)

    def read_by_prepare(self, source: str) -> list[Path]:
        job = Preparation(self.folder, "file:teacher").job(source)
        told = {"store": str(self.workdir.store), "aside": [str(path) for path in self.workdir.ours]}
        job = job.model_copy(update=told)
        context = Context.of(job, environment={}, stop=StopFlag())
        found = open_source(source, field="dataset.source", revision=None, job=job, context=context)
        return found.fetch(found.text_files(DatasetConfig(source=source)).train)


@pytest.fixture(params=["its own", "shared"])
def store(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["out/demo", ".", "texts"])
def place(tmp_path: Path, request: pytest.FixtureRequest, store: str) -> Place:
    return Place(tmp_path, request.param, store)


def test_both_worlds_read_what_the_user_wrote_and_nothing_of_ours(place: Place) -> None:
    source = "file:."
    wanted = {place.folder / name for name in READ} | {place.workdir.root / name for name in READ_IN_WORKDIR}
    assert place.read_by_prepare(source) == place.watched(source) == sorted(wanted)
    before = place.signature(source)
    ours = place.workdir
    for folder in (place.store, ours.jobs, ours.report, ours.students):
        place.write(folder / "new.txt")
    for file in (ours.run_file, ours.lock, ours.invocation, place.folder / ".new"):
        place.write(file)
    assert place.signature(source) == before
    for path in wanted:
        place.write(path, "other text")
        assert place.signature(source) != before, path
        before = place.signature(source)
    place.write(place.workdir.root / "data" / "new.txt")
    assert place.signature(source) != before


@pytest.mark.parametrize("source", ["*", "**/*", "**/*.txt", "t*/**/*", "texts", "*/*.txt", "*/*/*.txt", "[a-z]*/*/*"])
def test_both_worlds_read_the_same_of_a_folder_or_a_glob(place: Place, source: str) -> None:
    watched = place.watched(f"file:{source}")
    assert place.read_by_prepare(f"file:{source}") == watched
    wanted = {place.folder / name for name in READ} | {place.workdir.root / name for name in READ_IN_WORKDIR}
    assert watched and set(watched) <= wanted


@pytest.mark.parametrize("glob", ["", "/*"])
@pytest.mark.parametrize("within", ["students/width", f"store/{Path(EXPORTED).parent}", "jobs/demo-prepare", "data"])
def test_a_folder_that_is_named_itself_is_meant_wherever_it_lies(place: Place, within: str, glob: str) -> None:
    folder = place.workdir.root / within
    source = f"file:{folder.relative_to(place.folder)}{glob}"
    [file] = place.read_by_prepare(source)
    assert place.watched(source) == [file] == [*folder.iterdir()]
    before = place.signature(source)
    place.write(file, "other text")
    assert place.signature(source) != before


@pytest.mark.parametrize("within", ["store", "jobs", "report"])
def test_where_runs_keep_what_they_make_is_no_source(place: Place, within: str) -> None:
    source = f"file:{(place.workdir.root / within).relative_to(place.folder)}"
    with pytest.raises(UserError, match="is where runs keep what they make"):
        place.read_by_prepare(source)
    assert place.watched(source) == []
