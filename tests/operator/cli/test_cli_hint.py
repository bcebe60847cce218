"""The command that `status` names goes on with the run, whatever its words."""

import shlex
from pathlib import Path

import pytest
from local_cli import REPORT, Bench, job_command

from compression_operator.api.status import RunPhase
from compression_operator.cli import report
from compression_operator.cli.__main__ import main
from compression_operator.local.workdir import Workdir


def test_what_status_names_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "COMMAND", REPORT)
    bench, store = Bench(tmp_path), tmp_path / "shared store"
    bench.workdir = tmp_path / "a work's folder"
    changes = ["distill.steps=7", "dataset.textColumn=the text", "suspend=true"]
    options = [word for change in changes for word in ("--set", change)]
    assert bench.run("--store", store, *options) == 1
    assert bench.status()["phase"] == RunPhase.SUSPENDED
    capsys.readouterr()
    assert bench.call("status", "--workdir", bench.workdir) == 0
    headline = capsys.readouterr().out.splitlines()[0]
    hint = shlex.split(headline.partition("continue with: ")[2].removesuffix(")"))
    assert hint[:1] == ["compression"]
    assert main([*hint[1:], "--set", "suspend=false"], job_command=job_command(bench.behaviour)) == 0
    run = Workdir(bench.workdir).read()
    assert run and run.spec.distill and run.spec.distill.steps == 7 and run.spec.dataset.text_column == "the text"
    assert list(store.glob("artifacts/export-*"))


def test_without_a_word_of_the_command_that_began_the_folder_is_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    bench.workdir = tmp_path / "a folder"
    assert bench.run("--set", "suspend=true") == 1
    (bench.workdir / "invocation.json").unlink()
    capsys.readouterr()
    assert bench.call("status", "--workdir", bench.workdir) == 0
    assert f"continue with: compression run FILE --workdir '{bench.workdir}')" in capsys.readouterr().out
