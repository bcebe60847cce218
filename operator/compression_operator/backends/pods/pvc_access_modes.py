"""A warning about claims that only one node can mount, for runs whose pods may want them on several. Mostly pure."""

import logging
from typing import TypeVar

from compression_operator.api.run import CompressionRun
from compression_operator.core.jobs import RunEvent
from compression_operator.core.phase_steps import STEPS
from compression_operator.core.problems import Problem
from compression_operator.kube.client import CLAIMS, ApiError, Kube
from compression_operator.kube.denied_permissions import Denials
from compression_pipeline.config import Phase

logger = logging.getLogger(__name__)

HOSTNAME = "kubernetes.io/hostname"
REASON = "ClaimOfOneNode"
REMEMBERED = 10_000

T = TypeVar("T")


def several(run: CompressionRun) -> str | None:
    """Why pods of the run may want the claim at the same time; None where they never do, or are kept on one node."""
    spec = run.spec
    phases = [phase for phase, steps in STEPS.items() if steps.wanted(spec)]
    hosts = {_host(run, phase) for phase in phases}
    if len(hosts) == 1 and None not in hosts:
        return None
    for phase in phases:
        nodes = spec.phases.of(phase).nodes
        if nodes > 1:
            return f"phases.{phase}.nodes is {nodes}"
    if spec.max_parallel_jobs > 1 and len(spec.students) > 1:
        return f"maxParallelJobs is {spec.max_parallel_jobs} and there are {len(spec.students)} students"
    return None


def _host(run: CompressionRun, phase: Phase) -> str | None:
    """The one node on which the phase's pods are kept."""
    own = run.spec.phases.of(phase).node_selector
    return (run.spec.job_template.node_selector if own is None else own).get(HOSTNAME)


def warning(claim: str, modes: list[str], why: str) -> str:
    """The sentence for a claim of these access modes; empty where it can be mounted everywhere."""
    if not modes or "ReadWriteMany" in modes:
        return ""
    return (
        f"claim {claim} is {' and '.join(modes)}, and pods of this run may want it on several nodes at once ({why}): "
        f"use a ReadWriteMany claim, or keep the pods on one node with jobTemplate.nodeSelector {HOSTNAME}"
    )


class ClaimAdvice:
    """Looks at a run's claim, once for each generation of the run."""

    def __init__(self, kube: Kube, denials: Denials) -> None:
        self._kube = kube
        self._denials = denials
        self._known: dict[str, tuple[int, str]] = {}  # by UID of the run: generation, warning
        # By UID, the generation. The status alone does not say: of a run that is held up it has other things to tell.
        self._reported: dict[str, int] = {}

    async def refresh(self, run: CompressionRun) -> None:
        """Find out. What cannot be found out is no reason to hold the run up."""
        meta, storage = run.metadata, run.spec.storage
        if storage is None or self._known.get(meta.uid, (None, ""))[0] == meta.generation:
            return
        claim, why, sentence = storage.persistent_volume_claim.claim_name, several(run), ""
        if why is not None:
            try:
                with self._denials.note_denial(meta.namespace, "claims are not looked at for their access modes"):
                    body = await self._kube.get(CLAIMS, meta.namespace, claim)
                sentence = warning(claim, body.get("spec", {}).get("accessModes") or [], why)
            except ApiError as error:
                if error.transient or error.denied:
                    return  # asked again in the next pass
                # Where it does not exist the scheduler says so, on the run too.
                logger.warning("cannot read claim %s: %s", claim, error, extra={"run": meta.key})
        _remember(self._known, meta.uid, (meta.generation, sentence))

    def advice(self, run: CompressionRun) -> Problem | None:
        """The warning about the run's claim; None if there is none."""
        _, sentence = self._known.get(run.metadata.uid, (0, ""))
        return Problem(REASON, sentence) if sentence else None

    def note_reported(self, run: CompressionRun, event: RunEvent) -> None:
        """Note that the warning was reported for the run in its present generation, if that is what the event says."""
        if event.reason == REASON:
            _remember(self._reported, run.metadata.uid, run.metadata.generation)

    def was_reported(self, run: CompressionRun) -> bool:
        """Whether this process has reported the warning for the run in its present generation."""
        return self._reported.get(run.metadata.uid) == run.metadata.generation


def _remember(known: dict[str, T], uid: str, what: T) -> None:
    known[uid] = what
    while len(known) > REMEMBERED:
        known.pop(next(iter(known)))
