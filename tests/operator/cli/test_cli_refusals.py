"""What `compression run` refuses before anything starts, and in which words."""

import os
import shutil
from pathlib import Path

import pytest
from local_cli import REPORT, Bench

from compression_operator.cli import report
from compression_operator.local import machine
from compression_operator.local.workdir import Workdir, WorkdirError


@pytest.fixture(autouse=True)
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "COMMAND", REPORT)


def test_a_wrong_manifest_gets_a_line_for_each_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    bench.write(students=[{"name": "width", "prune": {"hiddenSize": 200}}], maxParallelJobs=0)
    assert bench.run() == 2
    lines = capsys.readouterr().err.splitlines()
    assert f"{bench.file}: spec.students[0].prune.hiddenSize: 200 is not divisible by 64, nearest: 192 or 256" in lines
    assert any("spec.maxParallelJobs" in line for line in lines)
    assert not bench.workdir.exists()
    assert bench.call("validate", bench.file) == 2
    assert bench.call("plan", bench.file, "--set", "nonsense") == 2


def test_validate_tells_the_faults_of_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    good, wrong = bench.file, [tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "missing.yaml"]
    for file in wrong[:2]:
        file.write_text(good.read_text().replace("hiddenSize: 64", "hiddenSize: 65"))
    assert bench.call("validate", wrong[0], good, *wrong[1:]) == 2
    told = capsys.readouterr()
    assert told.out == f"{good}: demo is valid\n"
    assert [line.partition(":")[0] for line in told.err.splitlines()] == [str(file) for file in wrong]


def test_a_manifest_that_is_for_a_cluster_is_told_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    bench.write(
        teacher={"model": "pvc://models/llama"},
        dataset={"source": "hf://a/b"},
        storage={"persistentVolumeClaim": {"claimName": "store"}},
    )
    for command in ("validate", "plan"):
        assert bench.call(command, bench.file) == 2
        assert capsys.readouterr().err.splitlines() == [
            f"{bench.file}: spec.teacher.model: pvc:// is for clusters; local runs use hf://owner/name or file:path",
            f"{bench.file}: is for a cluster: add --cluster to judge it by the rules of clusters",
        ]
    assert bench.call("validate", "--cluster", bench.file) == 2
    assert "spec.distill.globalBatchSize" in capsys.readouterr().err, "these ask for eight GPUs"
    bench.write()
    assert bench.call("validate", bench.file, "--set", "maxParallelJobs=0") == 2
    assert "--cluster" not in capsys.readouterr().err


def test_arithmetic_that_needs_a_gpu_is_refused_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"steps": 10, "globalBatchSize": 4, "warmupSteps": 2}
    own = {"name": "depth", "prune": {"dropLayers": [3]}, "distill": {**training, "precision": "BF16"}}
    bench = Bench(tmp_path, students=[{"name": "width", "prune": {"hiddenSize": 64}}, own])
    wanted = ["--set", "finetune.precision=BF16"]
    monkeypatch.setattr(machine, "visible_gpus", lambda _: ())
    assert bench.run(*wanted) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{bench.file}: {path}.precision: BF16 needs a GPU and none was found on this machine; set Auto or FP32"
        for path in ("spec.finetune", "spec.students[1].distill")
    ]
    assert not bench.workdir.exists()
    assert bench.call("validate", bench.file, *wanted) == 0, "it may be meant for another machine"
    monkeypatch.setattr(machine, "visible_gpus", lambda _: ("0",))
    assert bench.run(*wanted, "--set", "phases.finetune.gpusPerNode=0") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "spec.finetune.precision: BF16 needs a GPU and spec.phases.finetune.gpusPerNode is 0; set Auto or FP32"
    )
    teacherless = ["--set", "students[1].distill.teacherLogits=Cached", "--set", "phases.logits.gpusPerNode=0"]
    assert bench.run(*teacherless) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "spec.students[1].distill.precision: BF16 needs a GPU and spec.phases.logits.gpusPerNode is 0; set Auto or FP32"
    )
    assert bench.run(*wanted) == 0


