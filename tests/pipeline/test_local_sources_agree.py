"""Which files a `file:` source names: `compression run` watches those that prepare reads, and no others."""

from pathlib import Path

import pytest
from preparing import Preparation

from compression_operator.sources import local_files, signature
from compression_pipeline.config import DatasetConfig
from compression_pipeline.context import Context, StopFlag
from compression_pipeline.sources.base import Place
from compression_pipeline.sources.local import LocalSource

READ = ["a.txt", "texts/b.txt", "texts/more/c.txt"]
NOT_READ = [".hidden.txt", ".cache/d.txt", "texts/.e.txt", "out/demo/store/artifacts/x/f.txt", "shared/g.txt"]


def read_by_prepare(folder: Path, source: str, store: Path) -> list[Path]:
    job = Preparation(folder, "file:teacher").job(source)
    context = Context.of(job, environment={}, stop=StopFlag())
    place = Place(source, "dataset.source", None, job.source_roots, store, context)
    found = LocalSource(place)
    return found.fetch(found.text_files(DatasetConfig(source=source)).train)


@pytest.mark.parametrize("source", ["file:.", "file:*", "file:**/*", "file:**/*.txt", "file:t*/**/*", "file:texts"])
@pytest.mark.parametrize("store", ["out/demo/store", "shared"])
def test_both_worlds_read_the_same_files(tmp_path: Path, source: str, store: str) -> None:
    for name in [*READ, *NOT_READ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    if store == "shared":  # then nothing of the run is elsewhere but what nobody reads as text
        (tmp_path / "out/demo/store/artifacts/x/f.txt").unlink()
    else:
        (tmp_path / "shared/g.txt").unlink()
    aside = (tmp_path / "out" / "demo", tmp_path / store)
    watched = list(local_files(source, tmp_path, aside))
    assert sorted(read_by_prepare(tmp_path, source, tmp_path / store)) == watched
    assert {str(path.relative_to(tmp_path)) for path in watched} <= set(READ)
    before = signature(source, tmp_path, aside)
    for name in (".new", "out/demo/run.yaml", f"{store}/new.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("new")
    assert signature(source, tmp_path, aside) == before
    (tmp_path / "texts" / "new.txt").write_text("new")
    (tmp_path / "new.txt").write_text("new")
    assert signature(source, tmp_path, aside) != before
