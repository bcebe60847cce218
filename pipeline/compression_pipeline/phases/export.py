"""export: write the student as a Hugging Face checkpoint with card and report, and prove that it is what was trained.

Needs neither Megatron nor ModelOpt.
"""

from pathlib import Path
from typing import Any

import torch

from compression_pipeline.config import Architecture, ExportDtype, ExportJob, ExportResult, Phase
from compression_pipeline.context import Context
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.conversion import CheckpointReader
from compression_pipeline.huggingface.files import inspect
from compression_pipeline.huggingface.names import expected_shapes
from compression_pipeline.huggingface.sample import continue_greedily, default_prompt
from compression_pipeline.huggingface.writer import write_checkpoint
from compression_pipeline.imports import import_transformers, preload_transformers
from compression_pipeline.phases.describing import PROVED, describe_student
from compression_pipeline.phases.drawing import warn_of
from compression_pipeline.reference_logits import Reference, relative_error
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.data import Exported
from compression_pipeline.store.system import processors
from compression_pipeline.text import mixture

TOLERANCE = 1e-4
"""Largest relative error of the logits. Two implementations of the same arithmetic differ by less than 1e-5."""


NEGLIGIBLE = 1024**3
"""Bytes of memory that an export has for a model at least."""


def preload(job: ExportJob) -> None:
    """Import what `run` imports late."""
    preload_transformers()


def run(job: ExportJob, context: Context) -> ExportResult:
    """Export the student and publish it as `export-<fingerprint>`.

    The artifact: `model/`, which is all that a user needs, and `report/index.html`: what it lost and gained.

    Raises UserError where the type can't hold the weights, or where plain transformers doesn't compute from the files
    what the trained student computes.
    """
    inputs = {name: context.store.open(name) for name in job.inputs}
    data, teacher, distilled = (inputs[name] for name in (job.data, job.teacher, job.distilled))
    ancestry = Ancestry.read(*inputs.values())
    torch.set_num_threads(job.threads or processors())
    reference = Reference.read(distilled.path)
    reader = CheckpointReader(distilled.model)
    student, settings = reader.files.architecture, job.export
    check_range(reference, settings.dtype)
    with context.store.draft("export", job.fingerprint) as draft:
        folder = draft.path / "model"
        context.events.info(f"writes {student.parameters:,} parameters as {settings.dtype.value}")
        write_checkpoint(
            ((name, reader(name)) for name in expected_shapes(student)),
            student,
            folder,
            template=distilled.model,
            dtype=getattr(torch, settings.dtype.value),
            max_shard_size=settings.max_shard_size,
        )
        context.stop_if_requested()
        inspect(folder)
        model, tokenizer = load(folder)
        error = prove(model, reference, settings.dtype, student)
        context.events.metric("relativeError", error)
        context.stop_if_requested()
        prompt = settings.sample_prompt or default_prompt(mixture.parts(data.data)[0].folder / "validation", tokenizer)
        sample = continue_greedily(model, tokenizer, prompt, settings.sample_tokens)
        del model  # the teacher takes its place
        context.stop_if_requested()
        by_teacher = teacher_sample(teacher.model, student, prompt, settings.sample_tokens, context)
        exported = Exported(
            relative_error=error,
            loss=ancestry.loss_of(settings.dtype),
            dtype=settings.dtype.value,
            weights=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
            sample=sample,
            teacher_sample=by_teacher,
        )
        describe_student(ancestry, Phase.EXPORT, job, exported, draft.path, context)
        ancestry.terms.write_notice(folder)
        result = ExportResult(
            parameters=student.parameters,
            dtype=settings.dtype,
            distilled_loss=exported.loss,
            relative_error=error,
            bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            sample=sample,
            teacher_sample=by_teacher,
        )
        published = draft.publish(
            config=job.to_json(),
            inputs={role: name for role in job.roles if (name := getattr(job, role, None))},
            result=result.to_json(),
        )
    return published.result(ExportResult)  # another job's, where that was first


def check_range(reference: Reference, dtype: ExportDtype) -> None:
    """Refuse a type whose range the weights, or what they compute, don't fit in."""
    if not reference.logits[dtype].isfinite().all():
        raise UserError(f"export.dtype: {dtype.value} can't hold this student's weights; use bfloat16 or float32")


def teacher_sample(teacher: Path, student: Architecture, prompt: str, tokens: int, context: Context) -> str | None:
    """What the teacher writes, to compare with; None where it would take more memory than the student took.

    None with a warning, too, where plain transformers can't load a teacher that Megatron could.
    """
    if not fits(inspect(teacher).architecture, student):
        return None
    try:
        model, tokenizer = load(teacher, torch.bfloat16)
        return continue_greedily(model, tokenizer, prompt, tokens)
    except Exception as error:
        warn_of("the teacher's sample could not be had", error, context, safe=PROVED)
        return None


def fits(teacher: Architecture, student: Architecture) -> bool:
    """Whether the teacher in bfloat16 takes no more memory than the student in float32, or little anyway."""
    return teacher.parameters * 2 <= max(student.parameters * 4, NEGLIGIBLE)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The checkpoint as any user loads it: (model, tokenizer)."""
    library = import_transformers()
    model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.eval(), library.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def prove(model: Any, reference: Reference, dtype: ExportDtype, student: Architecture) -> float:
    """Relative error of the logits of `model` against those of the student that was trained, rounded to `dtype`.

    Raises UserError where it is above `TOLERANCE`, or where the model has not as many parameters as it should.
    """
    blame = "the export is not the student that was trained; please report this with the manifest and this job's log"
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != student.parameters:
        raise UserError(f"transformers finds {count:,} parameters instead of {student.parameters:,}: {blame}")
    with torch.no_grad():
        logits = model(reference.tokens).logits[:, reference.positions]
    error = relative_error(logits, reference.logits[dtype])
    if not error <= TOLERANCE:
        raise UserError(f"the logits differ by {error:.1e} of the largest one (at most {TOLERANCE:.0e}): {blame}")
    return error
