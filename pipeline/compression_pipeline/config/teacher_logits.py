"""The teacher's logits as an artifact: what a distillation reads in place of running its teacher."""

from typing import Annotated, ClassVar

from pydantic import Field

from .base import ConfigModel, Operational, Record
from .gates import AcceptConfig
from .jobs import EngineJob, StepResult
from .results import BY_SOURCE, MEASURED_OVER, SourceLosses
from .training import DistillConfig, Precision, ValidationConfig

LIKELY_WORD_BYTES = 5
"""Of each of the likeliest words of a token: three of its number, two of its log-probability."""

REST_BYTES = 4
"""Of each token: the log-probability of all other words, at each of the temperatures."""


class LogitsConfig(ConfigModel):
    """Which logits: so many sequences of the text in the order of a training, and what is kept of each token."""

    sequences: int = Field(ge=1, description="Sequences, in the order in which the training sees them.")
    top_k: int = Field(ge=1, description="Number of the teacher's likeliest tokens that are kept.")
    temperatures: tuple[float, ...] = Field(
        default=(), description="Temperatures at which the probability of all other tokens is kept, ascending."
    )
    seed: int = Field(description="Seed for the order of the sequences.")
    precision: Precision = Field(description="Arithmetic of the teacher's forward pass.")
    micro_batch_size: Annotated[int, Operational()] = Field(ge=1, description="Sequences in one forward pass.")

    @classmethod
    def of(cls, distill: DistillConfig, accept: AcceptConfig | None) -> "LogitsConfig":
        """Those that a distillation reads: also in the steps that it may train on (`accept.extendSteps`)."""
        steps = distill.steps + ((accept and accept.extend_steps) or 0)
        rests = {loss.rest_temperature for loss in distill.losses}
        return cls(
            sequences=steps * distill.global_batch_size,
            top_k=distill.cached_top_k,
            temperatures=tuple(sorted(rest for rest in rests if rest is not None)),
            seed=distill.seed,
            precision=distill.precision,
            micro_batch_size=distill.micro_batch_size,
        )

    @property
    def bytes_per_token(self) -> int:
        """Of the artifact, for each token of the sequences."""
        return self.top_k * LIKELY_WORD_BYTES + len(self.temperatures) * REST_BYTES


class LogitsJob(EngineJob):
    """Write which tokens the teacher expects after every token that a student learns from. Its artifact: `logits/`."""

    blocks: ClassVar[tuple[str, ...]] = ("validation",)

    data: str
    teacher: str
    sequence_length: int
    logits: LogitsConfig
    # By its own name in JSON: no older image knows this job.
    validation: ValidationConfig = Field(alias="validation")

    def bytes_kept(self, teacher: int, student: int) -> int:
        return self.logits.sequences * self.sequence_length * self.logits.bytes_per_token


class TeacherMeasured(Record):
    """What a distillation tells of its teacher, which does not run there."""

    loss: float = Field(description="Its validation loss.")
    validation_sequences: int = Field(description=MEASURED_OVER)
    source_losses: list[SourceLosses] = Field(default=[], description=BY_SOURCE)


class LogitsResult(StepResult):
    """What logits reports."""

    tokens: int = Field(description="Tokens of the text after each of which the teacher's likeliest ones are kept.")
    top_k: int = Field(description="Number of the likeliest tokens that are kept (distill.cachedTopK).")
    mass_kept: float = Field(description="Mean share of the teacher's probability that they have.")
    bytes_per_token: int = Field(description="Bytes in the store for each token of the text.")
    tokens_per_second: float | None = Field(
        default=None, description="Tokens of the text that the teacher ran over in a second."
    )
    teacher: TeacherMeasured
