"""The report: what it says is what the run measured, it stands on its own, and it stands half-finished runs."""

import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pages import Page
from report_run import CORRECTED_LOSS, DEPTH, TEACHER, TEACHER_LOSS, WIDTH, Run

from compression_pipeline.config import Phase, number_runs
from compression_pipeline.errors import UserError
from compression_pipeline.report import words
from compression_pipeline.report.charts import Grid
from compression_pipeline.report.importance import Axis, Importance
from compression_pipeline.report.page import render
from compression_pipeline.report.phases.prune import importance_panels
from compression_pipeline.report.run import load_run
from compression_pipeline.report.write import write_report


@pytest.fixture
def report(tmp_path: Path) -> Callable[[Run], Page]:
    """Writes a run's report and parses it."""

    def write(run: Run) -> Page:
        page = write_report(run.run_yaml, run.store, tmp_path / "report")
        return Page(page.read_text(encoding="utf-8"))

    return write


def test_figures_are_those_of_the_run(tmp_path: Path, report: Callable[[Run], Page]) -> None:
    page = report(Run(tmp_path).write())
    head, teacher, corrected, width, depth = page.tables["figures"]
    assert len({len(row) for row in page.tables["figures"]}) == 1
    column = {name: number for number, name in enumerate(head)}
    assert teacher[column["Loss"]] == f"{TEACHER_LOSS:.3f}"
    assert corrected[column["Loss"]] == f"{CORRECTED_LOSS:.3f}"
    for student, row in ((WIDTH, width), (DEPTH, depth)):
        parameters = student.architecture.parameters
        won_back = (student.pruned - student.distilled) / (student.pruned - CORRECTED_LOSS)
        assert row[0] == student.name
        assert row[column["Parameters"]] == f"{parameters / 1e6:.3g} M"
        assert row[column["Of teacher"]] == f"{parameters / TEACHER.parameters * 100:.0f} %"
        assert row[column["When pruned"]] == f"{student.pruned:.3f}"
        assert row[column["Loss"]] == f"{student.distilled:.3f}"
        assert row[column["Won back"]] == f"{won_back * 100:.0f} %"
        assert row[column["Weights"]] == f"{parameters * 4 / 1e6:.1f} MB"
        assert row[column["Training tokens/s"]] == "4,410"
        assert f"it won back {won_back * 100:.0f} % of the validation loss that pruning cost" in page.text
    assert "1 to 3, 7 to 8 of 8" in page.text
    assert "96 channels kept" in page.text
    assert "256 neurons a layer kept" in page.text
    assert WIDTH.sample in page.text
    assert page.text.count("The function returns the name of the file that is read <now>.") == 1
    assert "by the teacher that it learnt from" in page.text


def test_a_missed_gate_is_told_with_its_figures(tmp_path: Path, report: Callable[[Run], Page]) -> None:
    run = Run(tmp_path, phase="Failed").write()
    content = run.resource()
    verdict = {"criterion": "maxValidationLoss", "measured": 4.171}
    gates = [[verdict | {"limit": 4.0, "met": False}], [verdict | {"limit": 4.5, "met": True}]]
    for student, gate in zip(content["status"]["students"], gates, strict=True):
        student["gate"] = gate
    run.run_yaml.write_text(yaml.safe_dump(content))
    page = report(run)
    text = page.text
    assert "width misses accept: maxValidationLoss is 4 and 4.1710 was measured." in text
    assert "maxValidationLoss is 4 and 4.1710 was measured: missed" in text
    assert "maxValidationLoss is 4.5 and 4.1710 was measured: met" in text
    assert "so this page is not complete" not in text
    assert next(value for tag, name, value in page.attributes if (tag, name) == ("article", "class")) == "verdict poor"
    assert text.count("Misses accept") == 1
    assert "It misses accept: maxValidationLoss is 4 and 4.1710 was measured." in text
    assert "It meets accept: maxValidationLoss is 4.5 and 4.1710 was measured." in text


def test_layers_without_which_nothing_gets_worse_are_no_empty_picture() -> None:
    found = Importance(layers={1: 0.0, 2: -0.1, 3: 0.0}, depth="Task")
    teacher = TEACHER.model_copy(update={"layers": 3})
    [grid] = [panel for panel in importance_panels(teacher, [2, 3], found, named=False) if isinstance(panel, Grid)]
    assert grid.note == (
        "the score without them: no layer alone makes it worse, so all bars are equal; kept: 2 to 3 of 3"
    )
    [(_, cells)] = grid.rows
    assert [(cell.score, cell.kept) for cell in cells] == [(None, False), (None, True), (None, True)]


