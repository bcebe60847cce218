"""What a training's memory is planned to be on this device, and what is said where it did not suffice."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from compression_pipeline.config import Architecture, DistillConfig, LossConfig, Recomputation, human_bytes
from compression_pipeline.engines import Training
from compression_pipeline.errors import UserError
from compression_pipeline.sizing import Memory, least_recomputation, training_memory

from .runtime import Runtime

LARGER = "raise parallelism.tensor or parallelism.pipeline of the phase, or use GPUs with more memory"
REMEDIES = {
    "weights": LARGER,
    "gradients": LARGER,
    "optimizer": "use more GPUs, whose copies of the model share the optimizer's state",
    "teacher": LARGER,
    "activations": "lower microBatchSize or dataset.sequenceLength",
    "logits": "lower microBatchSize or dataset.sequenceLength",
}
"""By component, as `Memory` names them: what lowers it."""
RECOMPUTE = "set activationRecomputation: Full"


@dataclass(frozen=True)
class Planned:
    """What a training step is planned to need."""

    recomputation: Recomputation
    memory: Memory


def planned(
    training: Training, runtime: Runtime, *, teacher: Architecture | None = None, losses: Sequence[LossConfig] = ()
) -> Planned:
    """The memory of a training on this device, and what it is to recompute for that (`activationRecomputation`)."""
    settings = training.settings
    memory = partial(
        training_memory,
        training.architecture,
        micro_batch_size=training.data.micro_batch_size,
        sequence_length=training.data.sequence_length,
        precision=runtime.precision,
        copies=runtime.data_size,
        tensor=runtime.layout.tensor,
        pipeline=runtime.layout.pipeline,
        micro_batches=training.data.micro_batches,
        on_gpu=runtime.on_gpu,
        teacher=teacher,
        losses=losses,
        isolated=training.data.isolated,
        likeliest=settings.likeliest if isinstance(settings, DistillConfig) else None,
    )
    room = smallest_device(runtime) if runtime.on_gpu else None
    found = least_recomputation(settings.activation_recomputation, memory, room)
    return Planned(found, memory(recomputation=found))


def smallest_device(runtime: Runtime) -> int:
    """Bytes of the GPU that has least of all ranks' GPUs. Ranks that share a model have to recompute the same."""
    total = torch.cuda.get_device_properties(runtime.device).total_memory
    shared = torch.tensor(total, device=runtime.device)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return int(shared.item())


@contextlib.contextmanager
def explained(plan: Planned) -> Iterator[None]:
    """Where the device's memory does not suffice inside this block, say what took most of it, and what to do.

    Raises:
        UserError: torch could not allocate.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        memory = plan.memory
        largest = max(REMEDIES, key=lambda name: getattr(memory, name))
        remedy = REMEDIES[largest]
        if largest == "activations" and plan.recomputation is not Recomputation.FULL:
            remedy = f"{RECOMPUTE}, or {remedy}"
        said = " ".join(str(error).split())
        raise UserError(
            f"the GPU is out of memory ({said}); a step is planned to need {human_bytes(memory.total)}, of which "
            f"{largest} are {human_bytes(getattr(memory, largest))}: {remedy}"
        ) from error
