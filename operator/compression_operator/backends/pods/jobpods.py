"""The pods of a job, and the metadata of it and of them: what is the same for all kinds of job. Pure."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from compression_operator.api.phase_settings import PhaseSettings
from compression_operator.api.pods import SecretKeyRef
from compression_operator.api.run import API_VERSION, GROUP, KIND, CompressionRun
from compression_operator.api.templates import CONTAINER, PodTemplates
from compression_operator.core.jobs import MOUNTED_CLAIMS, Job
from compression_pipeline.config import CONFIG_VARIABLE, PHASES, JobConfig, SourcesJob
from compression_pipeline.config.schemes import claims_of, offline_variables, secret_keys

from .platform_defaults import QUEUE_PREFIX, JobDefaults, asks_for_devices, completed
from .podtemplate import defaulted, merge_under, secured

Json = dict[str, Any]

MANAGED_BY, MANAGER = "app.kubernetes.io/managed-by", "compression-operator"
"""The label that jobs, their pods and their network policies have in common, and its value."""

STORE = "/compression"
STORE_VOLUME = "store"

STOPPING_SECONDS = 15
"""Time of the pod's grace period that is left once the job's own is over: to say how it ended."""


def job_metadata(run: CompressionRun, job: Job, defaults: JobDefaults) -> Json:
    """Metadata of a job, which its run controls."""
    queue = {name: value for name, value in run.metadata.labels.items() if name.startswith(QUEUE_PREFIX)}
    metadata = merge_under(_metadata(run, job), defaults.metadata(run.metadata))
    return {
        "name": job.name,
        "namespace": run.metadata.namespace,
        **metadata,
        "labels": queue | metadata["labels"],
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": run.metadata.name,
                "uid": run.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,  # a foreground deletion of the run waits for its jobs
            }
        ],
    }


def labels(run: CompressionRun, job: Job) -> dict[str, str]:
    """What a job and its pods are found by."""
    found = {
        "app.kubernetes.io/name": "compression-pipeline",
        "app.kubernetes.io/component": job.phase.value,
        "app.kubernetes.io/part-of": label_value(run.metadata.name),
        MANAGED_BY: MANAGER,
        f"{GROUP}/run": label_value(run.metadata.name),
        f"{GROUP}/step": label_value(job.step),
        f"{GROUP}/phase": job.phase.value,
        f"{GROUP}/attempt": str(job.attempt),
        f"{GROUP}/fingerprint": job.fingerprint,
    }
    return found if job.student is None else found | {f"{GROUP}/student": label_value(job.student)}


def label_value(text: str) -> str:
    """`text` as a label's value: at most 63 characters, longer ones cut and told apart by a hash."""
    if len(text) <= 63:
        return text
    return f"{text[:54].rstrip('-_.')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _metadata(run: CompressionRun, job: Job) -> Json:
    """Labels and annotations of a job and its pods: the operator's own, and what the run says."""
    said = run.spec.job_template
    found: Json = {"labels": said.labels | labels(run, job)}
    return found | {"annotations": said.annotations} if said.annotations else found


def pod_template(run: CompressionRun, job: Job, image: str, defaults: JobDefaults) -> Json:
    """The template of the job's pods, all of which are alike."""
    wanted, phase = run.spec.job_template, job.settings
    claims = _claims(job.config)
    spec: Json = {
        "containers": [_container(run, job, image, claims, defaults)],
        "volumes": _volumes(run, claims),
        "terminationGracePeriodSeconds": phase.termination_grace_period_seconds + STOPPING_SECONDS,
        "enableServiceLinks": False,
    }
    for name, value in {
        "nodeSelector": wanted.node_selector if phase.node_selector is None else phase.node_selector,
        "tolerations": [
            toleration.to_json()
            for toleration in (wanted.tolerations if phase.tolerations is None else phase.tolerations)
        ],
        "affinity": wanted.affinity if phase.affinity is None else phase.affinity,
        "topologySpreadConstraints": wanted.topology_spread_constraints,
        "priorityClassName": wanted.priority_class_name,
        "imagePullSecrets": [secret.to_json() for secret in wanted.image_pull_secrets],
    }.items():
        if value:
            spec[name] = value
    ours: Json = {"metadata": _metadata(run, job), "spec": spec}
    template = merge_under(ours, merge_under(phase.pod_template or {}, wanted.pod_template or {}))
    whole = completed(template, defaults, run.metadata, devices=asks_for_devices(phase))
    hardened = defaulted if defaults.pod_template is PodTemplates.UNRESTRICTED else secured
    return hardened(whole, defaults.user.security())


