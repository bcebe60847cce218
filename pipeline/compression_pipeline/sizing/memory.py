"""Memory of one rank while it trains, by what it is of, for the engine as it is.

Every rank has the weights and float32 gradients of its part of the model, and of the optimizer's state for these a
share among the copies of the model (`megatron/optimizer.py`). What the backward pass needs is kept, but for what it
computes again (`megatron/recomputation.py`). The attention never holds its scores (`megatron/attention.py`); on a GPU
this holds for BF16 alone.

The figures are sums of tensors. What a device needs beside them (CUDA's context, NCCL's buffers, fragments) is not
among them. `tests/pipeline/test_memory.py` holds them against what torch's allocator was asked for, on one rank; for
parts of a model they are arithmetic.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from compression_pipeline.config import (
    LEAST_FIRST,
    Activation,
    Architecture,
    Chunks,
    LossConfig,
    Needs,
    Normalization,
    Precision,
    Recomputation,
    stages,
)
from compression_pipeline.config.chunks import PART, even

USABLE = 0.94
"""Share of a GPU's memory that is there for tensors; CUDA's context, NCCL's buffers and fragments take the rest."""

_F32 = 4
_INT64 = 8


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a training step."""

    weights: int
    gradients: int
    optimizer: int
    """Moments, and float32 master weights where the weights are bfloat16."""
    teacher: int
    activations: int
    """What the backward pass needs of the forward pass."""
    logits: int
    """Logits, and what is made of them: by the output layers and the losses, some tokens at a time; without a teacher
    the softmax of all.
    """
    scoring: int = 0
    """Of the whole student that rank 0 scores by tasks between steps: what activations and logits leave no room for."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def training_memory(
    trained: Architecture,
    *,
    micro_batch_size: int,
    sequence_length: int,
    precision: Precision,
    copies: int,
    on_gpu: bool = True,
    teacher: Architecture | None = None,
    losses: Sequence[LossConfig] = (),
    isolated: bool = False,
    recomputation: Recomputation = Recomputation.NONE,
    tensor: int = 1,
    pipeline: int = 1,
    micro_batches: int | None = None,
    likeliest: int | None = None,
    scored: bool = False,
) -> Memory:
    """What a rank needs to train a model; of several pipeline stages one of that which needs most.

    Args:
        precision: BF16 or FP32, not Auto.
        copies: data-parallel ranks, which share the optimizer's state.
        teacher: of a distillation; None where the next token alone is learnt.
        losses: of a distillation, rules resolved.
        isolated: whether documents in a sequence do not see each other.
        recomputation: what the backward pass computes again; not Auto.
        tensor: ranks that share each matrix, and the tokens between matrices; it divides the widths of both models.
        pipeline: stages, each of which has a part of both models' layers (`config.stages`).
        micro_batches: of a copy in a step; None: at least as many as there are stages. A stage keeps the activations of
            as many as there are stages from it to the last.
        likeliest: of a distillation whose teacher is not there: tokens of which it reads what the teacher gives them.
        scored: whether tasks are scored meanwhile (`tasks/live.py`), of a copy of the whole model on rank 0, which has
            part of the first stage. Activations and logits are gone by then.
    """
    size = 2 if precision is Precision.BF16 else _F32
    tokens = micro_batch_size * sequence_length
    needs = [loss.needs(teacher, trained) for loss in losses] if teacher is not None else []
    # From here on what this rank has; `losses_memory` asks losses by the whole models.
    part, taught = trained.shared_by(tensor), teacher and teacher.shared_by(tensor)
    state = (3 if size == 2 else 2) * _F32
    between = tokens // tensor if sequence_length % tensor == 0 else tokens
    count = min(pipeline, trained.layers, teacher.layers if teacher is not None else trained.layers)

    def of_stage(number: int) -> Memory:
        stage = stages(trained, count)[number]
        parameters = stage.parameters(part)
        at_once = min(count - number, micro_batches or count)
        activations = _activations(
            part,
            tokens,
            between,
            sequence_length,
            size,
            on_gpu,
            isolated=isolated,
            recomputation=recomputation,
            layers=len(stage.layers),
            at_once=at_once,
        )
        if isolated:  # the bias that all layers of both models share
            activations += at_once * tokens * sequence_length * size
        # What comes from the stage before, and what goes to the next.
        passed = (0 if stage.first else at_once) + (not stage.last)
        activations += passed * between * size * _passed(trained, teacher, needs)
        logits, of_teacher = 0, 0
        if taught is not None and teacher is not None and likeliest is None:
            of_teacher = stages(teacher, count)[number].parameters(taught) * size
        if stage.last and teacher is None:
            logits = max(
                logits_memory(part, tokens, precision), (tokens + part.hidden_size) * part.vocabulary_size * size
            )
        elif stage.last and teacher is not None:
            chunks = Chunks.of(part.vocabulary_size, on_gpu=on_gpu)
            logits = losses_memory(trained, teacher, losses, tokens, size, chunks, tensor=tensor, likeliest=likeliest)
            parameters += loss_parameters(losses, teacher, trained)
            activations += _states(teacher, tokens, size, needs)
        return Memory(
            weights=parameters * size,
            gradients=parameters * _F32,
            optimizer=-(-parameters * state // copies),
            teacher=of_teacher,
            activations=activations,
            logits=logits,
            scoring=max(trained.parameters * size - activations - logits, 0) if scored and stage.first else 0,
        )

    return max(map(of_stage, range(count)), key=lambda memory: memory.total)


def forward_memory(
    model: Architecture,
    *,
    micro_batch_size: int,
    sequence_length: int,
    precision: Precision,
    isolated: bool = False,
) -> Memory:
    """What a rank needs that runs a whole teacher alone and looks at all logits of a micro-batch (`phases/logits.py`).
    Arguments as of `training_memory`. A block's values are gone before the logits come: the larger of both counts.
    """
    size = 2 if precision is Precision.BF16 else _F32
    tokens, ffn = micro_batch_size * sequence_length, model.ffn_hidden_size
    queries, keys = model.attention_heads * model.head_dim, model.query_groups * model.head_dim
    # Queries, keys and values, the former two rotated, and the result; what the first matrix gave, and its products.
    attention, inner = 3 * queries + 3 * keys, (4 if model.activation is Activation.SWIGLU else 3) * ffn
    block = tokens * (2 * model.hidden_size + max(attention, inner)) * size
    # In float32 beside the model's own; or in float32 in two orders, of which those of one sequence are the same.
    apart = size + _F32 if size != _F32 or micro_batch_size > 1 else size
    logits, mask = tokens * model.vocabulary_size * apart, tokens * sequence_length * size if isolated else 0
    return Memory(
        weights=0,
        gradients=0,
        optimizer=0,
        teacher=model.parameters * size,
        activations=max(block - logits, 0) + mask,
        logits=logits,
    )


def _passed(trained: Architecture, teacher: Architecture | None, needs: Sequence[Needs]) -> int:
    """Channels of a token that go from stage to stage at most (`megatron/objective.py`)."""
    if teacher is None:
        return trained.hidden_size
    states = sum(len(each.hidden) + each.embeddings for each in needs)
    return (1 + states) * (trained.hidden_size + teacher.hidden_size)


def least_recomputation(asked: Recomputation, memory: Callable[..., Memory], room: int | None) -> Recomputation:
    """What is recomputed: what is asked for, and for Auto the first with which a step's `memory` fits.

    Args:
        memory: `training_memory`, of which only `recomputation` is left to be given.
        room: bytes of the GPU; None on CPU, or where it isn't known. Where nothing fits, it is the one that needs
            least.
    """
    if asked is not Recomputation.AUTO:
        return asked
    if room is None:
        return Recomputation.NONE
    return next((one for one in LEAST_FIRST if memory(recomputation=one).total <= room * USABLE), LEAST_FIRST[-1])


def _activations(
    model: Architecture,
    tokens: int,
    between: int,
    sequence_length: int,
    size: int,
    on_gpu: bool,
    *,
    isolated: bool,
    recomputation: Recomputation,
    layers: int,
    at_once: int,
) -> int:
    """Saved for the backward passes of `at_once` micro-batches through so many layers, but for the logits. Each is
    [tokens, width]; between the matrices of ranks that share them a rank has `between` tokens alone.
    """
    h, ffn = model.hidden_size, model.ffn_hidden_size
    queries, keys = model.attention_heads * model.head_dim, model.query_groups * model.head_dim
    norm = _norm(model, h, size, on_gpu)
    # Values are a view of all that the projection gave; queries and keys were rotated; and what they gave.
    attention = (queries + 2 * keys) * size + (queries + keys) * size + queries * size
    if isolated:  # keys and values are copied for each head, and what they are copied from is not kept
        attention = 4 * queries * size
    attention += model.attention_heads * _F32  # of each row of scores its sum, as a logarithm
    if model.qk_norm:
        composed = 0 if on_gpu else 2 * _F32 - (size if size == _F32 else 0)
        attention += (
            queries * size + (queries + keys) * composed + 2 * _F32 * (model.attention_heads + model.query_groups)
        )
    # Gated: what the first matrix gave (both halves), and the product (`megatron/swiglu.py`).
    # Squared ReLU: the ReLU and its square.
    inner = (3 if model.activation is Activation.SWIGLU else 2) * ffn * size
    rotations = 4 * sequence_length * model.rotary_dim * size  # sine and cosine, for queries and keys
    layer = between * 2 * norm + tokens * (attention + inner) + rotations
    ends = between * norm + tokens * _INT64
    match recomputation:
        case Recomputation.SELECTIVE:  # one MLP at a time
            return at_once * (layers * (layer - tokens * inner) + ends) + tokens * inner
        case Recomputation.FULL:  # what goes into each layer, and one layer at a time
            return at_once * (layers * between * h * size + ends) + layer
        case _:
            return at_once * (layers * layer + ends)


def _norm(model: Architecture, width: int, size: int, on_gpu: bool) -> int:
    """Bytes a token of a norm: its input and its output. On a CPU torch composes RMSNorm of simpler operations in
    float32, and keeps what lies between them.
    """
    if on_gpu or model.normalization is not Normalization.RMS_NORM:
        return 2 * width * size + 2 * _F32
    return 2 * width * _F32 + width * size + _F32


def loss_parameters(losses: Sequence[LossConfig], teacher: Architecture, student: Architecture) -> int:
    """Parameters of the losses, rules resolved, that compare states of two widths: they are trained with the student,
    and stand in its checkpoints.
    """
    if teacher.hidden_size == student.hidden_size:
        return 0
    needs = [loss.needs(teacher, student) for loss in losses]
    count = sum(len(each.hidden) + each.embeddings for each in needs)
    return count * student.hidden_size * teacher.hidden_size


def _states(teacher: Architecture, tokens: int, size: int, needs: Sequence[Needs]) -> int:
    """The teacher's states, and those of both models in float32 at the teacher's width while they are compared."""
    count = sum(len(each.hidden) + each.embeddings for each in needs)
    return tokens * teacher.hidden_size * (count * (size + 2 * _F32) + (3 * _F32 if count else 0))


def logits_memory(model: Architecture, tokens: int, precision: Precision) -> int:
    """Bytes of all logits in Megatron's cross-entropy, which turns them into their softmax in float32."""
    return tokens * model.vocabulary_size * (_F32 + (2 if precision is Precision.BF16 else 0))


def losses_memory(
    student: Architecture,
    teacher: Architecture,
    losses: Sequence[LossConfig],
    tokens: int,
    size: int,
    chunks: Chunks,
    *,
    tensor: int = 1,
    likeliest: int | None = None,
) -> int:
    """Bytes of output layers and losses while they are computed (`losses/heads.py`), at `size` bytes a number.

    A chunk of both models' logits, a block's copies of them, the gradients of the student's output layer, which is
    summed in float32, and of what goes into it. A product is added to the sum in parts, and the backward pass turns the
    sum into the weights' type where it lies. Of `tensor` ranks that share the vocabulary
    each has the states of all tokens. `likeliest`: of a teacher that is not there, see `training_memory`.
    """
    words = student.vocabulary_size // tensor
    on_logits = [loss for loss in losses if loss.logit_copies is not None]
    per_token = [loss for loss in on_logits if loss.needs(teacher, student).per_token]
    product = even(tokens, chunks.product)
    block = min(product, chunks.block)
    needed = 0
    if per_token:
        models = 2 if likeliest is None else 1
        needed += tokens * (likeliest or 0) * (_INT64 + _F32)
        needed += words * (models * product * size + _of_losses(per_token, size) * block)
        gradient = words * student.hidden_size
        needed += gradient * _F32 + (min(gradient, PART) * size if size != _F32 else 0)
        needed += student.hidden_size * tokens * size
    if len(per_token) < len(on_logits):
        others = [loss for loss in on_logits if loss not in per_token]
        needed += words * tokens * (2 * size + _of_losses(others, size))
    if tensor > 1 and on_logits:
        needed += (student.hidden_size + teacher.hidden_size) * tokens * size
    return needed


def _of_losses(losses: Sequence[LossConfig], size: int) -> int:
    """Bytes a logit of what they make: the copies of one, and the gradients that the others keep meanwhile."""
    return _F32 * max(loss.logit_copies or 0 for loss in losses) + (len(losses) - 1) * size
