"""What a job is told of artifacts: digests of their manifests, from statuses. Pure.

No writer of a volume can change a status. It says of each step that is done what manifest its artifact had, and later
jobs take their inputs by that alone. Where `spec.cache` limits what a job may adopt, it adopts by that alone, too.
"""

from collections.abc import Mapping
from dataclasses import replace

from compression_operator.api.status import Step
from compression_pipeline.config import Cache

from .jobs import Job
from .plan import PlannedStep


def with_digests(job: Job, planned: PlannedStep, cache: Cache, steps: Mapping[str, Step]) -> Job:
    """The job, told the digests that it may meet.

    `steps`: the run's own, by name. Of an input that an older image made, which told no digest, nothing is told.
    """
    inputs = [steps[name] for name in planned.dependencies]
    # Two students that ask for the same share one artifact: the step of either may have made it.
    artifact = f"{job.phase}-{job.config.artifact_key}"
    alike = [step for step in steps.values() if step.name == planned.name or step.artifact == artifact]
    told = {
        "cache": cache,
        "expected": {step.artifact: step.digest for step in inputs if step.artifact and step.digest},
        "known": sorted({step.digest for step in alike if step.digest}) if cache is not Cache.STORE else [],
    }
    return replace(job, config=job.config.model_copy(update=told))
