"""Typed configuration of every phase: pydantic only, no torch. The CRD embeds these models.

The control plane imports nothing else from the pipeline.
"""

from .architecture import Activation, Architecture, Family, Normalization
from .base import ConfigModel, Operational, Record, Rule
from .engines import DEFAULT_ENGINE, ENGINES, EngineInfo, EngineName
from .exits import TERMINATION_MESSAGE_LIMIT, ExitClass, Termination
from .export import ExportConfig, ExportDtype
from .figures import Figure, figures_of, human_bytes, number_runs, won_back
from .fingerprint import digest, fingerprint, measuring, semantic_fields
from .importance import (
    METHODS,
    SCORES,
    Aggregation,
    AggregationConfig,
    Axis,
    ImportanceConfig,
    Method,
    aggregation_words,
    method_words,
)
from .jobs import (
    CONFIG_VARIABLE,
    FORMER_NAMES,
    PRECISION_VARIABLE,
    TERMINATION_VARIABLE,
    Cache,
    EngineJob,
    JobConfig,
    ResolvedSource,
    StepResult,
)
from .layout import Parallelism, ParallelLayout
from .losses import (
    Balance,
    LogitsKL,
    LossConfig,
    Needs,
    describe_losses,
    loss_faults,
    losses_in_words,
    resolved_losses,
)
from .members import NameOf, one_of
from .phases import (
    PHASES,
    DistillJob,
    DistillResult,
    ExportJob,
    ExportResult,
    FinetuneJob,
    FinetuneResult,
    Phase,
    PhaseSpec,
    PrepareJob,
    PrepareResult,
    PruneJob,
    PruneResult,
)
from .pruning import PruneConfig
from .sequences import PACKING, Passes, passes, sequence_fault, text_fault
from .sources import DatasetConfig, DocumentFormat, TeacherConfig
from .students import student_architecture, student_faults
from .training import DistillConfig, FinetuneConfig, Precision, TrainingConfig, ValidationConfig

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_ENGINE",
    "ENGINES",
    "FORMER_NAMES",
    "METHODS",
    "PACKING",
    "PHASES",
    "PRECISION_VARIABLE",
    "SCORES",
    "TERMINATION_MESSAGE_LIMIT",
    "TERMINATION_VARIABLE",
    "Activation",
    "Aggregation",
    "AggregationConfig",
    "Architecture",
    "Axis",
    "Balance",
    "Cache",
    "ConfigModel",
    "DatasetConfig",
    "DistillConfig",
    "DistillJob",
    "DistillResult",
    "DocumentFormat",
    "EngineInfo",
    "EngineJob",
    "EngineName",
    "ExitClass",
    "ExportConfig",
    "ExportDtype",
    "ExportJob",
    "ExportResult",
    "Family",
    "Figure",
    "FinetuneConfig",
    "FinetuneJob",
    "FinetuneResult",
    "ImportanceConfig",
    "JobConfig",
    "LogitsKL",
    "LossConfig",
    "Method",
    "NameOf",
    "Needs",
    "Normalization",
    "Operational",
    "ParallelLayout",
    "Parallelism",
    "Passes",
    "Phase",
    "PhaseSpec",
    "Precision",
    "PrepareJob",
    "PrepareResult",
    "PruneConfig",
    "PruneJob",
    "PruneResult",
    "Record",
    "ResolvedSource",
    "Rule",
    "StepResult",
    "TeacherConfig",
    "Termination",
    "TrainingConfig",
    "ValidationConfig",
    "aggregation_words",
    "describe_losses",
    "digest",
    "figures_of",
    "fingerprint",
    "human_bytes",
    "loss_faults",
    "losses_in_words",
    "measuring",
    "method_words",
    "number_runs",
    "one_of",
    "passes",
    "resolved_losses",
    "semantic_fields",
    "sequence_fault",
    "student_architecture",
    "student_faults",
    "text_fault",
    "won_back",
]
