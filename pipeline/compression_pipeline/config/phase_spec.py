"""What an entry of `phases.PHASES` says of a phase."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .jobs import JobConfig, StepResult

if TYPE_CHECKING:
    from .phases import Phase


@dataclass(frozen=True)
class PhaseSpec:
    """One phase: everything that holds for each of its jobs. The control plane adds its inputs (core/phase_steps.py).

    `python -m compression_pipeline <phase>` runs `compression_pipeline.phases.<program>.run(job, context)`.
    """

    phase: "Phase"
    job: type[JobConfig]
    result: type[StepResult]
    under_way: str  # the run's status.phase while this phase is the earliest unfinished one
    purpose: str  # what its jobs do, for a reader of the CRD: "Settings of the jobs that <purpose>."
    gpus: int = 0  # of each pod of its jobs, unless the manifest says otherwise
    per_student: bool = True  # whether there is a step for each student; otherwise there is one for all
    single_process: bool = False  # whether its jobs are one rank, whatever they are given
    spreads: bool = False  # whether its work spreads over any number of ranks, without a batch that they share
    trains: bool = False  # whether spec.<phase> is a training, whose global batch splits over the job's ranks
    reads_sources: bool = False
    """Whether it reads the manifest's sources: it alone reaches the Hub and has its token. Its job names the artifact
    by the content that it finds (StepResult.found_key), and all other steps rest on that content.
    """
    delivers: bool = False  # whether its artifact is what the run is made for, and stays needed after its end
    like: "Phase | None" = None  # whose program it runs, and whose settings its jobs take, if not its own

    @property
    def program(self) -> "Phase":
        """The phase whose program it runs, and by whose name `spec.phases` has the settings of its jobs."""
        return self.like or self.phase
