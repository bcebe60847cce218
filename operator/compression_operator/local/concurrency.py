"""How the jobs of a run share one machine."""

from typing import Any

from compression_operator.api.run import CompressionRun
from compression_operator.core.jobs import Job
from compression_pipeline.config import PHASES, Parallelism, Phase


def layout(job: Job, ranks: int) -> dict[str, Any]:
    """The fields of the job that say how so many ranks share its work."""
    return {"processes_per_node": ranks, "parallelism": _split(job, ranks)}


def ranks(job: Job, most: int) -> int:
    """The most ranks, up to `most`, that the job's global batch splits over: a machine has the GPUs that it has."""
    training = job.config.training
    if training is None:
        return most
    return _split(job, most).most_ranks(most, training.global_batch_size // training.micro_batch_size)


def at_once(run: CompressionRun, phase: Phase) -> int:
    """Jobs that may run at the same time, one of this phase among them. A step for all students is alone, because
    theirs wait for it; but one that does for teachers what another does for students runs beside them.
    """
    most, spec = run.spec.max_parallel_jobs, PHASES[phase]
    if spec.like and not spec.per_student:
        return most
    return min(most, len(run.spec.students)) if spec.per_student else 1


def _split(job: Job, most: int) -> Parallelism:
    """How a copy of the job's models is split over ranks of which there are `most`: a machine has what it has."""
    return job.config.parallelism.within(max(1, most))
