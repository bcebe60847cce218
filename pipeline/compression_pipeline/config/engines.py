"""The engines: what may compute the phases that prune and train. An engine is a folder of its own and an entry here."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator

from .members import NameOf


@dataclass(frozen=True)
class EngineInfo:
    """An engine in words, without torch."""

    implementation: str
    """`module:function` that starts it, a `compression_pipeline.engines.Start`."""
    prunes_with: str
    """What cuts students out of teachers, for the card: a phrase."""
    trains_with: str
    """What trains, for the card: a phrase."""
    distributions: tuple[str, ...]
    """What it stands on beside torch: artifacts record the versions."""
    gives_states: bool = True
    """Whether its models give the outputs of layers and embeddings, which some losses compare."""
    learns_of_likeliest: bool = False
    """Whether it distils without a teacher, of batches that have its likeliest tokens (`Batch.teacher`)."""


DEFAULT_ENGINE = "Megatron"

ENGINES: dict[str, EngineInfo] = {
    "Megatron": EngineInfo(
        implementation="compression_pipeline.megatron.engine:start",
        prunes_with="NVIDIA ModelOpt's mcore_minitron",
        trains_with="NVIDIA Megatron-Core and ModelOpt",
        distributions=("megatron-core", "nvidia-modelopt"),
        learns_of_likeliest=True,
    ),
}


EngineName = Annotated[str, NameOf(lambda: ENGINES)]
"""Name of an engine."""

PlannedEngine = Annotated[EngineName, BeforeValidator(lambda name: name or DEFAULT_ENGINE)]
"""As a plan tells it to a job: None is the default, so that no key names it."""
