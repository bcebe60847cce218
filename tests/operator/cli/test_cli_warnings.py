"""What a job warns of reaches whoever runs the command, once."""

import json
import sys
from pathlib import Path

import pytest
from local_cli import REPORT, Bench, job_command

from compression_operator.cli import report
from compression_operator.cli.__main__ import main
from compression_operator.core import steps

WARN = """
import os, sys
if "finetune" in sys.argv:
    print('{"event": "warning", "time": "2026-11-21T10:00:00Z", "message": "checkpoint 200 is damaged"}', flush=True)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_warning_is_told_once_however_many_attempts_find_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "COMMAND", REPORT)
    monkeypatch.setattr(steps, "FIRST_BACKOFF", steps.FIRST_BACKOFF / 10)
    bench = Bench(tmp_path)
    bench.behave(finetune={"steps": 3, "fail": {"class": "Transient", "message": "no", "attempts": 1}})
    command = (sys.executable, "-c", WARN, *job_command(bench.behaviour))

    def printed() -> list[str]:
        assert main(["run", str(bench.file), "--workdir", str(bench.workdir)], job_command=command) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]

    [line] = printed()
    assert line.endswith("  finetune: warning: checkpoint 200 is damaged")
    logs = list(bench.workdir.glob("jobs/*finetune*/log"))
    assert len(logs) == 2 and all(json.loads(log.read_text().splitlines()[0])["event"] == "warning" for log in logs)
    assert printed() == [], "what an earlier command has told"
