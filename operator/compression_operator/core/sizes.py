"""What the trainings of a run will need, told before the first of them: tokens, operations, memory, room. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from compression_operator.api.phase_settings import PhaseSettings
from compression_operator.api.planned import PlannedMemory, PlannedTraining
from compression_operator.api.run import CompressionRun
from compression_operator.api.spec import CompressionRunSpec
from compression_operator.api.status import CompressionRunStatus
from compression_pipeline.config import (
    PHASES,
    Architecture,
    DistillConfig,
    DocumentAttention,
    LogitsConfig,
    ParallelLayout,
    Precision,
    Recomputation,
    Shape,
    TrainingConfig,
    human_bytes,
    quantity_bytes,
    resolved_losses,
)
from compression_pipeline.config import Sizes as ShapeStatus
from compression_pipeline.sizing import (
    USABLE,
    Gpu,
    find_gpu,
    forward_flops,
    forward_memory,
    least_recomputation,
    training_flops,
    training_memory,
)

from .plan import Plan, PlannedStep, gpus_of
from .room import NOTHING_SEARCHED, bytes_stored, searched_in, shapes_of

MFU = 0.4
"""Share of a GPU's peak that a training is assumed to reach."""

PRODUCT_LABEL = "nvidia.com/gpu.product"
"""Label by which nodes tell their GPU (of NVIDIA's GPU feature discovery)."""

PROCESS = 3 * 1024**3
"""Bytes of main memory of a rank that computes on a GPU: torch, Megatron and CUDA's libraries."""

CPU_PROCESS = 1024**3
"""Bytes of a rank that computes on the CPU, besides its tensors."""

FLOAT32, BFLOAT16 = 4, 2


@dataclass(frozen=True)
class Hardware:
    """What the trainings are assumed to run on."""

    gpus: int | None = None
    """GPUs of the one machine that runs all; None: a cluster, which has what the phases ask for."""
    gpu: Gpu | None = None
    """Their kind; None: the one that the phase's node selector names."""
    mfu: float = MFU


@dataclass(frozen=True)
class Sizes:
    """What a run will need."""

    shapes: Mapping[str, Architecture]
    """By student."""
    trainings: Mapping[str, PlannedTraining]
    """By step: of those that train, and of those that run the teacher in place of them. Steps that make the same are
    there once.
    """
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
    """What the run will need, given its teacher. Students that cannot be made of it are left out. `searched`: see
    `shapes_of`.
    """
    shapes = shapes_of(spec, teacher, searched)
    steps = [step for step in planned.steps if step.student is None or step.student in shapes]
    store = {step.name: _stored(step, teacher, shapes) for step in steps}
    trainings, made = dict[str, PlannedTraining](), dict[tuple[object, ...], int]()
    for step in steps:
        known, made[_what(step)] = _what(step) in made, store[step.name][0]
        logits = step.configuration.get("logits")
        if (config := _training(step)) is not None:
            trainings[step.name] = _planned(step, config, spec, teacher, shapes.get(step.student or ""), hardware)
        elif isinstance(logits, LogitsConfig) and not known:
            trainings[step.name] = _planned_logits(step, logits, spec, teacher, hardware)
    for name, training in trainings.items():
        trainings[name] = training.model_copy(update={"store_bytes": _beside(name, steps, store)})
    checkpoints = sorted((beside for _, beside in store.values()), reverse=True)
    peak = sum(made.values()) + sum(checkpoints[: spec.max_parallel_jobs])
    return Sizes(shapes, trainings, store, peak)


def with_sizes(status: CompressionRunStatus, run: CompressionRun, planned: Plan) -> CompressionRunStatus:
    """The status with what each training is expected to need, and the shapes that targets led to, while the teacher is
    known.
    """
    teacher, trainings, shapes = status.teacher, dict[str, PlannedTraining](), dict[str, ShapeStatus]()
    if teacher is not None and status.resolved is not None:
        found = searched_in(status)
        sizes = run_sizes(run.spec, planned, teacher, Hardware(gpus=gpus_of(run)), found)
        trainings = sizes.trainings
        by_target = [one for one in run.spec.students if one.prune.target and one.name in sizes.shapes]
        for one in by_target:
            if one.name in found or not one.prune.searches:
                shapes[one.name] = ShapeStatus(**Shape.of(sizes.shapes[one.name])._asdict())
    of = dict[str | None, PlannedTraining]()
    for step in planned.steps:  # what reads logits comes after what writes them, whose warnings it takes over
        training, before = trainings.get(step.name), of.get(step.student)
        if training is not None:
            warnings = [*(before.warnings if before else []), *training.warnings]
            of[step.student] = training.model_copy(update={"warnings": warnings})
    return status.model_copy(
        update={
            "teacher": teacher and teacher.model_copy(update={"planned": of.get(None)}),
            "students": [
                one.model_copy(update={"planned": of.get(one.name), "shape": shapes.get(one.name)})
                for one in status.students
            ],
        }
    )


