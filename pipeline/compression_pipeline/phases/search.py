"""search: of the shapes that meet a student's target, measure those that are cut least, and tell the best."""

import json
import math
from collections.abc import Sequence

import torch

from compression_pipeline.config import (
    Architecture,
    Candidate,
    Phase,
    Precision,
    Ranking,
    Search,
    SearchJob,
    SearchResult,
    Shape,
    TaskScore,
    loss_faults,
)
from compression_pipeline.context import Context
from compression_pipeline.engines import start_engine
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.files import inspect
from compression_pipeline.phases import ranking, scores
from compression_pipeline.phases.arithmetic import planned_precision
from compression_pipeline.phases.candidates import Measuring
from compression_pipeline.phases.prune import check_sizes
from compression_pipeline.phases.timing import time_shapes

FILE = "candidates.json"


def run(job: SearchJob, context: Context) -> SearchResult:
    """Measure the candidates and publish them as `search-<key>`.

    The artifact: `candidates.json`, all that were measured, the best first.

    Raises:
        UserError: no shape meets the target, before anything is loaded; a loss asks for what a candidate does not have;
            the text is too short; no candidate computes a number.
        Interrupted: told to stop; another attempt measures what is left.
    """
    files = inspect(context.store.open(job.teacher).model)
    teacher = files.architecture
    check_sizes(teacher, job.prune)
    search = Search.of(teacher, job.prune)
    if search is None:
        raise UserError("prune: has no target, so there is nothing to search; give target, or run prune")
    by_speed = search.target.tokens_per_second is not None
    if not by_speed:
        _check_losses(job, teacher, search.found.best)
    _check_tasks(job)
    dtype, planned = ranking.stored_type(files), planned_precision(Phase.SEARCH)
    # As prune, whose scores these are.
    precision = planned if dtype is torch.bfloat16 else Precision.FP32
    seed = {"seed": job.distill.seed, "deterministic": job.distill.deterministic} if job.distill else {}
    with start_engine(job, context, precision=precision, **seed) as engine:
        timed = time_shapes(job, context, engine, search) if by_speed else None
        if timed is not None:
            _check_losses(job, teacher, timed.fast)
        tried = timed.fast if timed is not None else search.found.best
        measured = Measuring(job, context, engine, teacher)
        whole = measured.whole()
        found = measured.candidates(tried)
        if timed is not None:
            found = [one.model_copy(update={"tokens_per_second": timed.speeds[one.shape]}) for one in found]
        candidates = _best_first(found, distilled=job.distill is not None, whole=whole.score)
        result = SearchResult(
            shapes=timed.reaching if timed is not None else search.found.count,
            timed=len(timed.speeds) if timed is not None else None,
            teacher_generation=timed and timed.teacher,
            teacher_loss=whole.loss.loss,
            teacher_score=whole.score,
            validation_sequences=len(measured.validation),
            candidates=candidates,
        )
        if engine.rank == 0:
            with context.store.draft("search", job.fingerprint) as draft:
                (draft.path / FILE).write_text(json.dumps(result.to_json(), indent=1) + "\n")
                metrics = {"precision": engine.precision.value, "scoresReused": measured.reused}
                published = draft.publish(
                    config=job.to_json(),
                    inputs={"data": job.data, "teacher": job.teacher, **scores.tasks_of(job), **measured.inputs},
                    result=result.to_json(),
                    metrics=metrics,
                )
            result = published.result(SearchResult)
    return result


def _check_losses(job: SearchJob, teacher: Architecture, students: Sequence[Architecture]) -> None:
    """Raises UserError with the first candidate that cannot be distilled by the losses."""
    if job.distill is None:
        return
    for student in students:
        faults = loss_faults(job.distill.losses, teacher, student, engine=job.engine)
        if said := "; ".join(f"distill.{field}: {sentence}" for field, sentence in faults):
            raise UserError(f"{said} (of the candidate with {Shape.of(student)})")


def _check_tasks(job: SearchJob) -> None:
    """Raises UserError where layers or candidates are to be ranked by a task and the job was given none."""
    ranking.check_task(job)
    asks = job.prune.target is not None and job.prune.target.rank is Ranking.TASK
    if asks and (job.ranked_by is None or job.tasks is None):
        raise UserError(
            f"prune.target.rank: {Ranking.TASK} needs a task of evaluate.tasks, and the job has none; name one, with "
            "an operator of this version"
        )


def _best_first(candidates: Sequence[Candidate], *, distilled: bool, whole: TaskScore | None = None) -> list[Candidate]:
    """By their losses; those that computed no number, in their order, last. Raises UserError where all did.

    `whole`: what the teacher scored in the task that candidates are ranked by. Of equal scores the loss decides.
    """
    sign = -1 if whole is not None and whole.higher_is_better else 1

    def place(one: Candidate) -> tuple[float, float]:
        loss = one.loss(distilled=distilled)
        if loss is None or (whole is not None and one.score is None):
            return math.inf, math.inf
        return sign * (one.score or 0) if whole is not None else 0, loss

    if all(math.isinf(place(one)[1]) for one in candidates):
        raise UserError(
            "prune.target: the loss of every candidate is no number; lower the cut or distill.learningRate, or check "
            "the teacher"
        )
    return sorted(candidates, key=place)
