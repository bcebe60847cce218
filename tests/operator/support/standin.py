"""A stand-in for the pipeline: a real process that speaks a job's contract, without torch.

    python standin.py BEHAVIOUR.json PHASE

It reads COMPRESSION_CONFIG, prints JSON-line events, publishes an artifact, writes the termination message, and ends
with the contract's exit codes. BEHAVIOUR.json maps the names of steps to how they behave ("*": all others):

steps: training steps to take (20) · seconds: of one step (0.01) · fail: {"class", "message", "attempts"} what to end
with, in the attempts up to that one · ignore_sigterm: true to go on nevertheless (`<store>/told-to-stop` says that it
was) · escape: true to leave a child in a session of its own · sleep: seconds before anything else · waits: what to say
that the job waits for, for two seconds or until the file `waits_until` is there · until: a file without which the last
step is not taken. In the names of files {attempt} is the attempt's number, and none is waited for longer than HELD.

Training goes on after the last step that any attempt finished (`<store>/work/<fingerprint>/step`); every start is noted
in `<store>/starts`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HELD = 480
"""Seconds."""

CODES = {"Done": 0, "UserError": 64, "Transient": 75, "Interrupted": 143}


class Job:
    """One attempt at one step."""

    def __init__(self, phase: str, behaviour: dict[str, Any]) -> None:
        self.phase = phase
        self.config = json.loads(os.environ["COMPRESSION_CONFIG"])
        self.behaviour = {**behaviour.get("*", {}), **behaviour.get(self.config["step"], {})}
        self.store = Path(self.config["store"])
        self.stopping = threading.Event()

    def event(self, kind: str, **fields: Any) -> None:
        sys.stdout.write(json.dumps({"event": kind, "time": datetime.now(UTC).isoformat(), **fields}) + "\n")
        sys.stdout.flush()

    def end(self, exit_class: str, message: str = "", result: dict[str, Any] | None = None) -> int:
        path = Path(os.environ["COMPRESSION_TERMINATION_MESSAGE"])
        path.write_text(json.dumps({"class": exit_class, "message": message, "result": result or {}}))
        return CODES[exit_class]

    def stop(self, *_: Any) -> None:
        if self.behaviour.get("ignore_sigterm"):
            (self.store / "told-to-stop").touch()
        else:
            self.stopping.set()

    def is_there(self, which: str) -> bool:
        return Path(self.behaviour[which].format(attempt=self.config["attempt"])).exists()

    def watch_parent(self) -> None:
        # Not sys.stdin: its lock, held by a thread, aborts the interpreter's shutdown.
        while os.read(0, 1024):
            pass
        self.stop()

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self.stop)
        if os.environ.get("COMPRESSION_EXIT_WITH_PARENT") == "1":
            threading.Thread(target=self.watch_parent, daemon=True).start()
        self.store.mkdir(parents=True, exist_ok=True)
        with (self.store / "starts").open("a") as file:
            file.write(f"{self.config['step']} {self.config['attempt']} {os.getpid()}\n")
        if self.stopping.wait(self.behaviour.get("sleep", 0)):
            return self.end("Interrupted", "stopped before the first step")
        rounds = 0 if "waits" not in self.behaviour else 4 if "waits_until" not in self.behaviour else 2 * HELD
        for _ in range(rounds):
            self.event("info", message=f"waits for {self.behaviour['waits']}")
            if "waits_until" in self.behaviour and self.is_there("waits_until"):
                break
            time.sleep(0.5)
        if self.behaviour.get("escape"):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        artifact = self.store / "artifacts" / f"{self.phase}-{self.key()}"
        if whole(artifact):
            return self.done(artifact, cached=True)
        fault = self.behaviour.get("fail", {})
        if self.config["attempt"] <= fault.get("attempts", 0):
            if fault["class"] == "Crash":
                sys.stderr.write("Traceback: it broke\n")
                return 1
            return self.end(fault["class"], fault["message"])
        return self.train() or self.publish(artifact)

    def train(self) -> int:
        total = self.behaviour.get("steps", 20)
        work = self.store / "work" / self.config["fingerprint"]
        work.mkdir(parents=True, exist_ok=True)
        reached = work / "step"
        first = int(reached.read_text()) if reached.exists() else 0
        for step in range(first + 1, total + 1):
            if step == total and "until" in self.behaviour:
                self.hold()
            if self.stopping.is_set():
                return self.end("Interrupted", f"stopped at step {step - 1}")
            time.sleep(self.behaviour.get("seconds", 0.01))
            draft = reached.with_suffix(f".{self.config['attempt']}")  # an attempt before may not have ended yet
            draft.write_text(str(step))
            draft.replace(reached)
            self.event("progress", step=step, totalSteps=total, loss=4.0 - step / total, tokensPerSecond=1000.0)
        return 0

    def hold(self) -> None:
        end = time.monotonic() + HELD
        while not self.is_there("until") and time.monotonic() < end:
            if self.stopping.wait(0.01):
                return

    def publish(self, artifact: Path) -> int:
        draft = artifact.with_name(f".{artifact.name}.{os.getpid()}")
        (draft / "model").mkdir(parents=True)
        weights = draft / "model" / "model.safetensors"
        weights.write_bytes(b"weights")
        manifest = {
            "phase": self.phase,
            "key": self.key(),
            "config": self.config,
            "inputs": {},
            "files": {"model/model.safetensors": {"size": weights.stat().st_size, "sha256": "0" * 64}},
            "result": self.result(),
            "metrics": {},
            "versions": {},
            "created": datetime.now(UTC).isoformat(),
        }
        (draft / "manifest.json").write_text(json.dumps(manifest))
        if artifact.exists():  # damaged
            artifact.rename(artifact.with_name(f".damaged-{artifact.name}.{os.getpid()}"))
        draft.rename(artifact)
        return self.done(artifact, cached=False)

    def done(self, artifact: Path, *, cached: bool) -> int:
        result = {**json.loads((artifact / "manifest.json").read_text())["result"], "cached": cached}
        self.event("result", result=result)
        return self.end("Done", result=result)

    def key(self) -> str:
        return {"prepare": "c0ffee" * 5 + "00", "tasks": "7a5c" * 8}.get(self.phase) or self.config["fingerprint"]

    def result(self) -> dict[str, Any]:
        teacher = {
            "family": "Llama",
            "layers": 4,
            "hiddenSize": 128,
            "ffnHiddenSize": 384,
            "attentionHeads": 8,
            "queryGroups": 4,
            "headDim": 16,
            "vocabularySize": 512,
        }
        source = {"source": "file:x", "digest": "0" * 32}
        scores = {"tasks": [], "precision": "FP32"}
        sizes = {"hiddenSize": 96, "ffnHiddenSize": 256, "attentionHeads": 8, "flops": 1e6, "memory": 1_000_000}
        shapes = [{**sizes, "layers": n, "parameters": n * 100_000, "prunedLoss": 5.0 - n / 10} for n in (3, 2)]
        return {
            "prepare": {
                "key": self.key(),
                "teacher": teacher,
                "teacherParameters": 1_000_000,
                "resolvedTeacher": source,
                "resolvedDataset": source,
                "documents": 10,
                "trainTokens": 100_000_000,
                "validationTokens": 100_000,
            },
            "tasks": {"key": self.key(), "harness": "0.4.13"},
            "baseline": scores,
            "baseline-corrected": scores,
            "evaluate": scores,
            "report": {},
            "finetune": {"teacherLoss": 4.0, "correctedTeacherLoss": 3.8, "tokensPerSecond": 1000.0},
            "search": {"shapes": 9, "teacherLoss": 3.8, "validationSequences": 4, "candidates": shapes},
            "prune": {"student": teacher, "parameters": 600_000, "compressionRatio": 0.6, "keptLayers": [1, 2, 4]},
            "distill": {
                "teacherLoss": 3.8,
                "prunedLoss": 4.8,
                "distilledLoss": 3.9,
                "roundedLosses": {"bfloat16": 3.95},
                "tokensPerSecond": 1234.5,
            },
            "export": {
                "parameters": 600_000,
                "dtype": "bfloat16",
                "relativeError": 1e-6,
                "bytes": 2_400_000,
                "sample": "The function returns what it was given.",
            },
        }[self.phase]


def whole(artifact: Path) -> bool:
    """Whether it is published and its files have their sizes."""
    try:
        files = json.loads((artifact / "manifest.json").read_text())["files"]
        return all((artifact / name).stat().st_size == record["size"] for name, record in files.items())
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(Job(sys.argv[2], json.loads(Path(sys.argv[1]).read_text())).run())
