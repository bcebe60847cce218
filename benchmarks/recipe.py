"""The papers' claims at the demo's scale: which of them show, and by how much.

    python benchmarks/recipe.py                      # 45 minutes on 2 busy cores; writes docs/recipe.md and its plot
    python benchmarks/recipe.py --full               # more seeds, longer trainings

A claim says that one way to make a student ends at a lower validation loss than another; each is an entry in
`recipe_claims.CLAIMS`. Both ways run through the project's own phases, on the demo's teacher and text, once a seed: the
seed draws the order of the text, the random weights and the random choice. What was made stays in `--work`, so a run
that was broken off goes on.
"""

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from recipe_claims import CLAIMS, FULL, Arm, Claim, Finding, Outcome, Setting, Start
from recipe_page import document, plot, write

from compression_pipeline.artifact import Store
from compression_pipeline.config import (
    Architecture,
    DatasetConfig,
    DistillConfig,
    DistillJob,
    DistillResult,
    FinetuneConfig,
    FinetuneJob,
    FinetuneResult,
    JobConfig,
    Phase,
    PrepareJob,
    PrepareResult,
    PruneJob,
    PruneResult,
    StepResult,
    TeacherConfig,
    ValidationConfig,
    fingerprint,
)
from compression_pipeline.context import Context
from compression_pipeline.events import Events
from compression_pipeline.huggingface.conversion import CheckpointReader
from compression_pipeline.huggingface.names import expected_shapes
from compression_pipeline.huggingface.writer import write_checkpoint
from compression_pipeline.phases import distill, finetune, prepare, prune

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "out" / "demo-input" / "dataset"


class Bench:
    """Makes students by the project's phases, in one store."""

    def __init__(self, setting: Setting, teacher: Path, text: Path, work: Path) -> None:
        """`teacher`: a folder with a Hugging Face checkpoint; `text`: one with train and validation documents."""
        self.setting = setting
        self._store = Store(work / "store")
        self._store.root.mkdir(parents=True, exist_ok=True)
        self._validation = ValidationConfig(samples=setting.validation)
        source, dataset = (
            TeacherConfig(model=f"file:{teacher.resolve()}"),
            DatasetConfig(source=f"file:{text.resolve()}", sequence_length=setting.length),
        )
        key = fingerprint("prepare", {"teacher": source, "dataset": dataset}, {})
        job = PrepareJob(**self._common("prepare", key), teacher=source, dataset=dataset)
        self._data = f"prepare-{prepare.run(job, self._context(job)).key}"
        prepared = self._store.open(self._data).result(PrepareResult)
        self.teacher = prepared.teacher

    def outcome(self, arm: Arm, seed: int) -> Outcome:
        """Of one student, made now or before."""
        teacher = self._corrected() if arm.corrected else self._data
        pruned, result = self._start(arm.start, teacher, seed)
        fields = {
            **self.setting.training(self.setting.steps * arm.times),
            "seed": seed,
            "losses": [{"type": kind} for kind in arm.losses],
        }
        settings = DistillConfig.model_validate(fields)
        shared = {"data": self._data, "teacher": teacher, "pruned": pruned, "sequence_length": self.setting.length}
        blocks = {"distill": settings, "validation": self._validation, "length": self.setting.length}
        key = fingerprint("distill", blocks, {"pruned": pruned, "teacher": teacher, "data": self._data})
        job = DistillJob(**self._common("distill", key), **shared, distill=settings, validation=self._validation)
        found = self._run(Phase.DISTILL, job, DistillResult)
        return Outcome(found.pruned_loss, found.distilled_loss, found.teacher_loss, result.parameters)

    def _corrected(self) -> str:
        settings = FinetuneConfig.model_validate(self.setting.training(self.setting.correction))
        blocks = {"finetune": settings, "validation": self._validation, "length": self.setting.length}
        key = fingerprint("finetune", blocks, {"data": self._data})
        shared = {"data": self._data, "teacher": self._data, "sequence_length": self.setting.length}
        job = FinetuneJob(**self._common("finetune", key), **shared, finetune=settings, validation=self._validation)
        self._run(Phase.FINETUNE, job, FinetuneResult)
        return f"finetune-{key}"

    def _start(self, start: Start, teacher: str, seed: int) -> tuple[str, PruneResult]:
        """The artifact with the student to train, and what is told of it."""
        settings = self.setting.pruning(start)
        blocks = {"prune": settings, "length": self.setting.length}
        key = fingerprint("prune", blocks, {"teacher": teacher, "data": self._data})
        shared = {"data": self._data, "teacher": teacher, "sequence_length": self.setting.length}
        job = PruneJob(**self._common("prune", key), **shared, prune=settings)
        result = self._run(Phase.PRUNE, job, PruneResult)
        if start not in (Start.CHANCE, Start.SCRATCH):
            return f"prune-{key}", result
        other = fingerprint("prune", {"start": start.value, "seed": seed}, {"like": key})
        if self._store.find(f"prune-{other}") is None:
            folder = self._store.open(teacher).model
            tensors = _by_chance if start is Start.CHANCE else _random
            with self._store.draft("prune", other) as draft:
                write_checkpoint(
                    tensors(CheckpointReader(folder), self.teacher, result.student, seed),
                    result.student,
                    draft.path / "model",
                    template=folder,
                    dtype=torch.float32,
                )
                draft.publish(config=job.to_json(), inputs={"teacher": teacher}, result=result.to_json())
        return f"prune-{other}", result

    def _run(self, phase: Phase, job: JobConfig, result: type[StepResult]) -> Any:
        made = self._store.find(f"{phase}-{job.fingerprint}")
        if made is not None:
            return made.result(result)
        run: Any = {Phase.FINETUNE: finetune, Phase.PRUNE: prune, Phase.DISTILL: distill}[phase].run
        return run(job, self._context(job))

    def _common(self, step: str, key: str) -> dict[str, Any]:
        return {"run": "recipe", "step": step, "attempt": 1, "fingerprint": key, "store": str(self._store.root)}

    def _context(self, job: JobConfig) -> Context:
        folder = self._store.attempt_folder(job.fingerprint, job.attempt)
        return Context(Store(self._store.root, drafts=folder), Events(silent=True), folder)


