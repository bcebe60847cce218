"""The `compression` command over the stand-in, in this process or in one of its own.

python local_cli.py BEHAVIOUR.json ARGUMENTS...
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.append(str(Path(__file__).parents[3]))  # a process of its own is not told by pytest where `tests` is

from local_jobs import STANDIN, manifest

from compression_operator.cli import report
from compression_operator.cli.__main__ import main

REPORT = (
    sys.executable,
    "-c",
    "import sys, pathlib; out = pathlib.Path(sys.argv[-1]); out.mkdir(exist_ok=True); (out / 'index.html').touch()",
)
"""Stands for the report's program, which imports more than these tests have time for."""


CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 8,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
}
"""Of the teacher, whose weights nobody reads."""


class Bench:
    """A folder with a manifest, its sources, and a work directory."""

    def __init__(self, root: Path, **spec: Any) -> None:
        self.root = root
        self.file = root / "run.yaml"
        self.workdir = root / "work"
        self.store = self.workdir / "store"
        self.behaviour = root / "behaviour.json"
        (root / "teacher").mkdir()
        (root / "teacher" / "config.json").write_text(json.dumps(CONFIG))
        (root / "text.txt").write_text("Once upon a time.")
        self.write(**spec)
        self.behave()

    def write(self, name: str = "demo", **spec: Any) -> None:
        training = {"steps": 10, "globalBatchSize": 4, "warmupSteps": 2}
        wanted = manifest(**{"finetune": training, "distill": training, **spec})
        wanted["metadata"]["name"] = name
        self.file.write_text(yaml.safe_dump(wanted))

    def behave(self, **steps: Any) -> None:
        """See standin.py; `any` stands for all steps not named."""
        named = {name.replace("_", "-"): value for name, value in steps.items() if name != "any"}
        self.behaviour.write_text(json.dumps(named | {"*": {"steps": 3, "seconds": 0} | steps.get("any", {})}))

    def call(self, *arguments: str | Path) -> int:
        """Run the command in this process; returns its exit code."""
        return main([str(a) for a in arguments], job_command=job_command(self.behaviour))

    def run(self, *arguments: str | Path) -> int:
        return self.call("run", self.file, "--workdir", self.workdir, *arguments)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Run `compression run` in a process of its own."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    def command(self, *arguments: str | Path) -> list[str]:
        """What runs `compression run` in a process of its own."""
        command = [sys.executable, __file__, self.behaviour, "run", self.file, "--workdir", self.workdir, *arguments]
        return [str(a) for a in command]

    def starts(self) -> list[str]:
        """`step attempt` of every job that was started, in order."""
        file = self.store / "starts"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.rsplit(" ", 1)[0] for line in lines]

    def pids(self) -> list[int]:
        file = self.store / "starts"
        return [int(line.rsplit(" ", 1)[1]) for line in file.read_text().splitlines()] if file.exists() else []

    def status(self) -> dict[str, Any]:
        return yaml.safe_load((self.workdir / "run.yaml").read_text())["status"]

    def steps(self) -> dict[str, dict[str, Any]]:
        return {step["name"]: step for step in self.status()["steps"]}


def job_command(behaviour: Path) -> tuple[str, ...]:
    return (sys.executable, str(STANDIN), str(behaviour))


if __name__ == "__main__":
    report.COMMAND = REPORT
    sys.exit(main(sys.argv[2:], job_command=job_command(Path(sys.argv[1]))))
