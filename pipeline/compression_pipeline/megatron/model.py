"""Megatron-Core models of the shapes that an `Architecture` describes.

Megatron itself is imported inside the functions: see `runtime`.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional

from compression_pipeline.config import (
    Activation,
    Architecture,
    Normalization,
    Stage,
    sequence_fault,
    stages,
    stages_fault,
)
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.splitting import megatron_dimension_of

from .runtime import Runtime

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

ROPE_TYPES = ("default", "linear", "llama3")


def transformer_config(architecture: Architecture, runtime: Runtime, sequence_length: int) -> "TransformerConfig":
    """Megatron's configuration of a model of this architecture.

    No dropout, and no fusions that need Transformer Engine or Apex. Weights are left uninitialised: they always come
    from a checkpoint. Ranks that share matrices share the tokens between them, too, where their number divides.
    """
    from megatron.core.activations import squared_relu
    from megatron.core.transformer.transformer_config import TransformerConfig

    activations = {Activation.SWIGLU: functional.silu, Activation.SQUARED_RELU: squared_relu}
    normalizations = {Normalization.RMS_NORM: "RMSNorm", Normalization.LAYER_NORM_1P: "LayerNorm"}
    split = stages(architecture, runtime.layout.pipeline)
    return TransformerConfig(
        tensor_model_parallel_size=runtime.layout.tensor,
        sequence_parallel=runtime.layout.tensor > 1 and sequence_length % runtime.layout.tensor == 0,
        pipeline_model_parallel_size=runtime.layout.pipeline,
        pipeline_model_parallel_layout=[_parts(stage) for stage in split] if len(split) > 1 else None,
        context_parallel_size=runtime.layout.context,
        num_layers=architecture.layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.ffn_hidden_size,
        num_attention_heads=architecture.attention_heads,
        num_query_groups=architecture.query_groups,
        kv_channels=architecture.head_dim,
        normalization=normalizations[architecture.normalization],
        layernorm_epsilon=architecture.norm_epsilon,
        gated_linear_unit=architecture.activation.gated,
        activation_func=activations[architecture.activation],
        add_bias_linear=False,
        add_qkv_bias=architecture.qkv_bias,
        qk_layernorm=architecture.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=runtime.dtype,
        pipeline_dtype=runtime.dtype,
        deallocate_pipeline_outputs=True,
        bf16=runtime.dtype is torch.bfloat16,
        use_cpu_initialization=not runtime.on_gpu,
        perform_initialization=False,
        deterministic_mode=runtime.on_gpu and runtime.deterministic,
        bias_activation_fusion=architecture.activation is Activation.SWIGLU,  # by `swiglu`: see `runtime`
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
    )


def _parts(stage: Stage) -> list[str]:
    """What a stage has, in Megatron's words."""
    return ["embedding"] * stage.first + ["decoder"] * len(stage.layers) + ["loss"] * stage.last


def build(architecture: Architecture, runtime: Runtime, *, sequence_length: int) -> "GPTModel":
    """A model, or this rank's stage of it, on the runtime's device and in its type; its weights, uninitialised, are to
    be loaded from a checkpoint.

    Megatron's local layer spec with torch's fused attention; the vocabulary is not padded, so shapes are those of the
    Hugging Face checkpoint. Call it with `attention_mask=None`, or with what `isolation.bias_for` makes of a mask.

    Raises:
        UserError: the RoPE scaling is of a kind that isn't known, the sequences are longer than the teacher knows, or
            there are fewer layers than pipeline stages.
    """
    fault = sequence_fault(architecture, sequence_length)
    if fault:
        raise UserError(fault)
    if fault := stages_fault(architecture, runtime.layout.pipeline):
        raise UserError(f"parallelism.pipeline: {fault}")
    from megatron.core.models.gpt import GPTModel

    stage = stages(architecture, runtime.layout.pipeline)[runtime.stage]
    frequencies = rope_frequencies(architecture)
    model = GPTModel(
        config=transformer_config(architecture, runtime, sequence_length),
        transformer_layer_spec=_layers(architecture, len(stage.layers)),  # type: ignore[arg-type]  # a block's are taken as well
        vocab_size=architecture.vocabulary_size,
        max_sequence_length=sequence_length,
        pre_process=stage.first,
        post_process=stage.last,
        share_embeddings_and_output_weights=architecture.tied_embeddings,
        position_embedding_type="rope",
        rotary_percent=architecture.rotary_fraction,
        rotary_base=architecture.rope_theta,  # type: ignore[arg-type]  # Megatron says int and takes any number
    )
    # Megatron's own scaling knows one parameter of Llama 3.1's four.
    model.rotary_pos_emb.inv_freq = frequencies.to(runtime.device)
    # Norms are made in float32 whatever the configuration says.
    model.to(device=runtime.device, dtype=runtime.dtype)
    _mark_shared(model)
    return model


def _mark_shared(model: "GPTModel") -> None:
    """Tell Megatron of which parameters each rank has another part, as it does itself where it fills them: the norm of
    all gradients counts the others once.
    """
    from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

    for name, parameter in model.named_parameters():
        dimension = megatron_dimension_of(name)
        if dimension is not None and not hasattr(parameter, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(parameter, True, dimension, 1)


def _layers(architecture: Architecture, count: int) -> "TransformerBlockSubmodules":
    """The parts of so many layers, each named: Megatron would choose norms by what it finds in the image."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    from .attention import FusedAttention
    from .norms import LayerNorm1P, RMSNorm

    norm: Any = LayerNorm1P if architecture.normalization is Normalization.LAYER_NORM_1P else RMSNorm
    spec = get_gpt_layer_local_spec(qk_layernorm=architecture.qk_norm, normalization="RMSNorm")
    parts, attention = spec.submodules, spec.submodules.self_attention.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = norm
    if architecture.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    attention.core_attention = FusedAttention
    return TransformerBlockSubmodules(layer_specs=[spec] * count, layer_norm=ModuleSpec(norm))


def rope_frequencies(architecture: Architecture) -> torch.Tensor:
    """Inverse frequencies of the rotary embedding, [rotary_dim / 2], float32, as Hugging Face computes them.

    Source: transformers 4.57, modeling_rope_utils.py (`default`, `linear` and `llama3`).

    Raises:
        UserError: `rope_scaling` is of another kind, or one of its fields is missing.
    """
    channels = architecture.rotary_dim
    exponents = torch.arange(0, channels, 2, dtype=torch.int64).to(torch.float32) / channels
    frequencies = 1.0 / (architecture.rope_theta**exponents)
    scaling = architecture.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise UserError(
            f"config.json: rope_scaling of type {kind!r} isn't supported; known are {', '.join(ROPE_TYPES)}"
        )
    try:
        if kind == "linear":
            frequencies = frequencies / scaling["factor"]
        elif kind == "llama3":
            frequencies = _llama3(frequencies, scaling)
    except KeyError as missing:
        raise UserError(f"config.json: rope_scaling of type {kind!r} needs the field {missing}") from None
    return frequencies


def _llama3(frequencies: torch.Tensor, scaling: dict[str, Any]) -> torch.Tensor:
    """Llama 3.1: long wavelengths divided by `factor`, short ones kept, a smooth passage between."""
    factor, context = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / frequencies
    scaled = torch.where(wavelength > context / low, frequencies / factor, frequencies)
    smooth = (context / wavelength - low) / (high - low)
    between = (1 - smooth) * scaled / factor + smooth * scaled
    medium = ~(wavelength < context / high) & ~(wavelength > context / low)
    return torch.where(medium, between, scaled)