def hours_on(flops: float, gpu: Gpu | None, hardware: Hardware) -> float | None:
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
    settings, length = step.settings, spec.dataset.sequence_length
    layout = settings.layout_on(hardware.gpus, training.global_batch_size // training.micro_batch_size)
    trained, taught = (teacher, None) if student is None else (student, teacher)
    on_gpu = hardware.gpus != 0 and settings.gpus_per_node > 0
    distill = training if isinstance(training, DistillConfig) else None
    losses = resolved_losses(distill.losses, teacher, trained) if distill else []
    gpu = (hardware.gpu or named_gpu(spec, settings)) if on_gpu else None

    precision = training.precision if training.precision is not Precision.AUTO else arithmetic(on_gpu)
    micro_batches = max(1, training.global_batch_size // (training.micro_batch_size * layout.data))
    memory_of = partial(
        training_memory,
        trained,
        micro_batch_size=training.micro_batch_size,
        sequence_length=length,
        precision=precision,
        copies=layout.data,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        micro_batches=micro_batches,
        on_gpu=on_gpu,
        teacher=taught,
        losses=losses,
        isolated=spec.dataset.document_attention is DocumentAttention.ISOLATED,
        likeliest=distill and distill.likeliest,
    )
    room = gpu.memory if gpu is not None else None
    recomputed = least_recomputation(training.activation_recomputation, memory_of, room)
    memory = memory_of(recomputation=recomputed, scored=distill is not None and distill.task_interval is not None)
    tokens = training.steps * training.global_batch_size * length
    running = None if distill and distill.cached else taught
    flops = tokens * training_flops(trained, length, running, recomputed)
    worked = 1 - _idle(layout.pipeline, micro_batches)
    planned = PlannedTraining(
        parameters=trained.parameters,
        ranks=layout.ranks,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        tokens=tokens,
        flops=flops,
        memory_per_gpu=PlannedMemory(total=memory.total, **asdict(memory)),
        recomputation=recomputed,
        store_bytes=0,
        gpu=gpu.name if gpu else None,
        gpu_hours=hours_on(flops / worked, gpu, hardware),
    )
    gathered = trained.parameters * _bytes_gathered(precision, layout, on_gpu=on_gpu, distilled=distill is not None)
    warnings = [
        *_gpu_warnings(step, planned, gpu),
        *_pod_warnings(step, planned, layout.per_node, on_gpu=on_gpu, gathered=gathered),
        *_idle_warnings(step, layout.pipeline, micro_batches),
    ]
    return planned.model_copy(update={"warnings": warnings})


def _planned_logits(
    step: PlannedStep, logits: LogitsConfig, spec: CompressionRunSpec, teacher: Architecture, hardware: Hardware
) -> PlannedTraining:
    """What it takes to run the teacher once: every rank holds all of it."""
    settings, length = step.settings, spec.dataset.sequence_length
    on_gpu = hardware.gpus != 0 and settings.gpus_per_node > 0
    gpu = (hardware.gpu or named_gpu(spec, settings)) if on_gpu else None
    memory = forward_memory(
        teacher,
        micro_batch_size=logits.micro_batch_size,
        sequence_length=length,
        precision=logits.precision if logits.precision is not Precision.AUTO else arithmetic(on_gpu),
        isolated=spec.dataset.document_attention is DocumentAttention.ISOLATED,
    )
    tokens, layout = logits.sequences * length, settings.layout_on(hardware.gpus)
    flops = tokens * forward_flops(teacher, length)
    planned = PlannedTraining(
        parameters=teacher.parameters,
        ranks=layout.ranks,
        tokens=tokens,
        flops=flops,
        memory_per_gpu=PlannedMemory(total=memory.total, **asdict(memory)),
        store_bytes=0,
        gpu=gpu.name if gpu else None,
        gpu_hours=hours_on(flops, gpu, hardware),
    )
    warnings = [
        *_gpu_warnings(step, planned, gpu),
        *_pod_warnings(step, planned, layout.per_node, on_gpu=on_gpu),
    ]
    return planned.model_copy(update={"warnings": warnings})


def _idle_warnings(step: PlannedStep, stages: int, micro_batches: int) -> Sequence[str]:
    if micro_batches >= stages:
        return []
    passes = f"{micro_batches} micro-batch{'es' if micro_batches > 1 else ''}"
    return [
        f"{step.name} has {passes} in each copy for {stages} pipeline stages, so each stage idles "
        f"{_idle(stages, micro_batches):.0%} of the time; lower microBatchSize or "
        f"phases.{step.phase}.parallelism.pipeline, or raise globalBatchSize"
    ]


def arithmetic(on_gpu: bool) -> Precision:
    return Precision.BF16 if on_gpu else Precision.FP32


def named_gpu(spec: CompressionRunSpec, settings: PhaseSettings) -> Gpu | None:
    """The GPU that the nodes have which the phase selects, if it is known."""
    selector = spec.job_template.node_selector if settings.node_selector is None else settings.node_selector
    return find_gpu(selector[PRODUCT_LABEL]) if PRODUCT_LABEL in selector else None


def _gpu_warnings(step: PlannedStep, planned: PlannedTraining, gpu: Gpu | None) -> Sequence[str]:
    needed = planned.memory_per_gpu
    if gpu is None or needed.total <= gpu.memory * USABLE:
        return []
    training, trains = needed.total - needed.scoring, PHASES[step.phase].trains
    fixed = training - needed.activations - needed.logits
    ways = [] if planned.recomputation is Recomputation.FULL or not trains else ["set activationRecomputation: Full"]
    ways += ["lower microBatchSize or dataset.sequenceLength"]
    if fixed > gpu.memory * USABLE and not trains:
        ways = ["set distill.teacherLogits: Live and phases.distill.parallelism, which splits the teacher"]
    elif training <= gpu.memory * USABLE:
        ways = ["remove taskInterval, by which rank 0 scores a copy of the whole student between steps"]
    elif fixed > gpu.memory * USABLE:
        smallest = fixed - needed.optimizer * (1 - 1 / 64)
        ways = ["use more GPUs, which share the optimizer's state"] if smallest < gpu.memory * USABLE else []
    if trains and step.settings.split.tensor < step.settings.per_node:
        ways.append(f"raise phases.{step.phase}.parallelism.tensor, so that GPUs of a node share the weights")
    advice = ", or ".join([*ways, "use larger GPUs"])
    return [
        f"{step.name} needs about {human_bytes(needed.total)} on each GPU, and {gpu.name} has "
        f"{human_bytes(gpu.memory)}; {advice}"
    ]


def _idle(stages: int, micro_batches: int) -> float:
    """Share of a step for which a stage waits for the others, of Megatron's schedule 1F1B."""
    return (stages - 1) / (micro_batches + stages - 1)


def _bytes_gathered(precision: Precision, layout: ParallelLayout, *, on_gpu: bool, distilled: bool) -> int:
    """Of each trained weight in the main memory of a pod, as the first rank publishes them (`megatron/gathering.py`).
    Those of a distillation are in float32: where a model's own are rounded, the ranks of a copy have their parts of
    those there, too.
    """
    rounded, split = precision is Precision.BF16, layout.per_copy > 1
    if distilled and on_gpu:
        return FLOAT32 * (2 if rounded and split else 1)
    return (BFLOAT16 if rounded else FLOAT32) if split else 0


def _pod_warnings(
    step: PlannedStep, planned: PlannedTraining, ranks: int, *, on_gpu: bool, gathered: int = 0
) -> Sequence[str]:
    """`gathered`: bytes of weights in the main memory of a pod."""
    limits = (step.settings.resources or {}).get("limits", {})
    limit = quantity_bytes(limits["memory"]) if "memory" in limits else None
    needed = ranks * (PROCESS if on_gpu else CPU_PROCESS + planned.memory_per_gpu.total) + gathered
    if limit is None or limit >= needed:
        return []
    return [
        f"phases.{step.phase}.resources.limits.memory is {limits['memory']} and a pod of {step.name} needs about "
        f"{human_bytes(needed)}; raise it to {-(-needed // 1024**3)}Gi"
    ]


def _what(step: PlannedStep) -> tuple[object, ...]:
    """What the step makes: students may share it, as they do the teacher's logits."""
    return step.phase, *step.inputs.items(), *sorted((name, repr(value)) for name, value in step.configuration.items())


def _stored(step: PlannedStep, teacher: Architecture, shapes: Mapping[str, Architecture]) -> tuple[int, int]:
    phase = PHASES[step.phase]
    if phase.reads_sources:
        copied = teacher.parameters if "teacher" in step.configuration else 0
        return copied * BFLOAT16, 0  # as checkpoints come
    return bytes_stored(phase.job.sketch(step.configuration), teacher, shapes.get(step.student or ""))


def _beside(name: str, steps: Sequence[PlannedStep], store: Mapping[str, tuple[int, int]]) -> int:
    """Bytes of all artifacts of the step's student, or of its own if it is for all, and of the step's checkpoints."""
    student = next(step.student for step in steps if step.name == name)
    own = {step.name for step in steps if step.student == student} if student is not None else {name}
    return sum(store[one][0] for one in own) + store[name][1]
