"""How models are evaluated: tasks of lm-eval and the speed of generation, and what is told of them."""

from typing import Annotated, ClassVar

from pydantic import Field

from .base import ConfigModel, Record, Rule
from .schemes import forms
from .sources import source_rules

MOST_TASKS = 10
"""Tasks of one run. Their scores fit the 4 KiB of a termination message, whatever they are named."""

Z_95 = 1.959964
"""Quantile of the normal distribution: a 95 % confidence interval is a score plus or minus so many standard errors."""


class TaskConfig(ConfigModel):
    """One task to score models by."""

    rules: ClassVar[tuple[Rule, ...]] = source_rules("source", "tasks", optional=True)

    name: str = Field(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$",
        examples=["hellaswag"],
        description="Name of a task or a group of tasks of lm-eval, or of a task in source.",
    )
    source: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description=f"Folder with tasks of your own: {forms('tasks')}. It holds lm-eval's YAML files and their data "
        "(.jsonl, .json, .csv or .parquet, named by dataset_kwargs.data_files). Such tasks need no network, and may "
        "hold no Python (!function). Default: the tasks that lm-eval ships, whose data comes from the Hub.",
    )
    shots: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="Number of solved examples before each question. Default: the task's own.",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Number of questions to ask: the first ones of each task, as lm-eval's --limit takes them, so that "
        "scores compare with those. They need not be typical of the task. Default: all.",
    )
    seed: int = Field(default=1234, ge=0, le=2**31 - 1, description="Seed for choosing the solved examples.")
    metric: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        examples=["acc_norm"],
        description="Metric to report, as lm-eval names it. Default: the first one of the task.",
    )
    filter: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        examples=["flexible-extract"],
        description="Filter that takes the answer out of a reply, as lm-eval names it (gsm8k has strict-match and "
        "flexible-extract). Default: the first one of the task. Each task is listed once: the scores by all its "
        "metrics and filters are in scores.json of the artifact.",
    )


class GenerationConfig(ConfigModel):
    """How the speed of generation is measured: the same for the teacher and every student."""

    batch_size: int = Field(default=1, ge=1, le=4096, description="Number of sequences that are generated at once.")
    prompt_tokens: int = Field(default=128, ge=1, le=1_048_576, description="Length of each prompt, in tokens.")
    new_tokens: int = Field(default=64, ge=2, le=1_048_576, description="Tokens to generate after each prompt.")
    repeats: int = Field(default=3, ge=1, le=100, description="Number of measurements. The median is reported.")


class EvaluateConfig(ConfigModel):
    """What the teacher, the corrected teacher and every student are measured by."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule.of(
            "tasks",
            "is required unless generation is set. (Settings of the validation loss belong in validation.)",
            lambda evaluate: bool(evaluate.tasks) or evaluate.generation is not None,
            "(has(self.tasks) && size(self.tasks) > 0) || has(self.generation)",
        ),
    )

    tasks: Annotated[list[TaskConfig], Field(max_length=MOST_TASKS)] = Field(
        default=[],
        description="Tasks to score each model by, with lm-eval.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    generation: GenerationConfig | None = Field(
        default=None,
        description="Measure tokens per second, time to first token and peak memory of generation. Not measured if "
        "not set.",
    )
    batch_size: int = Field(
        default=8, ge=1, le=4096, description="Number of sequences that are scored at once. More take more memory."
    )

    def asked_in_full(self) -> "EvaluateConfig":
        """Without numbers of questions: those that who asks gives are not the tasks' own."""
        return self.model_copy(update={"tasks": [task.model_copy(update={"limit": None}) for task in self.tasks]})

    @property
    def by_content(self) -> "EvaluateConfig":
        """How tasks are asked, without where they are from: what they are is told by digests of their content."""
        return self.model_copy(update={"tasks": [task.model_copy(update={"source": None}) for task in self.tasks]})


class TaskScore(Record):
    """What a model scored in a task."""

    name: str = Field(description="Name of the task.")
    metric: str = Field(description="Metric, as lm-eval names it.")
    filter: str | None = Field(
        default=None, description="Filter that took the answers out of the replies. Unset if the task names none."
    )
    score: float = Field(description="Mean of the metric over the questions.")
    stderr: float | None = Field(default=None, description="Standard error of the score, as lm-eval estimates it.")
    samples: int = Field(description="Number of questions.")
    shots: int = Field(default=0, description="Number of solved examples before each question.")
    higher_is_better: bool = Field(default=True, description="Whether a higher score is a better one.")

    @property
    def measure(self) -> str:
        """The metric, with the filter if the task names one: "exact_match, strict-match"."""
        return f"{self.metric}, {self.filter}" if self.filter else self.metric

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval (normal approximation); None without a standard error."""
        if self.stderr is None:
            return None
        return self.score - Z_95 * self.stderr, self.score + Z_95 * self.stderr

    def change(self, other: "TaskScore | None") -> float | None:
        """Change of the score against another model's, in percent of that; None where they can't be compared."""
        if (
            other is None
            or not other.score
            or (other.measure, other.shots, other.samples) != (self.measure, self.shots, self.samples)
        ):
            return None
        return 100 * (self.score - other.score) / abs(other.score)


class GenerationFigures(Record):
    """How fast a model generates, and what it takes."""

    tokens_per_second: float = Field(description="Tokens generated per second after the first, over the whole batch.")
    first_token_seconds: float = Field(description="Time from the prompt to the first token, in seconds.")
    peak_memory_bytes: int | None = Field(
        default=None, description="Peak memory of the weights and the generation: of the GPU, or of the process on CPU."
    )
    device: str = Field(description="Name of the device.")
