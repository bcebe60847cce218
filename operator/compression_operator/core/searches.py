"""What the searches of a run will try, and need, told before the first of them. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from compression_operator.api.spec import CompressionRunSpec, Student
from compression_operator.api.status import CompressionRunStatus, StepState
from compression_pipeline.config import (
    Architecture,
    Cache,
    Candidate,
    DistillConfig,
    DocumentAttention,
    EvaluateConfig,
    Precision,
    Search,
    chains,
    human_bytes,
    resolved_losses,
    timed_at_most,
)
from compression_pipeline.config.chunks import CALIBRATION_TOKENS
from compression_pipeline.sizing import (
    USABLE,
    candidate,
    importance_flops,
    least_recomputation,
    logits_memory,
    search_flops,
    training_memory,
)

from .phase_steps import STEPS
from .plan import Plan
from .sizes import BFLOAT16, FLOAT32, Hardware, arithmetic, hours_on, named_gpu

NOTHING_FOUND: Mapping[str, Sequence[Candidate]] = MappingProxyType({})


@dataclass(frozen=True)
class PlannedSearch:
    """The shapes that meet a student's target, and what it will cost to find the best."""

    shapes: int
    """All that meet the target."""
    candidates: Sequence[Candidate]
    """Those that are measured, the least cut first; by shape alone the first is taken."""
    measured: bool
    done: bool = False
    """Whether they have been measured: they have losses then, the best first."""
    timed: int | None = None
    """Shapes that are timed at most beside the teacher, where the target is in tokens per second. The candidates here
    are then the least cut shapes of all, because only the device tells which are fast enough.
    """
    flops: float = 0.0
    """Without those of tasks that rank (`asks`): how long their questions are isn't known."""
    again: float = 0.0
    """Operations of the prune after it that measures importance again, because the run shares no scores."""
    asks: Sequence[str] = ()
    """What is ranked by a task."""
    gpu: str | None = None
    gpu_hours: float | None = None
    warnings: Sequence[str] = ()


def found_by_searches(status: CompressionRunStatus, planned: Plan) -> Mapping[str, Sequence[Candidate]]:
    """By student: the candidates of a search that is done and stands in the plan."""
    finding = [step for step in planned.steps if STEPS[step.phase].finds_shape and step.fingerprint is not None]
    done = {
        step.student
        for step in finding
        if (made := status.step(step.name)) is not None
        and made.state is StepState.SUCCEEDED
        and made.fingerprint == step.fingerprint
    }
    return {one.name: one.candidates for one in status.students if one.candidates and one.name in done}


def searches(
    spec: CompressionRunSpec,
    planned: Plan,
    teacher: Architecture,
    hardware: Hardware,
    done: Mapping[str, Sequence[Candidate]] = NOTHING_FOUND,
    *,
    dtype: str | None = None,
) -> Mapping[str, PlannedSearch]:
    """By student that has a target which shapes of the teacher meet: what will be searched, or has been (`done`).

    `dtype`: of the teacher's weights, by torch's name; bfloat16 where it isn't known.
    """
    found: dict[str, PlannedSearch] = {}
    for student in spec.students:
        search, target = Search.of(teacher, student.prune), student.prune.target
        if search is None or target is None or search.fault() is not None:
            continue
        if student.name in done:
            found[student.name] = PlannedSearch(search.found.count, done[student.name], measured=True, done=True)
            continue
        length, best = spec.dataset.sequence_length, list(search.found.best)
        candidates = [candidate(one, student.prune, length) for one in best]
        own = (one for one in planned.steps if one.student == student.name and STEPS[one.phase].finds_shape)
        step = next(own, None)
        if step is None:
            found[student.name] = PlannedSearch(search.found.count, candidates, measured=False)
            continue
        distill = step.configuration["distill"]
        flops = search_flops(
            teacher, best, student.prune, sequence_length=length, validation=spec.validation, distill=distill
        )
        on_gpu = hardware.gpus != 0 and step.settings.gpus_per_node > 0
        gpu = (hardware.gpu or named_gpu(spec, step.settings)) if on_gpu else None
        # The search computes in float32 where the weights that it cuts are not bfloat16.
        precision = arithmetic(on_gpu and dtype in (None, "bfloat16"))
        isolated = spec.dataset.document_attention is DocumentAttention.ISOLATED
        room = gpu.memory if gpu is not None else None
        needed = _searching_memory(best, teacher, distill, length, precision, room, isolated=isolated)
        less = "leave distillSteps out, lower distill.microBatchSize or dataset.sequenceLength, or " if distill else ""
        again = [importance_flops(teacher, [one], student.prune, sequence_length=length) for one in best]
        found[student.name] = PlannedSearch(
            search.found.count,
            candidates,
            measured=True,
            timed=timed_at_most(chains(search)) if target.tokens_per_second is not None else None,
            flops=flops,
            again=max(again) if spec.cache is Cache.RUN else 0.0,
            asks=[what for what, asked in _ranked_by_tasks(spec, student) if asked is not None],
            gpu=gpu.name if gpu else None,
            gpu_hours=hours_on(flops, gpu, hardware),
            warnings=[
                f"{step.name} needs about {human_bytes(needed)} on one GPU, and {gpu.name} has "
                f"{human_bytes(gpu.memory)}; {less}use a larger GPU"
            ]
            if gpu is not None and needed > gpu.memory * USABLE
            else [],
        )
    return found


def _ranked_by_tasks(spec: CompressionRunSpec, student: Student) -> Iterator[tuple[str, EvaluateConfig | None]]:
    yield "layers", spec.depth_task(student)
    yield "candidates", spec.rank_task(student)


def _searching_memory(
    students: Sequence[Architecture],
    teacher: Architecture,
    distill: DistillConfig | None,
    length: int,
    precision: Precision,
    room: int | None,
    *,
    isolated: bool,
) -> int:
    """Bytes of the largest candidate's short distillation on one GPU, or of teacher, candidate and all logits."""
    if distill is None:
        width = BFLOAT16 if precision is Precision.BF16 else FLOAT32
        weights = (teacher.parameters + max(one.parameters for one in students)) * width
        return weights + logits_memory(teacher, max(1, CALIBRATION_TOKENS // length) * length, precision)
    needed: list[int] = []
    for one in students:
        memory = partial(
            training_memory,
            one,
            micro_batch_size=distill.micro_batch_size,
            sequence_length=length,
            precision=precision,
            copies=1,
            teacher=teacher,
            losses=resolved_losses(distill.losses, teacher, one),
            isolated=isolated,
        )
        least = least_recomputation(distill.activation_recomputation, memory, room)
        needed.append(memory(recomputation=least).total)
    return max(needed)
