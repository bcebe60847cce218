"""Make the report's files."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from compression_pipeline.config import Architecture, JobConfig, Phase, PruneConfig
from compression_pipeline.errors import UserError, disk_full, no_space

from . import IMPORTANCE, PAGE
from .ancestry import Ancestry
from .data import Exported
from .importance import read_importance
from .page import as_yaml, render, render_chart, render_importance
from .phases.distill import validation_chart
from .resource import read_resource
from .run import run_data
from .student import load_student, manifest_of

PICTURE = "loss.svg"


def write_report(run: Path, store: Path, output: Path) -> Path:
    """Write `index.html` and, where a student was distilled, `loss.svg` into the folder `output`; returns the page.

    `run` is the run.yaml of a work directory, `store` the store that holds its artifacts. An unfinished run gets a page
    too. Raises UserError where `run` can't be read or is no CompressionRun, or where `output` can't be written.
    """
    resource = read_resource(run)
    data = run_data(resource, store)
    files = {PAGE: render(data, as_yaml(resource.manifest))}
    if chart := validation_chart(data):
        files[PICTURE] = render_chart(chart)
    try:
        _write(files, output)
    except OSError as error:
        if disk_full(error):
            raise no_space(output) from error
        why = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write in {output} ({why}); make it writable, or write into another folder") from error
    return output / PAGE


def _write(files: Mapping[str, str], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    if PICTURE not in files:
        (output / PICTURE).unlink(missing_ok=True)  # of the run as it was: no longer true
    with tempfile.TemporaryDirectory(dir=output, prefix=".report-") as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        for name in files:
            (Path(folder) / name).replace(output / name)


def write_importance(folder: Path, teacher: Architecture, prune: PruneConfig, kept_layers: Sequence[int]) -> None:
    """Write `importance.html` into the folder of prune's artifact, of the scores and the choice there.

    `kept_layers` are counted from 1. The same scores make the same page, to the byte.
    """
    page, title = folder / IMPORTANCE, "What was kept, and why"
    found = read_importance(folder)
    named = bool(prune.drop_layers)
    page.write_text(render_importance(teacher, kept_layers, found, named=named, title=title), encoding="utf-8")


def write_student_report(ancestry: Ancestry, phase: Phase, job: JobConfig, exported: Exported, folder: Path) -> Path:
    """Write `index.html`, the report of the student that `job` hands out, into `folder`; returns the page.

    The same artifacts give the same page, to the byte, wherever and for whichever run it is written.
    """
    data = load_student(ancestry, phase, job, exported)
    page = folder / PAGE
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(render(data, as_yaml(manifest_of(data))), encoding="utf-8")
    return page
