"""The kinds of job that spec.backend may name, and what is known of each without a cluster.

What speaks of their objects stands in backends/kinds.py, under the same names.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class JobKindInfo:
    """A kind of job in words."""

    name: str  # in spec.backend, and the `kind` of its objects
    group: str
    plural: str
    install: str  # what to do where the cluster does not have it
    controller: str  # who makes its pods, as sentences name it
    webhook: str  # part of the names of its admission webhooks
    labels: str  # domain of the labels that its controller puts on pods

    @property
    def resource(self) -> str:
        """Its name as its CRD has it."""
        return f"{self.plural}.{self.group}"


DEFAULT_JOB_KIND = "PyTorchJob"

JOB_KINDS: dict[str, JobKindInfo] = {
    kind.name: kind
    for kind in (
        JobKindInfo(
            name="PyTorchJob",
            group="kubeflow.org",
            plural="pytorchjobs",
            install="is the training operator installed? Version 1, the one with PyTorchJobs, is needed",
            controller="the training operator",
            webhook="pytorchjob",
            labels="training.kubeflow.org",
        ),
    )
}
