"""What the trainings of a run will need, told before the first of them: tokens, operations, memory, room. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

from compression_operator.api.phase_settings import PhaseSettings
from compression_operator.api.planned import PlannedMemory, PlannedTraining
from compression_operator.api.run import CompressionRun
from compression_operator.api.spec import CompressionRunSpec, Student
from compression_operator.api.status import CompressionRunStatus, StepState
from compression_pipeline.config import (
    PHASES,
    Architecture,
    Cache,
    Candidate,
    DistillConfig,
    DocumentAttention,
    EvaluateConfig,
    ParallelLayout,
    Precision,
    Search,
    Shape,
    TrainingConfig,
    chains,
    human_bytes,
    quantity_bytes,
    resolved_losses,
    student_architecture,
    student_faults,
    timed_at_most,
)
from compression_pipeline.config import Sizes as ShapeStatus
from compression_pipeline.config.chunks import CALIBRATION_TOKENS
from compression_pipeline.sizing import (
    Gpu,
    candidate,
    find_gpu,
    importance_flops,
    logits_memory,
    search_flops,
    training_flops,
    training_memory,
)

from .phase_steps import STEPS
from .plan import Plan, PlannedStep, runs_on_gpus

MFU = 0.4
"""Share of a GPU's peak that a training is assumed to reach."""

PRODUCT_LABEL = "nvidia.com/gpu.product"
"""Label by which nodes tell their GPU (of NVIDIA's GPU feature discovery)."""

USABLE = 0.94
"""Share of a GPU's memory that is there for tensors; CUDA's context, NCCL's buffers and fragments take the rest."""

PROCESS = 3 * 1024**3
"""Bytes of main memory of a rank that computes on a GPU: torch, Megatron and CUDA's libraries."""

CPU_PROCESS = 1024**3
"""Bytes of a rank that computes on the CPU, besides its tensors."""

FLOAT32, BFLOAT16 = 4, 2

NOTHING_SEARCHED: Mapping[str, Architecture] = MappingProxyType({})

NOTHING_FOUND: Mapping[str, Sequence[Candidate]] = MappingProxyType({})


@dataclass(frozen=True)
class Hardware:
    """What the trainings are assumed to run on."""

    gpus: bool = True
    """Whether phases that ask for GPUs get them."""
    gpu: Gpu | None = None
    """Their kind; None: the one that the phase's node selector names."""
    mfu: float = MFU


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


@dataclass(frozen=True)
class Sizes:
    """What a run will need."""

    shapes: Mapping[str, Architecture]
    """By student."""
    trainings: Mapping[str, PlannedTraining]
    """By step."""
    store: Mapping[str, tuple[int, int]]
    """By step: bytes of its artifact, and of its checkpoints, which go when it has ended. Text is not counted."""
    peak: int
    """Most bytes that the store needs at once."""


def run_sizes(
    spec: CompressionRunSpec,
    planned: Plan,
    teacher: Architecture,
    hardware: Hardware,
    searched: Mapping[str, Architecture] = NOTHING_SEARCHED,
) -> Sizes:
    """What the run will need, given its teacher. Students that cannot be made of it are left out. `searched`: shapes
    that were found for targets; until then the first candidate stands for them.
    """
    shapes = {
        student.name: searched.get(student.name) or student_architecture(teacher, student.prune)
        for student in spec.students
        if not any(student_faults(teacher, student.prune))
    }
    steps = [step for step in planned.steps if step.student is None or step.student in shapes]
    store = {step.name: _stored(step, teacher, shapes) for step in steps}
    trainings = {
        step.name: _planned(step, config, spec, teacher, shapes.get(step.student or ""), hardware)
        for step in steps
        if (config := _training(step)) is not None
    }
    for name, training in trainings.items():
        trainings[name] = training.model_copy(update={"store_bytes": _beside(name, steps, store)})
    checkpoints = sorted((beside for _, beside in store.values()), reverse=True)
    peak = sum(kept for kept, _ in store.values()) + sum(checkpoints[: spec.max_parallel_jobs])
    return Sizes(shapes, trainings, store, peak)


