"""What the jobs of the reconciler's tests report: figures that tell whose they are."""

from typing import Any

from pydantic.alias_generators import to_camel

from compression_operator.core.jobs import Job
from compression_pipeline.config import PHASES, Architecture, Cache, Family, Phase, PrepareJob, TasksJob, digest

TEACHER = Architecture(
    family=Family.LLAMA,
    layers=4,
    hidden_size=256,
    ffn_hidden_size=512,
    attention_heads=8,
    query_groups=4,
    head_dim=32,
    vocabulary_size=1000,
)
VALIDATION_TOKENS = 100_000


def number(key: str) -> int:
    """A figure that only the job of this key can have reported."""
    return int(key[:8], 16) + 1


def loss(key: str, which: int = 0) -> float:
    return number(key) / 2**20 + which


def content_key(job: PrepareJob) -> str:
    """Key of the content that prepare finds: the revision is a name for it, not the content."""
    own = [] if job.cache is Cache.STORE else [job.fingerprint]
    return digest([job.teacher.model, job.dataset.source, job.dataset.text_column, *own])


def result(job: Job) -> dict[str, Any]:
    """What a job reports that is done."""
    key = job.fingerprint
    match job.phase:
        case Phase.PREPARE:
            assert isinstance(job.config, PrepareJob)
            source = {"source": "hf://owner/x", "revision": "abc", "digest": "d"}
            return {
                "key": content_key(job.config),
                "teacher": TEACHER.to_json(),
                "teacherParameters": TEACHER.parameters,
                "resolvedTeacher": source,
                "resolvedDataset": source,
                "documents": 10,
                "trainTokens": 100_000_000,
                "validationTokens": VALIDATION_TOKENS,
            }
        case Phase.FINETUNE:
            return {"teacherLoss": loss(key), "correctedTeacherLoss": loss(key, 1), "newInALaterVersion": 1}
        case Phase.SEARCH:
            widths = {"hiddenSize": 128, "ffnHiddenSize": 256, "attentionHeads": 8}
            figures = {"flops": 1e6, "memory": number(key), "prunedLoss": loss(key)}
            candidates = [{**widths, "layers": n, "parameters": number(key), **figures} for n in (3, 4)]
            return {"shapes": 9, "teacherLoss": 1.0, "validationSequences": 4, "candidates": candidates}
        case Phase.PRUNE:
            return {
                "student": TEACHER.to_json(),
                "parameters": number(key),
                "compressionRatio": 0.5,
                "keptLayers": [1, 2, 4],
            }
        case Phase.DISTILL:
            return {
                "teacherLoss": loss(key),
                "prunedLoss": loss(key, 1),
                "distilledLoss": loss(key, 2),
                "tokensPerSecond": float("nan"),
            }
        case Phase.EXPORT:
            return {"parameters": 1, "relativeError": 1e-6, "bytes": 4, "sample": f"sample of {key} " * 50}
        case Phase.TASKS:
            assert isinstance(job.config, TasksJob)
            own = [] if job.config.cache is Cache.STORE else [key]
            asked = job.config.evaluate
            digests = {task.name: digest([task.name, task.source, *own]) for task in asked.tasks}
            return {"key": digest([asked.to_json(), *own]), "harness": "0.4.13", "digests": digests}
        case Phase.BASELINE | Phase.BASELINE_CORRECTED | Phase.EVALUATE:
            return {"tasks": [], "precision": "FP32"}
        case phase:  # what it requires beside these are numbers, or it needs a case of its own
            required = (
                to_camel(name) for name, field in PHASES[phase].result.model_fields.items() if field.is_required()
            )
            return {name: number(key) for name in required}