def _by_chance(
    reader: CheckpointReader, teacher: Architecture, student: Architecture, seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """The teacher's weights of channels and neurons that are drawn, all equally likely."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(has: int, keeps: int) -> torch.Tensor:
        return torch.randperm(has, generator=generator)[:keeps].sort().values

    hidden = drawn(teacher.hidden_size, student.hidden_size)
    neurons = [drawn(teacher.ffn_hidden_size, student.ffn_hidden_size) for _ in range(teacher.layers)]
    for name, shape in expected_shapes(student).items():
        tensor = reader(name)
        for dimension, (has, keeps) in enumerate(zip(tensor.shape, shape, strict=True)):
            if has != keeps:
                kept = hidden if has == teacher.hidden_size else neurons[int(name.split(".")[2])]
                tensor = tensor.index_select(dimension, kept)
        yield name, tensor


def _random(
    reader: CheckpointReader, teacher: Architecture, student: Architecture, seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights as transformers begins a Llama: normal with 0.02, norms at 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, shape in expected_shapes(student).items():
        yield name, torch.ones(shape) if "norm" in name else torch.randn(shape, generator=generator) * 0.02


def find(
    bench: Bench, claims: Sequence[Claim], tell: Callable[[str], None] = lambda line: None
) -> tuple[list[Finding], dict[Arm, list[Outcome]]]:
    """Make every arm of the claims once a seed, and compare."""
    arms = dict.fromkeys(arm for claim in claims for arm in (claim.better, claim.worse))
    made: dict[Arm, list[Outcome]] = {arm: [] for arm in arms}
    for seed in range(1, bench.setting.seeds + 1):
        for arm in arms:
            made[arm].append(bench.outcome(arm, seed))
            tell(f"seed {seed}, {arm.words}: {made[arm][-1].pruned:.3f} -> {made[arm][-1].trained:.3f}")

    def losses(arm: Arm, trained: bool) -> list[float]:
        return [outcome.trained if trained else outcome.pruned for outcome in made[arm]]

    findings = [Finding(c, losses(c.better, c.trained), losses(c.worse, c.trained)) for c in claims]
    return findings, made


def tell(line: str) -> None:
    """Write a line now, to a file too."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--full", action="store_true", help=f"{FULL.seeds} seeds, {FULL.steps} steps: hours")
    sizes = [field.name for field in dataclasses.fields(Setting) if field.type in (int, "int")]
    for name in sizes:
        parser.add_argument(f"--{name}", type=int, help=f"default: {getattr(Setting(), name)}")
    parser.add_argument("--only", default="", help="measure the claims alone whose words contain this")
    parser.add_argument("--text", type=Path, default=TEXT, help="train and validation documents (%(default)s)")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "recipe", help="where what was made stays")
    parser.add_argument("--output", type=Path, help="where recipe.md goes (docs/, but with --only out/recipe/)")
    chosen = parser.parse_args()
    claims = [claim for claim in CLAIMS if chosen.only in claim.words]
    if not claims:
        parser.error(f"--only: no claim contains {chosen.only!r}; they are: {'; '.join(c.words for c in CLAIMS)}")
    if chosen.text == TEXT and not TEXT.exists():
        command = [sys.executable, str(ROOT / "examples/demo/corpus.py"), "--output", str(TEXT.parent)]
        subprocess.run(command, check=True)  # noqa: S603  # our own script
    given = {name: value for name in sizes if (value := getattr(chosen, name)) is not None}
    setting = dataclasses.replace(FULL if chosen.full else Setting(), **given)
    bench = Bench(setting, ROOT / "examples" / "demo" / "teacher", chosen.text, chosen.work)
    findings, made = find(bench, claims, tell)
    options = [*(["--full"] if chosen.full else []), *(f"--{name} {value}" for name, value in given.items())]
    options += [f'--only "{chosen.only}"'] if chosen.only else []
    page = document(
        setting, bench.teacher.parameters, findings, made, " ".join(["python benchmarks/recipe.py", *options])
    )
    # A page of some claims must not replace that of all.
    write(chosen.output or ROOT / ("out/recipe" if chosen.only else "docs"), page, plot(findings))


if __name__ == "__main__":
    main()
