"""What a training is expected to need, as the status tells it."""

from pydantic import Field

from compression_pipeline.config import Recomputation, Record


class PlannedMemory(Record):
    """Bytes on one GPU at the peak of a training step; of one rank where the phase runs on CPU."""

    total: int = Field(description="Sum of the others.")
    weights: int = Field(description="Weights of the model that is trained.")
    gradients: int = Field(description="Its gradients, in float32.")
    optimizer: int = Field(description="This rank's share of AdamW's moments and of the float32 master weights.")
    teacher: int = Field(description="Weights of the teacher.")
    activations: int = Field(description="Values that the backward pass needs.")
    logits: int = Field(description="Logits, and what the losses make of them.")
    scoring: int = Field(
        default=0,
        description="With taskInterval: what the copy of the whole student that rank 0 scores between steps takes "
        "beyond activations and logits, which are not there meanwhile.",
    )


class PlannedTraining(Record):
    """What a training is expected to need, computed from the sizes of the models."""

    parameters: int = Field(description="Parameters of the model that is trained.")
    ranks: int = Field(description="GPUs of the job, or its processes on CPU.")
    tensor: int = Field(default=1, description="GPUs, or processes, that share each matrix of one copy of the models.")
    pipeline: int = Field(default=1, description="Stages that the layers of one copy of the models are split over.")
    tokens: int = Field(description="Tokens of all steps, but for accept.extendSteps.")
    flops: float = Field(
        description="Floating-point operations of all steps, those of the teacher and of recomputation included."
    )
    memory_per_gpu: PlannedMemory = Field(
        description="Bytes on one GPU, or of one rank on CPU. Of several stages (pipeline) it is the one that needs "
        "most. CUDA's context, NCCL's buffers and fragments come on top."
    )
    recomputation: Recomputation = Field(
        default=Recomputation.NONE,
        description="What the backward pass is expected to compute again: of Auto, the first of None, Selective and "
        "Full that fits the GPU, and None if the GPU is not known.",
    )
    store_bytes: int = Field(description="Bytes in the store while it runs: artifacts of the student and checkpoints.")
    gpu: str | None = Field(default=None, description="GPU that the node selector names by nvidia.com/gpu.product.")
    gpu_hours: float | None = Field(
        default=None,
        description="Hours of that GPU, times their number, at 40 % of its dense bfloat16 peak while it computes; the "
        "time for which pipeline stages wait is counted.",
    )
    warnings: list[str] = Field(
        default=[],
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
        description="What will probably not fit. Nothing is refused because of it.",
    )