def test_large_numbers_have_three_digits() -> None:
    assert [words.count(n) for n in (1_101_216, 1_049_728, 750_624, 8.03e9, 12_345, 999)] == [
        "1.10 M",
        "1.05 M",
        "751 k",
        "8.03 B",
        "12.3 k",
        "999",
    ]


def test_without_a_sample_of_the_teacher_the_students_write_alone(
    tmp_path: Path, report: Callable[[Run], Page]
) -> None:
    page = report(Run(tmp_path, [replace(WIDTH, teacher_sample=None)]).write())
    assert WIDTH.sample in page.text
    assert "the teacher that it learnt from" not in page.text


def test_page_and_picture_stand_on_their_own(tmp_path: Path, report: Callable[[Run], Page]) -> None:
    page = report(Run(tmp_path).write())
    html = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    references = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert references
    assert all(value.startswith(("#", "data:")) for value in references)
    assert not re.search(r"url\(|@import|https?:|//[a-z]", html)
    assert "<script" not in html
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    assert "prefers-color-scheme: dark" in html
    assert (tmp_path / "report" / "loss.svg").read_bytes().startswith(b"<svg")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["index.html", "loss.svg"]


def test_how_to_reproduce_it_is_complete(tmp_path: Path, report: Callable[[Run], Page]) -> None:
    run = Run(tmp_path).write()
    page = report(run)
    for step in run.steps:
        assert [step["name"], step["fingerprint"], step["artifact"]] in page.tables["fingerprints"]
    assert "compression run demo.yaml" in page.text
    assert "relative to the manifest's folder" in " ".join(page.text.split())
    assert f'AutoModelForCausalLM.from_pretrained("students/{WIDTH.name}")' in page.text
    again = yaml.safe_load(page.text[page.text.index("apiVersion:") :])
    assert again["spec"] == run.resource()["spec"]
    assert again["metadata"] == {"name": "demo"}
    assert "status" not in again
    rows = [row for table in page.tables.values() for row in table]
    assert ["torch", version("torch")] in rows
    assert ["distill", "77"] in rows


@pytest.mark.parametrize(
    ("shared", "own", "expected"),
    [
        (True, {"width": 5}, {"": ("120", "77"), " of width": ("1,005", "5")}),
        (True, {"width": 5, "depth": 6}, {" of width": ("1,005", "5"), " of depth": ("1,006", "6")}),
        (False, {"width": 5, "depth": None}, {" of width": ("1,005", "5"), " of depth": ("1,000", "1234")}),
    ],
    ids=["one brings its own", "nobody learns by the run's", "the run has none"],
)
def test_each_distillation_is_told_and_no_other(
    shared: bool,
    own: dict[str, int | None],
    expected: dict[str, tuple[str, str]],
    tmp_path: Path,
    report: Callable[[Run], Page],
) -> None:
    run = Run(tmp_path).write()
    resource = run.resource()
    for student in resource["spec"]["students"]:
        if student["name"] in own:
            seed = own[student["name"]]
            student["distill"] = {"steps": 1000 + (seed or 0)} | ({"seed": seed} if seed else {})
    if not shared:
        del resource["spec"]["distill"]
    run.run_yaml.write_text(yaml.safe_dump(resource))
    page = report(run)
    rows = [row for table in page.tables.values() for row in table if row[0].startswith("distill") and len(row) == 2]
    assert rows == [[f"distill{whose}", seed] for whose, (_, seed) in expected.items()]
    told = re.findall(r"Distillation((?: of [a-z]+)?)\s*([\d,]+) steps", page.text)
    assert told == [(whose, steps) for whose, (steps, _) in expected.items()]


def test_the_newest_export_on_the_way_is_told_with_its_folder(tmp_path: Path, report: Callable[[Run], Page]) -> None:
    run = Run(tmp_path).write()
    resource = run.resource()
    resource["spec"]["distill"]["exportEvery"] = 50
    steps = {step["name"]: step for step in resource["status"]["steps"]}
    steps["distill-width"]["progress"] = {"step": 120, "totalSteps": 120, "exportedStep": 100}
    run.run_yaml.write_text(yaml.safe_dump(resource))
    text = " ".join(report(run).text.split())
    width, depth = (f"work/{steps[name]['fingerprint']}/exports" for name in ("distill-width", "distill-depth"))
    assert f"{width} (newest: after step 100), {depth} of the store" in text


