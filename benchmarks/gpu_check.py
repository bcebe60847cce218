"""What only a GPU can show, in at most six minutes on a bare machine with one GPU and no network: `make gpu-check`.

    python benchmarks/gpu_check.py --output DIR [--budget 360] [--part demo ...]
    python benchmarks/gpu_check.py --output DIR --cpu       # the same parts at toy sizes where there is no GPU

1. step: a distillation step of 8B to 4B at 8,192 tokens with random weights: speed, MFU, memory; with layers
   recomputed, too. Then with fewer layers, so that all variants fit, beside ModelOpt's loss and the naive loop.
2. importance: on all axes, beside a plain forward pass.
3. profile: the dearest operations of a step.
4. demo: the demo's run in bfloat16 through every phase beside the same in float32 on the CPU; losses within `TOLERANCE`
   of each other, and export's own proof. Then twice with `deterministic`, once of them interrupted: equal to the last
   bit.

Each part is a process of its own, and one that fails leaves the others their turn. `DIR/results.json` has everything,
`DIR/table.md` what `benchmarks/README.md` quotes. Exit code 1: something failed, or the time was over.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from gpu_table import table

HERE = Path(__file__).parent
ROOT = HERE.parent

TOLERANCE = 0.02
"""Largest difference of a loss in bfloat16 from that in float32, as a share of it."""

EIGHT_B = {
    "hidden": 4096, "ffn": 14336, "heads": 32, "groups": 8, "vocabulary": 128256, "sequence": 8192,
    "student-hidden": 3072, "student-ffn": 9216, "micro-batch": 1,
}  # fmt: skip
"""Llama-3.1-8B, and the student of the Llama-3.1-Minitron post's width (arXiv 2408.11796, table 3), but for layers."""
TOY = {"layers": 1, "vocabulary": 512, "sequence": 32, "micro-batch": 2, "rounds": 1, "threads": 1}


Running: TypeAlias = "Iterator[subprocess.Popen[bytes]]"


INTERRUPTED = 130
"""Exit code of a run that Ctrl-C stopped."""


class Failed(Exception):
    """A part that did not show what it is there for, or did not end."""


@dataclass
class Clock:
    """The time that is left for all parts."""

    ends: float

    def left(self) -> float:
        """Seconds. Raises Failed where there are none."""
        left = self.ends - time.monotonic()
        if left <= 0:
            raise Failed("the time was over before it; raise --budget, or choose it alone by --part")
        return left


