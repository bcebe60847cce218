"""The `compression` command, in this process: what it runs again and what not, what it prints, what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_cli import REPORT, Bench

from compression_operator.api.run import CompressionRun
from compression_operator.cli import report
from compression_operator.cli.__main__ import main
from compression_operator.core import steps

ALL = [
    "prepare 1",
    "finetune 1",
    "prune-width 1",
    "prune-depth 1",
    "distill-width 1",
    "distill-depth 1",
    "export-width 1",
    "export-depth 1",
]


@pytest.fixture(autouse=True)
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "COMMAND", REPORT)


def test_a_run_from_manifest_to_students(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    assert sorted(bench.starts()) == sorted(ALL)
    printed = capsys.readouterr().out
    assert "prepare: starting" in printed and "export-depth: done in" in printed
    for figure in ("600,000", "60.0%", "4.0000", "3.8000", "4.8000", "3.9500", "85.0%"):
        assert figure in printed
    assert "width: The function returns what it was given." in printed
    assert f"checkpoint of depth: {bench.workdir / 'students' / 'depth'}" in printed
    assert f"report: {bench.workdir / 'report' / 'index.html'}" in printed
    assert bench.status()["phase"] == "Succeeded"
    link = bench.workdir / "students" / "width"
    assert link.is_symlink() and not link.readlink().is_absolute() and link.is_dir()


def test_again_takes_nothing_but_a_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    written = (bench.workdir / "run.yaml").read_bytes()
    capsys.readouterr()
    assert bench.run() == 0
    printed = capsys.readouterr().out
    for step in (start.split()[0] for start in ALL):
        assert f"{step}: cached" in printed
    assert len(bench.starts()) == len(ALL)
    assert (bench.workdir / "run.yaml").read_bytes() == written


def test_an_edit_runs_what_depends_on_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    assert bench.run("--set", "distill.steps=12") == 0
    assert sorted(start.split()[0] for start in bench.starts()[len(ALL) :]) == [
        "distill-depth",
        "distill-width",
        "export-depth",
        "export-width",
    ]
    stored = yaml.safe_load((bench.workdir / "run.yaml").read_text())
    assert stored["metadata"]["generation"] == 2 and stored["spec"]["distill"]["steps"] == 12
    assert stored["status"]["observedGeneration"] == 2


def test_a_changed_source_runs_prepare_again_and_equal_content_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    (tmp_path / "text.txt").write_text("Twice upon a time.")
    capsys.readouterr()
    assert bench.run() == 0
    # The stand-in finds the same content whatever the text, so all that rests on it stands.
    assert bench.starts()[len(ALL) :] == ["prepare 2"]
    # That it does is known, and said, once prepare has found it.
    printed = capsys.readouterr().out
    assert printed.index("prepare: starting") < printed.index("prepare: cached") < printed.index("finetune: cached")
    assert bench.run("--set", "distill.steps=12") == 0
    printed = capsys.readouterr().out
    assert "prune-depth: cached" in printed
    assert "distill-depth: cached" not in printed and "export-depth: cached" not in printed


def test_a_student_less_leaves_no_link_and_one_more_is_made(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    width, depth = ({"name": n, "prune": p} for n, p in (("width", {"hiddenSize": 64}), ("depth", {"dropLayers": [3]})))
    bench.write(students=[width])
    assert bench.run() == 0
    assert [path.name for path in (bench.workdir / "students").iterdir()] == ["width"]
    bench.write(students=[depth])
    assert bench.run() == 0
    assert [path.name for path in (bench.workdir / "students").iterdir()] == ["depth"]
    assert not any(start.startswith(("prepare", "finetune")) for start in bench.starts()[5:])


def test_what_is_gone_from_the_store_is_made_again_where_it_is_needed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    artifacts = {name: step["artifact"] for name, step in bench.steps().items()}
    for name in ("export-width", "distill-width", "prune-depth"):
        shutil.rmtree(bench.store / "artifacts" / artifacts[name])
    assert bench.run() == 0
    # prune-depth is gone too, but nobody needs it.
    assert [start.split()[0] for start in bench.starts()[len(ALL) :]] == ["distill-width", "export-width"]
    assert (bench.store / "artifacts" / artifacts["export-width"]).is_dir()


def test_what_is_damaged_in_the_store_is_made_again_where_it_is_needed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    artifacts = {name: bench.store / "artifacts" / step["artifact"] for name, step in bench.steps().items()}
    weights = {name: path / "model" / "model.safetensors" for name, path in artifacts.items()}
    weights["export-width"].write_bytes(b"")
    weights["prune-depth"].unlink()  # which nobody needs
    assert bench.run() == 0
    assert [start.split()[0] for start in bench.starts()[len(ALL) :]] == ["export-width"]
    assert weights["export-width"].read_bytes() == b"weights"
    assert bench.run() == 0
    assert len(bench.starts()) == len(ALL) + 1
    # A step that has to run after an edit does not take what is damaged for its input.
    weights["distill-width"].write_bytes(b"weight")
    assert bench.run("--set", "export.dtype=float32") == 0
    assert sorted(start.split()[0] for start in bench.starts()[len(ALL) + 1 :]) == [
        "distill-width",
        "export-depth",
        "export-width",
        "prune-depth",
    ]


def test_a_user_s_mistake_fails_its_student_and_the_next_run_tries_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    bench.behave(distill_width={"fail": {"class": "UserError", "message": "loss is NaN at step 7", "attempts": 1}})
    assert bench.run() == 1
    said = capsys.readouterr()
    assert "distill-width failed: loss is NaN at step 7" in said.err
    log = next(line for line in said.err.splitlines() if "its log: " in line).split(": ", 1)[1]
    assert Path(log).is_file()
    assert f"once the cause is fixed, try again with: compression run {bench.file}" in said.err
    states = {name: step["state"] for name, step in bench.steps().items()}
    assert states["distill-width"] == "Failed" and states["export-width"] == "Skipped"
    assert states["export-depth"] == "Succeeded", "the other student goes on"
    assert "checkpoint of depth" in said.out and "checkpoint of width" not in said.out
    assert bench.run() == 0
    assert [start for start in bench.starts() if "distill-width" in start] == ["distill-width 1", "distill-width 2"]


def test_a_passing_fault_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "FIRST_BACKOFF", steps.timedelta(seconds=1))
    bench = Bench(tmp_path)
    bench.behave(finetune={"fail": {"class": "Transient", "message": "a connection was lost", "attempts": 1}})
    assert bench.run() == 0
    assert [start for start in bench.starts() if "finetune" in start] == ["finetune 1", "finetune 2"]


def test_a_student_that_cannot_be_made_is_told_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    bench.write(students=[{"name": "width", "prune": {"hiddenSize": 4096}}])
    assert bench.run() == 1
    assert bench.starts() == ["prepare 1"]
    assert "spec.students[0].prune.hiddenSize: 4096 is more than the teacher's 128" in capsys.readouterr().err


def test_a_run_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    (bench.workdir / "run.yaml").write_text("spec: [1, 2")
    assert bench.run() == 2
    assert "run.yaml: cannot be read" in capsys.readouterr().err
    (bench.workdir / "run.yaml").unlink()
    assert bench.run() == 0, "published artifacts are found again"
    assert all(step["cached"] for step in bench.steps().values())


def test_runs_share_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    bench.store = tmp_path / "shared"
    assert bench.run("--store", bench.store) == 0
    first = bench.workdir
    bench.write(name="second")
    bench.workdir = tmp_path / "work2"
    assert bench.run("--store", bench.store) == 0
    assert all(step["cached"] for step in bench.steps().values())
    assert (bench.workdir / "store").readlink() == bench.store
    # The work directory remembers its store.
    assert bench.run() == 0
    assert bench.call("status", "--workdir", first) == 0
    bench.workdir = tmp_path / "work3"
    assert bench.run() == 0
    assert bench.run("--store", bench.store) == 2
    assert "holds this run's artifacts already; leave out --store" in capsys.readouterr().err


def test_status_is_the_resource(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    capsys.readouterr()
    assert bench.call("status", "--workdir", bench.workdir, "-o", "json") == 0
    as_json = json.loads(capsys.readouterr().out)
    assert bench.call("status", "--workdir", bench.workdir, "-o", "yaml") == 0
    assert yaml.safe_load(capsys.readouterr().out) == as_json
    run = CompressionRun.model_validate(as_json)
    losses = run.status.students[0].validation_loss
    assert (losses.distilled, losses.exported, losses.final) == (3.9, 3.95, 3.95)
    assert bench.call("status", "--workdir", bench.workdir) == 0
    shown = capsys.readouterr().out
    assert "demo: Succeeded" in shown and "distill-width" in shown and "85.0%" in shown  # of the exported weights


def test_which_work_directory_is_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path)
    assert bench.call("status") == 2
    assert capsys.readouterr().err == "out/ contains no run; name its work directory with --workdir\n"
    assert bench.call("run", bench.file) == 0
    assert bench.call("status") == 0, "the only one in out/"
    bench.write(name="second")
    assert bench.call("run", bench.file) == 0
    capsys.readouterr()
    assert bench.call("status") == 2
    assert capsys.readouterr().err == "out/ contains several runs; choose one with --workdir: out/demo, out/second\n"
    assert bench.call("status", "--workdir", tmp_path / "teacher") == 2
    assert "teacher contains no run; create one with `compression run FILE --workdir" in capsys.readouterr().err


def test_a_clusters_manifest_is_planned_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[3] / "examples" / "demo-cluster.yaml"
    assert main(["plan", str(example)]) == 2
    assert "pvc:// is for clusters" in capsys.readouterr().err
    assert main(["plan", str(example), "--cluster", "-o", "json"]) == 0
    names = [step["name"] for step in json.loads(capsys.readouterr().out)["steps"]]
    assert names[:2] == ["prepare", "finetune"] and len(names) == 8


def test_plan_knows_what_the_work_directory_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    arguments = ("plan", bench.file, "--workdir", bench.workdir)
    assert bench.call(*arguments) == 0
    before = capsys.readouterr().out
    assert before.count("unknown until prepare has run") == 7
    assert bench.run() == 0
    capsys.readouterr()
    assert bench.call(*arguments, "-o", "json") == 0
    planned = {step["name"]: step for step in json.loads(capsys.readouterr().out)["steps"]}
    assert {n: s["fingerprint"] for n, s in planned.items()} == {n: s["fingerprint"] for n, s in bench.steps().items()}
    assert planned["export-width"]["after"] == ["prepare", "finetune", "prune-width", "distill-width"]
    (tmp_path / "text.txt").write_text("Something else.")
    assert bench.call(*arguments, "-o", "yaml") == 0
    changed = {step["name"]: step for step in yaml.safe_load(capsys.readouterr().out)["steps"]}
    assert changed["prepare"]["fingerprint"] != planned["prepare"]["fingerprint"]
    assert changed["finetune"]["fingerprint"] is None


def test_logs_for_people_and_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    capsys.readouterr()
    arguments = ("logs", "distill-width", "--workdir", bench.workdir)
    assert bench.call(*arguments) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith("step 1/3  loss 3.667  1,000 tokens/s")
    assert bench.call(*arguments, "--raw") == 0
    events: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["progress"] * 3 + ["result"]
    assert bench.call(*arguments, "--follow", "--raw") == 0, "ends, for nothing more can come"
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == events
    assert bench.call("logs", "distill-wide", "--workdir", bench.workdir) == 2
    assert "there is no step distill-wide; the steps are prepare, finetune," in capsys.readouterr().err


def test_report_is_built_once_and_anew_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    page = bench.workdir / "report" / "index.html"
    built = page.stat().st_mtime_ns
    assert bench.run() == 0
    assert page.stat().st_mtime_ns == built
    capsys.readouterr()
    assert bench.call("report", "--workdir", bench.workdir) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.stat().st_mtime_ns > built


@pytest.mark.parametrize(("phase", "edit"), [("prune", "dataset.sequenceLength=32"), ("distill", "distill.steps=11")])
def test_what_an_edit_that_fails_leaves_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, edit: str
) -> None:
    """The page said Succeeded, and the links led to the students as they were before it."""
    code = "import pathlib, sys; out = pathlib.Path(sys.argv[-1]); out.mkdir(exist_ok=True)\n"
    code += "(out / 'index.html').write_bytes(pathlib.Path(sys.argv[2]).read_bytes())"
    monkeypatch.setattr(report, "COMMAND", (sys.executable, "-c", code))
    bench = Bench(tmp_path)
    page, students = bench.workdir / "report" / "index.html", bench.workdir / "students"
    fault = {"fail": {"class": "UserError", "message": "NaN", "attempts": 99}}
    bench.behave(**{f"{phase}_width": fault, f"{phase}_depth": fault})
    assert bench.run() == 1
    assert not page.exists(), "nothing was made yet, so there is nothing to look at"
    bench.behave()
    assert bench.run() == 0
    assert len(list(students.iterdir())) == 2
    bench.behave(**{f"{phase}_width": fault, f"{phase}_depth": fault})
    assert bench.run("--set", edit) == 1
    assert yaml.safe_load(page.read_text())["status"] == bench.status()
    assert bench.status()["phase"] == "Failed" and list(students.iterdir()) == []


def test_a_report_that_cannot_be_built_does_not_fail_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "COMMAND", (sys.executable, "-c", "import sys; sys.exit('no fonts')"))
    bench = Bench(tmp_path)
    assert bench.run() == 0
    assert "the report could not be built: no fonts" in capsys.readouterr().err
    assert bench.call("report", "--workdir", bench.workdir) == 1


def test_a_suspended_manifest_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    bench.write(suspend=True)
    assert bench.run() == 1
    assert "suspended; set spec.suspend to false and run again" in capsys.readouterr().err
    assert bench.starts() == []
    assert bench.run("--set", "suspend=false") == 0


def test_the_command_starts_light(tmp_path: Path) -> None:
    """Neither torch nor the cluster's libraries: a typing error is answered at once."""
    bench = Bench(tmp_path)
    code = (
        "import sys\nfrom compression_operator.cli.__main__ import main\n"
        f"main(['plan', {str(bench.file)!r}]); main(['status', '--workdir', {str(tmp_path)!r}])\n"
        "import compression_operator.cli.run\n"
        "print([m for m in ('torch', 'kopf', 'kubernetes', 'transformers', 'numpy', 'prometheus_client')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["frobnicate"])
    assert refused.value.code == 2
    with pytest.raises(SystemExit) as told:
        main(["--version"])
    assert told.value.code == 0 and capsys.readouterr().out.startswith("compression ")