def test_students_of_a_cluster_load_from_the_store(tmp_path: Path, report: Callable[[Run], Page]) -> None:
    run = Run(tmp_path).write()
    file = tmp_path / "run.yaml"
    resource = yaml.safe_load(file.read_text())
    resource["spec"]["storage"] = {"persistentVolumeClaim": {"claimName": "store"}}
    file.write_text(yaml.safe_dump(resource))
    said = report(run).text
    assert "from the store" in said
    assert 'from_pretrained("artifacts/export-' in said
    assert "students/" not in said


def test_curves_run_from_pruned_to_distilled(tmp_path: Path, report: Callable[[Run], Page]) -> None:
    page = report(Run(tmp_path).write())
    described = [value for _, name, value in page.attributes if name == "aria-label"]
    curves = next(value for value in described if value.startswith("Validation loss while distilling"))
    for student in (WIDTH, DEPTH):
        assert f"{student.name}: from {student.pruned:.3f} to {student.distilled:.3f}" in curves
    assert f"corrected teacher: {CORRECTED_LOSS:.3f}" in curves


def test_a_task_has_a_chart_beside_the_losses(tmp_path: Path, report: Callable[[Run], Page]) -> None:
    students = [replace(WIDTH, scores=(0.25, 0.5)), replace(DEPTH, scores=(0.375, 0.625))]
    page = report(Run(tmp_path, students).write())
    described = [value for _, name, value in page.attributes if name == "aria-label"]
    losses, tasks, *_ = [value for value in described if "while distilling" in value]
    assert losses.startswith("Validation loss while distilling")
    assert tasks == "calls while distilling. width: from 0.250 to 0.500; depth: from 0.375 to 0.625"


def test_names_and_samples_are_escaped(tmp_path: Path, report: Callable[[Run], Page]) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    student = replace(WIDTH, name=attack, sample=attack)
    page = report(Run(tmp_path, [student, replace(DEPTH, until=Phase.PRUNE, failure=attack)], name=attack).write())
    html = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<img" not in html
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert page.text.count(attack) >= 5


@pytest.mark.parametrize(
    ("until", "failure", "says"),
    [
        (Phase.DISTILL, "", "It waits for export."),
        (Phase.PRUNE, "", "It waits for distill."),
        (Phase.PRUNE, "the loss became NaN at step 7", "It failed in distill: the loss became NaN at step 7"),
    ],
)
def test_a_run_with_an_unfinished_student_has_a_page(
    until: Phase, failure: str, says: str, tmp_path: Path, report: Callable[[Run], Page]
) -> None:
    phase = "Failed" if failure else "Distilling"
    page = report(Run(tmp_path, [WIDTH, replace(DEPTH, until=until, failure=failure)], phase=phase).write())
    assert says in page.text
    assert f"The run is {phase}, so this page is not complete. A reason." in page.text
    assert "it won back" in page.text  # the other student's verdict stands
    depth = page.tables["figures"][-1]
    assert len(depth) == len(page.tables["figures"][0])
    assert (f"{DEPTH.distilled:.3f}" in depth) == (until is Phase.DISTILL)


def test_a_run_that_only_just_began_has_a_page(tmp_path: Path, report: Callable[[Run], Page]) -> None:
    run = Run(tmp_path, phase="Pending")
    resource = run.resource()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "loss.svg").touch()  # of the run as it was before an edit
    for left_out in ({"status"}, set()):
        kept = {key: value for key, value in resource.items() if key not in left_out}
        if "status" in kept:
            kept["status"] = {
                "phase": "Preparing",
                "steps": [{"name": "prepare", "phase": "prepare", "state": "Running"}],
            }
        run.run_yaml.write_text(yaml.safe_dump(kept))
        page = report(run)
        assert "Not finished" in page.text
        assert not (tmp_path / "report" / "loss.svg").exists()