def _container(run: CompressionRun, job: Job, image: str, claims: Mapping[str, str], defaults: JobDefaults) -> Json:
    container: Json = {
        "name": CONTAINER,
        "image": image,
        "command": ["python", "-m", "compression_pipeline"],
        "args": [job.phase.value],
        "env": _environment(run, job, claims),
        "volumeMounts": [
            _store_mount(run),
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - a mount point, no temporary file
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - likewise
            *({"name": _claim_volume(run, c), "mountPath": path, "readOnly": True} for c, path in claims.items()),
        ],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if run.spec.job_template.image_pull_policy:
        container["imagePullPolicy"] = run.spec.job_template.image_pull_policy.value
    resources = _resources(job.settings, defaults.gpu_resource(job.settings, run.spec.job_template.gpu_resource))
    if resources:
        container["resources"] = resources
    return container


def _environment(run: CompressionRun, job: Job, claims: Mapping[str, str]) -> list[Json]:
    filled: Json = {"run_uid": run.metadata.uid or None, "store": STORE}
    if PHASES[job.phase].reads_sources:
        filled["source_roots"] = {root: claims[claim] for root, claim in claims_of(job.config.sources).items()}
    config = job.config.model_copy(update=filled)
    variables: dict[str, str] = {
        # Kubernetes takes $$ for $, and expands $(NAME).
        CONFIG_VARIABLE: json.dumps(config.for_image()).replace("$", "$$"),
        # The root file system is read-only, and the user has no home there.
        "HOME": "/tmp",  # noqa: S108 - a volume of the pod's own
        "PYTHONUNBUFFERED": "1",
        **job.variables,
    }
    secret = run.spec.teacher.secret_ref
    if not PHASES[job.phase].reads_sources:
        variables |= offline_variables()
    listed: list[Json] = [{"name": name, "value": value} for name, value in variables.items()]
    return [*listed, *_secrets(secret, job.config)] if secret is not None else listed


def _secrets(secret: SecretKeyRef, config: JobConfig) -> list[Json]:
    """What opens the sources that the job fetches, by reference."""
    keys = secret_keys(config.sources, secret.key) if isinstance(config, SourcesJob) else {}
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": key}}} for name, key in keys.items()
    ]


def _resources(settings: PhaseSettings, gpu: str) -> Json:
    resources: Json = dict(settings.resources or {})
    if settings.gpus_per_node:
        # Kubernetes takes the request of an extended resource from its limit, and refuses another one.
        for kind in ("limits", "requests") if gpu in resources.get("requests", {}) else ("limits",):
            resources[kind] = {**resources.get(kind, {}), gpu: settings.gpus_per_node}
    return resources


def _store_mount(run: CompressionRun) -> Json:
    storage = run.spec.storage
    sub_path = storage.persistent_volume_claim.sub_path if storage else None
    mount: Json = {"name": STORE_VOLUME, "mountPath": STORE}
    return mount | {"subPath": sub_path} if sub_path else mount


def _volumes(run: CompressionRun, claims: Mapping[str, str]) -> list[Json]:
    storage = run.spec.storage
    if storage is None:
        raise ValueError("spec.storage is required on a cluster")
    memory: Json = {"medium": "Memory"}
    if run.spec.job_template.shared_memory:
        memory["sizeLimit"] = run.spec.job_template.shared_memory
    return [
        {"name": STORE_VOLUME, "persistentVolumeClaim": {"claimName": storage.persistent_volume_claim.claim_name}},
        {"name": "shared-memory", "emptyDir": memory},
        {"name": "tmp", "emptyDir": {}},
        *(
            {"name": _claim_volume(run, claim), "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
            for claim in claims
            if _claim_volume(run, claim) != STORE_VOLUME
        ),
    ]


def _claim_volume(run: CompressionRun, claim: str) -> str:
    storage = run.spec.storage
    if storage and storage.persistent_volume_claim.claim_name == claim:
        return STORE_VOLUME  # the kubelet never finishes mounting a pod that has one claim in two volumes
    # Names of claims may hold dots and be long; names of volumes may not.
    return f"source-{hashlib.sha256(claim.encode()).hexdigest()[:10]}"


def _claims(config: JobConfig) -> dict[str, str]:
    """The claims that a job reads its sources from -> where it finds them."""
    return {claim: f"{MOUNTED_CLAIMS}/{claim}" for claim in sorted(set(claims_of(config.sources).values()))}