@dataclass(frozen=True)
class Check:
    """Where and how the parts run."""

    output: Path
    cpu: bool
    clock: Clock

    def python(self, *arguments: object) -> str:
        """What a Python program prints. Raises Failed with the end of what it said."""
        try:
            done = subprocess.run(  # noqa: S603 - our own programs
                [sys.executable, *map(str, arguments)],
                capture_output=True,
                text=True,
                timeout=self.clock.left(),
                check=False,
                env=environment(),
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{arguments[0]} was not done when the time was over") from None
        if done.returncode:
            raise Failed(f"{arguments[0]} ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}")
        return done.stdout

    def measured(self, program: str, sizes: Mapping[str, int], *more: str) -> dict[str, Any]:
        """The JSON of one of the benchmarks."""
        options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
        return json.loads(self.python(HERE / program, "--json", *options, *more).splitlines()[-1])


def environment(**more: str) -> dict[str, str]:
    """This process's, with the checkout's packages first: nothing has to be installed."""
    paths = [str(ROOT / "operator"), str(ROOT / "pipeline"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


def main() -> int:
    """Run the parts, write what they found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=360, help="seconds for all parts")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; default: all")
    parser.add_argument("--cpu", action="store_true", help="toy sizes on the CPU: shows that the script works")
    chosen = parser.parse_args()
    if lacks := missing():
        sys.stderr.write(f"not installed here: {lacks}; bring it along by `make gpu-wheels`\n")
        return 2
    if not chosen.cpu and not has_gpu():
        sys.stderr.write("torch finds no GPU here; --cpu tries the script at toy sizes\n")
        return 2
    chosen.output.mkdir(parents=True, exist_ok=True)
    check = Check(chosen.output.resolve(), chosen.cpu, Clock(time.monotonic() + chosen.budget))
    results: dict[str, Any] = {}
    for name in chosen.part or PARTS:
        started = time.monotonic()
        try:
            found = PARTS[name](check)
        except Failed as error:
            found = {"failed": str(error)}
        results[name] = found | {"seconds": round(time.monotonic() - started, 1)}
        sys.stdout.write(f"{name}: {found.get('failed', 'done')} ({results[name]['seconds']} s)\n")
        sys.stdout.flush()
        # At once, and anew each time: a machine that is taken away leaves what was measured by then.
        (check.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (check.output / "table.md").write_text(table(results))
    return int(any("failed" in found for found in results.values()))


def missing() -> str:
    """The first package that cannot be imported, of those that a run or a benchmark needs; empty if there is none."""
    asked = (
        "from compression_pipeline.megatron.engine import preload; preload(); "
        "import compression_operator.cli.run, liger_kernel, transformers"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False, env=environment())  # noqa: S603
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def has_gpu() -> bool:
    """Whether torch finds one; it is asked in a process of its own, which leaves no memory taken on the GPU."""
    asked = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked], check=False, env=environment()).returncode == 0  # noqa: S603


def demo(check: Check) -> dict[str, Any]:
    """The demo on both devices, and whether an interruption changes a bit."""
    text = ROOT / "examples" / "demo" / "corpus.py"
    check.python(text)
    losses = demo_losses(check)
    furthest = max((abs(a / b - 1), name) for name, (a, b) in losses.items())
    if furthest[0] > TOLERANCE:
        raise Failed(f"{furthest[1]} is {losses[furthest[1]]} on GPU and CPU: {furthest[0]:.1%} apart")
    clean(check, "whole")
    whole = finished(check, "whole", deterministic=True)
    broken = interrupted(check)
    if whole != broken:
        raise Failed("with deterministic: true, students of a run that was interrupted are others")
    return {"losses": losses, "furthest": furthest[0], "interruptedIsEqual": True}


def demo_losses(check: Check) -> dict[str, tuple[float, float]]:
    """By student and what is measured: the loss on the GPU, and on the CPU."""
    clean(check, "gpu", "cpu")
    with ExitStack() as stack:
        runs = {device: stack.enter_context(started(check, device, gpu=device == "gpu")) for device in ("gpu", "cpu")}
        for device, process in runs.items():
            wait(check, process, device)
    of = {device: status(check, device) for device in runs}
    names = [(one["name"], kind) for one in of["cpu"] for kind in ("pruned", "distilled", "exported")]
    return {
        f"{name} {kind}": tuple(  # type: ignore[misc]  # two of them
            next(one for one in of[device] if one["name"] == name)["validationLoss"][kind] for device in runs
        )
        for name, kind in names
    }


def clean(check: Check, *names: str) -> None:
    """Remove what an earlier check has left: a run of the same name takes its artifacts, whatever code made them."""
    for name in names:
        shutil.rmtree(check.output / name, ignore_errors=True)


def finished(check: Check, name: str, **settings: Any) -> dict[str, str]:
    """SHA-256 of the students of a run that nothing interrupts."""
    with started(check, name, **settings) as process:
        wait(check, process, name)
    return students(check, name)


def interrupted(check: Check) -> dict[str, str]:
    """SHA-256 of the students of one that is interrupted after the first checkpoint of its training, and goes on."""
    folder = check.output / "broken" / "store" / "work"
    clean(check, "broken")
    with started(check, "broken", deterministic=True) as process:
        while process.poll() is None and not any(folder.glob("*/*/checkpoints/step-????????")):
            check.clock.left()
            time.sleep(0.05)
        if process.poll() is not None:
            raise Failed("the run that was to be interrupted ended before its first checkpoint")
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=check.clock.left())
    if code != INTERRUPTED or students(check, "broken"):
        raise Failed(f"the run that was to be interrupted ended with {code}, not {INTERRUPTED}")
    return finished(check, "broken", deterministic=True)


@contextmanager
def started(check: Check, name: str, *, gpu: bool = True, deterministic: bool = False) -> Running:
    """A run of the demo in a folder of its own; it is stopped where it outlasts this block."""
    manifest = check.output / f"{name}.yaml"
    manifest.write_text(yaml.safe_dump(demo_manifest(toy=check.cpu, deterministic=deterministic)))
    command = [sys.executable, "-m", "compression_operator.cli", "run", manifest, "--workdir", check.output / name]
    hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    with (check.output / f"{name}.log").open("a") as log:
        process = subprocess.Popen(  # noqa: S603 - our own program
            list(map(str, command)), stdout=log, stderr=log, env=environment(**hidden)
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def demo_manifest(*, toy: bool, deterministic: bool) -> dict[str, Any]:
    """The demo's, without tasks: lm-eval is not on a bare machine."""
    manifest = yaml.safe_load((ROOT / "examples" / "demo.yaml").read_text())
    spec = manifest["spec"]
    del spec["evaluate"]
    spec["teacher"]["model"] = f"file:{ROOT / 'examples' / 'demo' / 'teacher'}"
    spec["dataset"]["source"] = f"file:{ROOT / 'out' / 'demo-input' / 'dataset'}"
    steps = 4 if toy else 60
    for phase in ("finetune", "distill"):
        spec[phase] |= {"steps": steps, "warmupSteps": 2, "checkpointInterval": steps // 2, "validationInterval": steps}
        spec[phase]["deterministic"] = deterministic
    if toy:
        spec["students"] = spec["students"][:1]
        spec["students"][0]["prune"]["calibrationSamples"] = 16
    return manifest


def wait(check: Check, process: "subprocess.Popen[bytes]", name: str) -> None:
    """Until a run has ended well."""
    try:
        code = process.wait(timeout=check.clock.left())
    except subprocess.TimeoutExpired:
        raise Failed(f"the run {name} was not done when the time was over") from None
    if code:
        raise Failed(f"the run {name} ended with {code}: {(check.output / f'{name}.log').read_text()[-1500:]}")


def status(check: Check, name: str) -> Sequence[Any]:
    """The students in a run's status."""
    return yaml.safe_load((check.output / name / "run.yaml").read_text())["status"]["students"]


def students(check: Check, name: str) -> dict[str, str]:
    """By student: SHA-256 of its weights."""
    found = (check.output / name / "students").glob("*/model.safetensors")
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def step(check: Check) -> dict[str, Any]:
    """A whole step of 8B to 4B, and one of fewer layers beside the others."""
    if check.cpu:
        return {"whole": check.measured("distill_parts.py", TOY), "beside": beside(check, TOY)}
    whole = check.measured("distill_parts.py", EIGHT_B | {"layers": 32, "rounds": 3})
    return {"whole": whole, "beside": beside(check, EIGHT_B | {"layers": 8, "rounds": 3})}


def beside(check: Check, sizes: Mapping[str, int]) -> dict[str, Any]:
    """All variants, each alone on the device."""
    names = ["chunked", "modelopt", "kl_div", "liger", *([] if check.cpu else ["liger_kernel"])]
    return check.measured("distill_parts.py", sizes, *[part for name in names for part in ("--variant", name)])


def importance(check: Check) -> dict[str, Any]:
    """Scores on all axes beside a plain forward pass."""
    sizes = {name: EIGHT_B[name] for name in ("hidden", "ffn", "heads", "groups", "vocabulary", "sequence")}
    sizes |= {"layers": 8, "batch": 1, "passes": 2, "rounds": 5}
    if check.cpu:
        sizes = {"layers": 1, "vocabulary": 512, "sequence": 32, "batch": 2, "rounds": 1}
    return check.measured("importance.py", sizes)


def profile(check: Check) -> dict[str, Any]:
    """The dearest operations."""
    sizes = TOY if check.cpu else EIGHT_B | {"layers": 8, "rounds": 1}
    found = check.measured("distill_parts.py", sizes, "--variant", "chunked", "--profile")
    return {"dearest": found["variants"]["chunked"]["dearest"]}


PARTS: Mapping[str, Callable[[Check], dict[str, Any]]] = {
    "step": step,
    "importance": importance,
    "profile": profile,
    "demo": demo,
}
"""In their order: what is asked first comes first, and what may last longest comes last."""


if __name__ == "__main__":
    sys.exit(main())
