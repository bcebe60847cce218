"""What all jobs share: what each is told and what each reports. `phases` has what is a phase's own.

A job is told its configuration as JSON in the environment variable COMPRESSION_CONFIG.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from .base import ConfigModel, Record
from .engines import DEFAULT_ENGINE, PlannedEngine
from .layout import Parallelism
from .sources import DocumentAttention, PlannedAttention
from .tasks import EvaluateConfig
from .training import TrainingConfig

CONFIG_VARIABLE = "COMPRESSION_CONFIG"
PRECISION_VARIABLE = "COMPRESSION_PRECISION"
"""The arithmetic (Precision) that the key of a step counts on and that no setting of it says. A variable of its own,
because images from before it refuse a field that they don't know, and leave this one alone.
"""
TERMINATION_VARIABLE = "COMPRESSION_TERMINATION_MESSAGE"
"""Path of the termination message; /dev/termination-log where it isn't set."""
CHECKPOINTED = 14
"""Bytes of one parameter in a training checkpoint: bfloat16 weight, float32 master weight and two AdamW moments."""
FORMER_NAMES = {"validation": "evaluate"}
"""Fields of jobs that older images and artifacts, and so fingerprints, know by another name."""


def _alias(field: str) -> str:
    """Name of a job's field in JSON."""
    return FORMER_NAMES.get(field) or to_camel(field)


class Cache(StrEnum):
    """Whose artifacts a step takes instead of making them."""

    RUN = "Run"
    STORE = "Store"


class JobConfig(ConfigModel):
    """What every phase is told.

    Artifacts are named `<phase>-<key>` and lie in `<store>/artifacts/`. An attempt's own files (checkpoints, heartbeat)
    lie in `<store>/work/<fingerprint>/`.
    """

    model_config = ConfigDict(alias_generator=_alias)
    roles: ClassVar[tuple[str, ...]] = ("data", "teacher", "pruned", "distilled")
    """Fields that name an artifact that the job reads, as far as its phase has them."""

    blocks: ClassVar[tuple[str, ...]] = ()
    """Fields that hold a block of the manifest by its name there; those of prune are the student's."""

    run: str
    run_uid: str | None = Field(default=None, description="UID of the run: two of one name may share a store.")
    step: str = Field(description="Name of the step, e.g. distill-width; unique within the run.")
    student: str | None = None
    attempt: int = Field(ge=1)
    fingerprint: str = Field(pattern="^[0-9a-f]{32}$")
    key: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{32}$",
        description="Key of the artifact, where it is not the fingerprint: what only measures is no part of it.",
    )
    store: str = Field(description="Absolute path of the store.")
    grace_period_seconds: int = Field(default=300, ge=1)
    processes_per_node: int = Field(default=1, ge=1, description="Ranks that the launcher starts on this node.")
    parallelism: Parallelism = Field(default=Parallelism(), description="How a model is split over the ranks.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of one rank. Default: processors / ranks.")
    rendezvous_timeout_seconds: int = Field(
        default=600, ge=1, description="Time that a pod of several waits for the others before it gives up its place."
    )
    cache: Cache = Field(default=Cache.STORE, description="Whose artifacts the job may adopt.")
    expected: dict[str, str] = Field(
        default={},
        description="Name of each input -> SHA-256 of its manifest.json, as the job told that made or adopted it.",
    )
    known: list[str] = Field(
        default=[],
        description="Where not everything may be adopted: SHA-256 of the manifest.json of each artifact that may.",
    )

    @classmethod
    def sketch(cls, blocks: Mapping[str, Any]) -> Self:
        """A job of which these blocks of its configuration are known and nothing else, unchecked: enough to ask what
        it will write. The operator asks in every pass, and `model_construct` would copy every default each time.
        """
        job = cls.__new__(cls)
        vars(job).update(blocks)
        return job

    @property
    def scored_by(self) -> EvaluateConfig | None:
        """The tasks of the manifest that it scores a model by, beside its blocks."""
        return None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The artifacts that the job reads, each once."""
        named = (getattr(self, role, None) for role in self.roles)
        return tuple(dict.fromkeys(name for name in named if isinstance(name, str)))

    @property
    def artifact_key(self) -> str:
        """Key of the artifact; prepare alone finds another one."""
        return self.key or self.fingerprint

    def for_image(self) -> dict[str, Any]:
        """As JSON for an image, which may be older and not know the newest fields: those at their default are left out,
        as they are of fingerprints (so a default never changes within a SCHEMA_VERSION), and it runs whatever does not
        use them.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)

    @property
    def training(self) -> TrainingConfig | None:
        """The training that the job runs; None if it trains nothing."""
        return None

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that the job reads, as the manifest names them."""
        return ()

    def bytes_kept(self, teacher: int, student: int) -> int:
        """Roughly the size of the artifact, in bytes, besides a copy of its sources. `teacher`, `student`: their
        parameters, 0 if they aren't known yet.
        """
        return 0

    def bytes_of_checkpoints(self, teacher: int, student: int, beside: int = 0) -> int:
        """Roughly what lies beside it while the job trains, and goes once it has ended; here, where it trains the
        teacher. `beside`: parameters that are trained with the model and are no part of it, as those of losses.
        """
        # One checkpoint more than are kept: the new one is whole before the oldest goes.
        kept = self.training.keep_checkpoints + 1 if self.training is not None else 0
        return (teacher + beside) * kept * CHECKPOINTED


class EngineJob(JobConfig):
    """A job that an engine computes."""

    engine: PlannedEngine = Field(default=DEFAULT_ENGINE, description="The engine, of `ENGINES`.")
    document_attention: PlannedAttention = Field(
        default=DocumentAttention.SHARED, description="Whether documents in a sequence see each other."
    )


LEARNED = "Tokens of the training split that are learned (dataset.promptColumn). Unset if all are."


class ResolvedSource(Record):
    """A source, resolved to an exact version."""

    source: str = Field(description="The source as the manifest names it.")
    revision: str | None = Field(default=None, description="Commit on the Hub. Unset for other sources.")
    digest: str = Field(description="Digest of the content.")


class ResolvedText(ResolvedSource):
    """One of several sources of text, and what it came to."""

    weight: float = Field(description="Share of the training sequences that are of it.")
    train_tokens: int = Field(description="Tokens in its training split.")
    validation_tokens: int = Field(description="Tokens in its validation split.")
    learned_tokens: int | None = Field(default=None, description=LEARNED)


class StepResult(Record):
    """What every phase reports."""

    cached: bool = Field(default=False, description="Whether the artifact already existed in the store.")
    digest: str | None = Field(
        default=None,
        description="SHA-256 of the artifact's manifest.json, which lists the digests of all its files. No later "
        "writer of the volume can change what the job reported.",
    )

    @property
    def found_key(self) -> str | None:
        """Key of the artifact, if the job made it from the content that it found; None if the plan knows it."""
        return None
