"""A job as a PyTorchJob (kubeflow.org/v1). Pure.

PyTorchJob's own retries, deadlines and clean-up are not used (restartPolicy Never, cleanPodPolicy Running): the
operator does these. A job is created once and never applied again.
"""

from typing import Any

from compression_operator.api.run import CompressionRun
from compression_operator.backends.pods.jobpods import job_metadata, pod_template
from compression_operator.backends.pods.platform_defaults import JobDefaults
from compression_operator.core.jobs import Job

Json = dict[str, Any]


def pytorch_job(run: CompressionRun, job: Job, image: str, defaults: JobDefaults) -> Json:
    """The PyTorchJob of one attempt at one step. `image` is the one resolved when the run first started."""
    template = pod_template(run, job, image, defaults)
    replicas: Json = {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}}
    if job.settings.nodes > 1:
        workers = job.settings.nodes - 1
        replicas["Worker"] = {"replicas": workers, "restartPolicy": "Never", "template": template}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": job_metadata(run, job, defaults),
        "spec": {
            "nprocPerNode": str(job.settings.layout.per_node),
            "runPolicy": {"cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": replicas,
        },
    }