def with_sizes(status: CompressionRunStatus, run: CompressionRun, planned: Plan) -> CompressionRunStatus:
    """The status with what each training is expected to need, and the shapes that targets led to, while the teacher is
    known.
    """
    teacher, trainings, shapes = status.teacher, dict[str, PlannedTraining](), dict[str, ShapeStatus]()
    if teacher is not None and status.resolved is not None:
        found = {one.name: chosen(one.candidates, teacher) for one in status.students if one.candidates}
        sizes = run_sizes(run.spec, planned, teacher, Hardware(gpus=runs_on_gpus(run)), found)
        trainings = sizes.trainings
        by_target = [one for one in run.spec.students if one.prune.target and one.name in sizes.shapes]
        for one in by_target:
            if one.name in found or not one.prune.searches:
                shapes[one.name] = ShapeStatus(**Shape.of(sizes.shapes[one.name])._asdict())
    of = {step.student: trainings.get(step.name) for step in planned.steps if PHASES[step.phase].trains}
    return status.model_copy(
        update={
            "teacher": teacher and teacher.model_copy(update={"planned": of.get(None)}),
            "students": [
                one.model_copy(update={"planned": of.get(one.name), "shape": shapes.get(one.name)})
                for one in status.students
            ],
        }
    )


def chosen(candidates: Sequence[Candidate], teacher: Architecture) -> Architecture:
    """The student that a search has found the best."""
    return candidates[0].shape.architecture(teacher)


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
        on_gpu = hardware.gpus and step.settings.gpus_per_node > 0
        gpu = (hardware.gpu or _named_gpu(spec, step.settings)) if on_gpu else None
        # The search computes in float32 where the weights that it cuts are not bfloat16.
        precision = _arithmetic(on_gpu and dtype in (None, "bfloat16"))
        isolated = spec.dataset.document_attention is DocumentAttention.ISOLATED
        needed = _searching_memory(best, teacher, distill, length, precision, isolated=isolated)
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
            gpu_hours=_hours(flops, gpu, hardware),
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
    *,
    isolated: bool,
) -> int:
    """Bytes of the largest candidate's short distillation on one GPU, or of teacher, candidate and all logits."""
    if distill is None:
        width = BFLOAT16 if precision is Precision.BF16 else FLOAT32
        weights = (teacher.parameters + max(one.parameters for one in students)) * width
        return weights + logits_memory(teacher, max(1, CALIBRATION_TOKENS // length) * length, precision)
    return max(
        training_memory(
            one,
            micro_batch_size=distill.micro_batch_size,
            sequence_length=length,
            precision=precision,
            copies=1,
            teacher=teacher,
            losses=resolved_losses(distill.losses, teacher, one),
            isolated=isolated,
        ).total
        for one in students
    )


def _hours(flops: float, gpu: Gpu | None, hardware: Hardware) -> float | None:
    return round(flops / (gpu.peak_flops * hardware.mfu) / 3600, 3) if gpu else None


def _training(step: PlannedStep) -> TrainingConfig | None:
    found = step.configuration.get(step.phase)
    return found if PHASES[step.phase].trains and isinstance(found, TrainingConfig) else None


def _planned(
    step: PlannedStep,
    training: TrainingConfig,
    spec: CompressionRunSpec,
    teacher: Architecture,
    student: Architecture | None,
    hardware: Hardware,
) -> PlannedTraining:
    settings, length, layout = step.settings, spec.dataset.sequence_length, _layout(step.settings, hardware)
    trained, taught = (teacher, None) if student is None else (student, teacher)
    on_gpu = hardware.gpus and settings.gpus_per_node > 0
    losses = resolved_losses(training.losses, teacher, trained) if isinstance(training, DistillConfig) else []
    memory = training_memory(
        trained,
        micro_batch_size=training.micro_batch_size,
        sequence_length=length,
        precision=training.precision if training.precision is not Precision.AUTO else _arithmetic(on_gpu),
        copies=layout.data,
        on_gpu=on_gpu,
        teacher=taught,
        losses=losses,
        isolated=spec.dataset.document_attention is DocumentAttention.ISOLATED,
    )
    tokens = training.steps * training.global_batch_size * length
    flops = tokens * training_flops(trained, length, taught)
    gpu = (hardware.gpu or _named_gpu(spec, settings)) if on_gpu else None
    planned = PlannedTraining(
        parameters=trained.parameters,
        ranks=layout.ranks,
        tokens=tokens,
        flops=flops,
        memory_per_gpu=PlannedMemory(total=memory.total, **asdict(memory)),
        store_bytes=0,
        gpu=gpu.name if gpu else None,
        gpu_hours=_hours(flops, gpu, hardware),
    )
    warnings = [*_gpu_warnings(step, planned, gpu), *_pod_warnings(step, planned, layout.per_node, on_gpu=on_gpu)]
    return planned.model_copy(update={"warnings": warnings})


def _layout(settings: PhaseSettings, hardware: Hardware) -> ParallelLayout:
    """The ranks of a phase's jobs; a machine without GPUs is one node."""
    return settings.layout if hardware.gpus else ParallelLayout(nodes=1, per_node=settings.processes_per_node)


def _arithmetic(on_gpu: bool) -> Precision:
    return Precision.BF16 if on_gpu else Precision.FP32


def _named_gpu(spec: CompressionRunSpec, settings: PhaseSettings) -> Gpu | None:
    """The GPU that the nodes have which the phase selects, if it is known."""
    selector = spec.job_template.node_selector if settings.node_selector is None else settings.node_selector
    return find_gpu(selector[PRODUCT_LABEL]) if PRODUCT_LABEL in selector else None


def _gpu_warnings(step: PlannedStep, planned: PlannedTraining, gpu: Gpu | None) -> Sequence[str]:
    needed = planned.memory_per_gpu
    if gpu is None or needed.total <= gpu.memory * USABLE:
        return []
    fixed = needed.total - needed.activations - needed.logits
    advice = "lower microBatchSize or dataset.sequenceLength, or use larger GPUs"
    if fixed > gpu.memory * USABLE:
        smallest = fixed - needed.optimizer * (1 - 1 / 64)
        more = "more GPUs, which share the optimizer's state, or " if smallest < gpu.memory * USABLE else ""
        advice = f"use {more}larger ones"
    return [
        f"{step.name} needs about {human_bytes(needed.total)} on each GPU, and {gpu.name} has "
        f"{human_bytes(gpu.memory)}; {advice}"
    ]


def _pod_warnings(step: PlannedStep, planned: PlannedTraining, ranks: int, *, on_gpu: bool) -> Sequence[str]:
    limits = (step.settings.resources or {}).get("limits", {})
    limit = quantity_bytes(limits["memory"]) if "memory" in limits else None
    needed = ranks * (PROCESS if on_gpu else CPU_PROCESS + planned.memory_per_gpu.total)
    if on_gpu and step.student is not None:
        needed += planned.parameters * FLOAT32  # the first rank gathers the trained weights
    if limit is None or limit >= needed:
        return []
    return [
        f"phases.{step.phase}.resources.limits.memory is {limits['memory']} and a pod of {step.name} needs about "
        f"{human_bytes(needed)}; raise it to {-(-needed // 1024**3)}Gi"
    ]


def _stored(step: PlannedStep, teacher: Architecture, shapes: Mapping[str, Architecture]) -> tuple[int, int]:
    phase = PHASES[step.phase]
    if phase.reads_sources:
        copied = teacher.parameters if "teacher" in step.configuration else 0
        return copied * BFLOAT16, 0  # as checkpoints come
    student = shapes[step.student].parameters if step.student is not None else 0
    job = phase.job.sketch(step.configuration)
    return job.bytes_kept(teacher.parameters, student), job.bytes_of_checkpoints(teacher.parameters, student)


def _beside(name: str, steps: Sequence[PlannedStep], store: Mapping[str, tuple[int, int]]) -> int:
    """Bytes of all artifacts of the step's student, or of its own if it is for all, and of the step's checkpoints."""
    student = next(step.student for step in steps if step.name == name)
    own = {step.name for step in steps if step.student == student} if student is not None else {name}
    return sum(store[one][0] for one in own) + store[name][1]
