"""What the papers claim, as a table: one claim, one entry. `recipe.py` measures them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from compression_pipeline.config import ImportanceConfig, PruneConfig


class Start(StrEnum):
    """What a student is before it is trained."""

    WIDTH = "narrower"
    DEPTH = "shallower"
    BLOCK = "shallower by the block of lowest loss"
    CUTS = "narrower in three cuts"
    CHANCE = "narrower, parts chosen at random"
    SCRATCH = "narrower, random weights"


KL, REVERSE, CE = "LogitsKL", "LogitsReverseKL", "CrossEntropy"


@dataclass(frozen=True)
class Arm:
    """One way to make a student."""

    words: str
    start: Start = Start.WIDTH
    losses: tuple[str, ...] = (KL,)
    """Types of `distill.losses`, summed."""
    corrected: bool = True
    """Whether its teacher was corrected on the text first."""
    times: int = 1
    """How many times the setting's steps it is trained for."""


PUBLISHED = Arm("narrower, forward KL")
BOTH = Arm("narrower, KL + cross-entropy", losses=(KL, CE))
REVERSED = Arm("narrower, reverse KL", losses=(REVERSE,))
TEXT = Arm("narrower, cross-entropy alone", losses=(CE,))
SHALLOW = Arm("shallower, forward KL", Start.DEPTH)
CHANCE = Arm("parts chosen at random, forward KL", Start.CHANCE)
SCRATCH = Arm("random weights, forward KL", Start.SCRATCH)
SCRATCH_TEXT = Arm("random weights, cross-entropy alone", Start.SCRATCH, (CE,))
MORE = 4
SCRATCH_LONG = Arm(f"random weights, cross-entropy alone, {MORE} times the tokens", Start.SCRATCH, (CE,), times=MORE)
BLOCK = Arm("shallower by the block of lowest loss, forward KL", Start.BLOCK)
CUTS = Arm("narrower in three cuts, forward KL", Start.CUTS)
UNCORRECTED = Arm("narrower, forward KL, teacher not corrected", corrected=False)


@dataclass(frozen=True)
class Claim:
    """That one arm ends at a lower validation loss than another."""

    words: str
    source: str
    better: Arm
    worse: Arm
    trained: bool = True
    """Of the trained students; else of students straight after pruning."""
    margin: float = 0.0
    """By how much the better arm's loss may be above the other's, where it only has to be as good."""


PRUNING, PRACTICE = "arXiv 2407.14679", "arXiv 2408.11796"

CLAIMS = (
    Claim("KL alone beats KL + cross-entropy", PRUNING, PUBLISHED, BOTH),
    Claim("Forward KL beats reverse KL", PRUNING, PUBLISHED, REVERSED),
    Claim("Distilling beats training on the text", PRUNING, PUBLISHED, TEXT),
    Claim("Pruned beats random weights, both distilled", PRUNING, PUBLISHED, SCRATCH),
    Claim("Pruned beats random weights, both trained on the text", PRUNING, TEXT, SCRATCH_TEXT),
    Claim("Importance beats a random choice, before training", PRUNING, PUBLISHED, CHANCE, False),
    Claim("Importance beats a random choice, after training", PRUNING, PUBLISHED, CHANCE),
    Claim("Depth beats width straight after pruning", PRUNING, SHALLOW, PUBLISHED, False),
    Claim("Width beats depth after distillation", PRUNING, PUBLISHED, SHALLOW),
    Claim("One measurement is as good as three, within 0.02", PRUNING, PUBLISHED, CUTS, margin=0.02),
    Claim("Loss beats block influence for depth, before training", PRACTICE, BLOCK, SHALLOW, False),
    Claim("Loss beats block influence for depth, after training", PRACTICE, BLOCK, SHALLOW),
    Claim(f"Pruned beats random weights with {MORE} times the tokens", PRUNING, PUBLISHED, SCRATCH_LONG),
    Claim("A corrected teacher teaches better on another text", PRACTICE, PUBLISHED, UNCORRECTED),
)


@dataclass(frozen=True)
class Outcome:
    """Validation losses of a student, in nats per token."""

    pruned: float
    trained: float
    teacher: float
    parameters: int


@dataclass(frozen=True)
class Finding:
    """A claim and, for every seed, by how much the better arm's loss is lower."""

    claim: Claim
    better: Sequence[float]
    worse: Sequence[float]

    @property
    def gains(self) -> list[float]:
        """Loss of the worse arm minus the better one's, of each seed."""
        return [worse - better for better, worse in zip(self.better, self.worse, strict=True)]

    @property
    def verdict(self) -> str:
        """In all seeds, or in none, and further from 0 than twice the standard error; anything else is open.
        Where the better arm only has to be as good, from minus the margin.
        """
        gains = [gain + self.claim.margin for gain in self.gains]
        mean, error = statistics.fmean(gains), spread(gains) / len(gains) ** 0.5
        if min(gains) > 0 and mean > 2 * error:
            return "shows"
        return "the contrary shows" if max(gains) < 0 and -mean > 2 * error else "open"


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 of a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


WIDTH = PruneConfig(hidden_size=96, ffn_hidden_size=256, divisor=32, calibration_samples=64)
DEPTH = PruneConfig(layers=4, calibration_samples=64)


@dataclass(frozen=True)
class Setting:
    """How much is computed. The shapes are the demo's: equal in parameters to a few percent. Counts of seeds, steps,
    steps of teacher correction, sequences a step, tokens a sequence, validation sequences.
    """

    seeds: int = 3
    steps: int = 40
    correction: int = 60
    batch: int = 8
    length: int = 128
    validation: int = 64
    width: PruneConfig = WIDTH
    depth: PruneConfig = DEPTH

    def pruning(self, start: Start) -> PruneConfig:
        """How the student is cut that a training begins with, or that the random one is as large as."""
        if start is Start.CUTS:  # a smaller divisor, so that there are three widths
            return self.width.model_copy(update={"iterations": 3, "divisor": 8})
        if start is Start.BLOCK:
            by_loss = ImportanceConfig(depth="LMLoss", depth_samples=self.validation)
            return self.depth.model_copy(update={"importance": by_loss})
        return self.depth if start is Start.DEPTH else self.width

    def training(self, steps: int) -> dict[str, Any]:
        """Settings of a training phase."""
        rates = {"learningRate": 2e-3, "minLearningRate": 1e-4, "warmupSteps": max(1, steps // 10)}
        sizes = {"globalBatchSize": self.batch, "microBatchSize": self.batch}
        return {"steps": steps, **sizes, **rates, "checkpointInterval": steps, "validationInterval": steps}


FULL = Setting(seeds=5, steps=400, correction=400, batch=16, validation=256)
