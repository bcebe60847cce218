"""Make the report's files."""

import tempfile
from pathlib import Path

import yaml

from compression_pipeline.ancestry import Ancestry
from compression_pipeline.config import ExportJob

from . import PAGE
from .data import Exported
from .page import distillation_series, manifest_of, render
from .picture import draw
from .run import load_run
from .student import load_student, resource_of

PICTURE = "loss.png"


def write_report(run: Path, store: Path, output: Path) -> Path:
    """Write `index.html` and, where a student was distilled, `loss.png` into the folder `output`; returns the page.

    `run` is the run.yaml of a work directory, `store` the store that holds its artifacts. An unfinished run gets a page
    too. Raises UserError where `run` can't be read or is no CompressionRun.
    """
    data = load_run(run, store)
    manifest = manifest_of(yaml.safe_load(run.read_text(encoding="utf-8")))
    page = render(data, manifest)
    output.mkdir(parents=True, exist_ok=True)
    series, levels = distillation_series(data)
    with tempfile.TemporaryDirectory(dir=output, prefix=".report-") as folder:
        drafts = [Path(folder) / PAGE]
        drafts[0].write_text(page, encoding="utf-8")
        if any(line.points for line in series):
            drafts.append(Path(folder) / PICTURE)
            draw(drafts[1], series, levels)
        else:
            (output / PICTURE).unlink(missing_ok=True)  # of the run as it was: no longer true
        for draft in drafts:
            draft.replace(output / draft.name)
    return output / PAGE


def write_student_report(ancestry: Ancestry, job: ExportJob, exported: Exported, folder: Path) -> Path:
    """Write `index.html`, the report of the student that `job` has exported, into `folder`; returns the page.

    The same artifacts give the same page, to the byte, wherever and for whichever run it is written.
    """
    data = load_student(ancestry, job, exported)
    page = folder / PAGE
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(render(data, manifest_of(resource_of(data))), encoding="utf-8")
    return page