def test_a_source_that_is_not_there_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    assert bench.run("--set", "dataset.source=file:texts/*.jsonl") == 2
    assert (
        capsys.readouterr().err
        == f"{bench.file}: spec.dataset.source: {tmp_path / 'texts' / '*.jsonl'} does not exist\n"
    )
    assert not bench.workdir.exists()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    assert bench.run("--set", "dataset.source=file:texts/*.jsonl") == 2
    assert (
        capsys.readouterr().err
        == f"{bench.file}: spec.dataset.source: no file matches {tmp_path / 'texts' / '*.jsonl'}\n"
    )


def test_a_source_that_is_an_empty_folder_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "texts" / "inner").mkdir(parents=True)
    assert bench.run("--set", "dataset.source=file:texts", "--set", "teacher.model=file:texts/inner") == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{bench.file}: spec.teacher.model: {tmp_path / 'texts' / 'inner'} is empty",
        f"{bench.file}: spec.dataset.source: {tmp_path / 'texts'} is empty",
    ]


def test_a_work_directory_has_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    bench.write(name="other")
    assert bench.run() == 2
    assert f"{bench.workdir} belongs to run demo, the manifest is of other" in capsys.readouterr().err


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize("workdir", [".", "linked", "out/demo"])
def test_a_manifest_is_not_overwritten_by_the_run_it_describes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workdir: str
) -> None:
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "run.yaml").symlink_to(bench.file)
    (tmp_path / "out" / "demo").mkdir(parents=True)
    bench.file.write_text(f"# mine\n{bench.file.read_text()}")
    (tmp_path / "out" / "demo" / "run.yaml").write_text(
        bench.file.read_text().replace("file:", "file:../../")  # its sources lie where they did
    )
    file = Path("out/demo/run.yaml" if workdir == "out/demo" else "run.yaml")
    given = [] if workdir == "out/demo" else ["--workdir", workdir]
    before = everything(tmp_path)
    assert bench.call("run", file, *given, "--set", "distill.steps=77") == 2
    assert capsys.readouterr().err == (
        f"{file} would be overwritten by the run that {workdir} keeps in run.yaml; use another --workdir\n"
    )
    assert everything(tmp_path) == before


def test_a_directory_whose_run_yaml_is_a_manifest_is_no_work_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(bench.file.read_text())
    (tmp_path / "store" / "artifacts").mkdir(parents=True)
    for manifest in (bench.file.read_text(), bench.file.read_text().replace("metadata:", "metadata: {uid: ''}\nold:")):
        bench.file.write_text(manifest)
        before = everything(tmp_path)
        for arguments in (
            ("run", other, "--workdir", tmp_path),
            ("plan", other, "--workdir", tmp_path),
            ("status", "--workdir", tmp_path),
            ("report", "--workdir", tmp_path),
            ("logs", "prepare", "--workdir", tmp_path),
        ):
            assert bench.call(*arguments) == 2
            assert capsys.readouterr().err == (
                f"{bench.file} is a manifest, not the run of a work directory; use another one (--workdir)\n"
            )
        assert bench.call("gc", "--workdir", tmp_path) == 2
        assert capsys.readouterr().err == f"{tmp_path} contains no run; correct --workdir\n"
        assert everything(tmp_path) == before


def test_a_work_directory_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    bench.workdir = tmp_path / "text.txt" / "work"
    assert bench.run() == 2
    assert capsys.readouterr().err.endswith("(not a directory); choose another folder with --workdir\n")


def test_a_work_directory_that_is_read_only(tmp_path: Path) -> None:
    readonly = tmp_path / "readonly"
    readonly.mkdir(mode=0o555)
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(65534)  # root writes everywhere
    try:
        with pytest.raises(WorkdirError, match=r"\(permission denied\); choose another folder with --workdir$"):
            Workdir(readonly).make()
    finally:
        if privileged:
            os.seteuid(0)