def test_what_a_damaged_artifact_would_have_told_is_left_out(tmp_path: Path, report: Callable[[Run], Page]) -> None:
    run = Run(tmp_path).write()
    by_name = {step["name"]: step["artifact"] for step in run.steps}
    (run.store / "artifacts" / by_name["distill-depth"] / "history.json").unlink()
    (run.store / "artifacts" / by_name["prune-width"] / "chosen.json").write_bytes(
        b"x" * (run.store / "artifacts" / by_name["prune-width"] / "chosen.json").stat().st_size
    )
    page = report(run)
    assert f"{by_name['distill-depth']} is not whole in the store" in page.text
    assert f"{by_name['prune-width']} has no importance scores that can be read" in page.text
    assert f"{DEPTH.distilled:.3f}" in page.tables["figures"][-1]  # the status still has it


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"distilled": WIDTH.pruned + 0.2}, "worse after distillation than before it"),
        ({"distilled": CORRECTED_LOSS - 0.01}, "as well as its teacher"),
        ({"distilled": WIDTH.pruned - 0.1}, "it won back 12 % of the validation loss"),
    ],
)
def test_verdict_fits_the_figures(
    change: dict[str, float], warning: str, tmp_path: Path, report: Callable[[Run], Page]
) -> None:
    page = report(Run(tmp_path, [replace(WIDTH, **change)]).write())
    assert warning in page.text


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (errno.EROFS, r"^cannot write in .*/report \(read-only file system\); make it writable, or write into another"),
        (errno.ENOSPC, "^the disk is full while writing .*/report; free some space"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_sentence(
    fault: int, sentence: str, tmp_path: Path, report: Callable[[Run], Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path).write()

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(fault, os.strerror(fault), str(tmp_path / "report" / ".report-x"))

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(UserError, match=sentence):
        report(run)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for content in ("kind: Deployment\n", "[1, 2]", "a: [", "\0"):
        (tmp_path / "run.yaml").write_text(content)
        with pytest.raises(UserError, match=r"run\.yaml: .*; give the run.yaml of a work directory"):
            load_run(tmp_path / "run.yaml", tmp_path)
    with pytest.raises(UserError, match="can't be read"):
        load_run(tmp_path / "missing.yaml", tmp_path)


def test_command_line(tmp_path: Path) -> None:
    run = Run(tmp_path).write()
    command = [
        sys.executable,
        "-m",
        "compression_pipeline.report",
        "--run",
        str(run.run_yaml),
        "--store",
        str(run.store),
    ]
    done = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'out' / 'index.html'}\n"
    run.run_yaml.unlink()
    failed = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False)
    assert failed.returncode == 64
    assert failed.stderr.count("\n") == 1


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    run = Run(tmp_path).write()
    code = (
        "import sys; from pathlib import Path; from compression_pipeline.report.write import write_report; "
        f"write_report(Path({str(run.run_yaml)!r}), Path({str(run.store)!r}), Path({str(tmp_path / 'r')!r})); "
        "print([name for name in ('torch', 'transformers', 'compression_operator') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@given(st.sets(st.integers(1, 60)))
def test_layers_are_listed_as_runs_that_say_the_same(numbers: set[int]) -> None:
    said: set[int] = set()
    for part in filter(None, number_runs(sorted(numbers)).split(", ")):
        first, _, last = part.partition(" to ")
        said |= set(range(int(first), int(last or first) + 1))
    assert said == numbers


def test_templates_are_in_the_wheel(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(tmp_path)]
    name = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout.split()[-1]
    with ZipFile(tmp_path / name) as wheel:
        inside = set(wheel.namelist())
    templates = root / "pipeline" / "compression_pipeline" / "report" / "templates"
    assert {f"compression_pipeline/report/templates/{path.name}" for path in templates.iterdir()} <= inside


def test_an_axis_is_gone_through_a_few_times_however_long_it_is(tmp_path: Path) -> None:
    """Of a model of 8 billion parameters it has 14,336 scores in each of 32 layers; once for each score was 20 s."""

    class Scores(list[float]):
        seen = 0

        def __iter__(self) -> Iterator[float]:
            self.seen += 1
            return super().__iter__()

    scores, written = Scores(range(200)), Run(tmp_path).write()
    run = load_run(written.run_yaml, written.store)
    axis = Axis(scores, range(100, 200))
    students = [replace(run.students[0], importance=Importance(hidden=axis, ffn={1: axis}))]
    assert "100 neurons a layer kept" in render(replace(run, students=students), "")
    assert 0 < scores.seen < 30