def test_a_store_that_cannot_be_used_is_named_as_it_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path)
    assert bench.run("--store", "text.txt/shared") == 2
    said = capsys.readouterr().err
    assert said == "cannot write in the store text.txt/shared (not a directory); choose another folder with --store\n"
    readonly = tmp_path / "readonly"
    readonly.mkdir(mode=0o555)
    privileged = os.geteuid() == 0
    tmp_path.chmod(0o777)
    if privileged:
        os.seteuid(65534)  # root writes everywhere
    try:
        with pytest.raises(WorkdirError) as refused:
            Workdir(tmp_path / "mine").make(Path("readonly"))
    finally:
        if privileged:
            os.seteuid(0)
    why = "cannot write in the store readonly (permission denied); choose another folder with --store"
    assert str(refused.value) == why
    bench.behave(finetune={"fail": {"class": "UserError", "message": "no", "attempts": 1}})
    assert bench.run("--store", "shared") == 1
    assert capsys.readouterr().err.endswith(f"--workdir {bench.workdir} --store shared\n")
    shutil.rmtree(tmp_path / "shared")
    assert bench.run() == 2
    said = capsys.readouterr().err
    assert said == f"the store {tmp_path / 'shared'} is gone; mount it, or use another --store\n"


def test_validate_tells_what_the_teacher_of_this_machine_does_not_allow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As plan does; of a teacher that is elsewhere it says nothing."""
    student = {"name": "width", "prune": {"hiddenSize": 256}}
    bench = Bench(tmp_path, students=[student])
    told = f"{bench.file}: spec.students[0].prune.hiddenSize: 256 is more than the teacher's 128"
    for command in ("validate", "plan"):
        assert bench.call(command, bench.file) == 2
        shown = capsys.readouterr()
        assert [line for line in shown.err.splitlines() if line.startswith(told)] and "is valid" not in shown.out
    bench.write(students=[{"name": "small", "prune": {"target": {"ratio": 900}}}])
    assert bench.call("validate", bench.file) == 2
    assert "spec.students[0].prune.target: no shape has " in capsys.readouterr().err
    bench.write(students=[student], teacher={"model": "hf://owner/model"})
    assert bench.call("validate", bench.file) == 0
    bench.write(students=[student])
    (tmp_path / "teacher" / "config.json").write_text('{"model_type": "mamba"}')
    assert bench.call("validate", bench.file) == 2
    assert f"{bench.file}: spec.teacher.model: " in capsys.readouterr().err
    (tmp_path / "teacher" / "config.json").unlink()
    (tmp_path / "teacher" / "model.safetensors").write_text("prepare tells what is missing")
    assert bench.call("validate", bench.file) == 0


def test_a_machine_is_judged_by_the_gpus_that_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs split a model over those: no GPUs, one rank."""
    bench = Bench(tmp_path, phases={"distill": {"gpusPerNode": 8, "parallelism": {"tensor": 8}}})
    for gpus, code in (((), 0), (tuple("01"), 0), (tuple("01234567"), 2)):
        monkeypatch.setattr(machine, "visible_gpus", lambda _, found=gpus: found)
        for command in (["validate"], ["plan", "--workdir", bench.workdir]):
            assert bench.call(*command, bench.file) == code
        assert ("spec.phases.distill.parallelism.tensor: 8 does not" in capsys.readouterr().err) == (code == 2)
    too_few = ["--set", "phases.distill.gpusPerNode=2"]
    monkeypatch.setattr(machine, "visible_gpus", lambda _: ())
    assert bench.call("plan", bench.file, "--workdir", bench.workdir, "--gpu", "H100", *too_few) == 0
    assert "2 (tensor 2)" in capsys.readouterr().out
