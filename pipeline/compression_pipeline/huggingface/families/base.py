"""What the families share: config.json to `Architecture` and back."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import ValidationError

from compression_pipeline.config import Architecture, Family
from compression_pipeline.errors import UserError

ROPE_FIELDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""The scalings of rotary positions that Megatron computes here as Hugging Face does, and the fields they need."""

DTYPE_KEYS = ("dtype", "torch_dtype")
"""Both spellings: transformers writes `dtype` since 4.56, older readers know only `torch_dtype`."""


class HuggingFaceFamily:
    """One family of decoder-only transformers: RMSNorm, gated SiLU, rotary positions, grouped-query attention.

    Subclasses give names, the defaults of their configuration class in transformers (config.json may leave fields out),
    and the faults that are theirs.
    """

    family: ClassVar[Family]
    class_name: ClassVar[str]
    model_type: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    qkv_bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = False

    def value(self, config: Mapping[str, Any], key: str) -> Any:
        """A field of config.json, or the default of the family's configuration class."""
        return config.get(key, self.defaults.get(key))

    def faults(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Reasons, as clauses, why a checkpoint of this family is outside what round-trips exactly."""
        if config.get("quantization_config"):
            yield "the checkpoint is quantized (quantization_config); use the unquantized one"
        activation = self.value(config, "hidden_act")
        if activation != "silu":
            yield f"hidden_act is {activation}, only silu is supported; use another model"
        for key in ("attention_bias", "mlp_bias"):
            if config.get(key):
                yield f"{key} is true, which this family is not supported with; use another model"
        rope = rope_scaling(config)
        if rope is not None:
            kind = rope["rope_type"]
            missing = [key for key in ROPE_FIELDS.get(kind, ()) if key not in rope]
            if kind not in ROPE_FIELDS:
                known = " and ".join(ROPE_FIELDS)
                yield f"rope_scaling of type {kind} is not supported, only {known}; remove it or use another model"
            elif missing:
                yield f"rope_scaling of type {kind} lacks {missing[0]}; copy config.json from the model's source again"

    def head_dim(self, config: Mapping[str, Any]) -> int:
        """Channels of one head; hidden_size / num_attention_heads where config.json doesn't say."""
        explicit = self.value(config, "head_dim")
        return explicit or self.value(config, "hidden_size") // self.value(config, "num_attention_heads")

    def architecture(self, config: Mapping[str, Any], file: str = "config.json") -> Architecture:
        """The architecture that a config.json describes.

        Raises UserError for values that this family cannot have here; `file` is how the sentence names the file.
        """
        fault = next(self.faults(config), None)
        if fault is not None:
            raise UserError(f"{file}: {fault}")
        heads = self.value(config, "num_attention_heads")
        try:
            found = Architecture(
                family=self.family,
                layers=self.value(config, "num_hidden_layers"),
                hidden_size=self.value(config, "hidden_size"),
                ffn_hidden_size=self.value(config, "intermediate_size"),
                attention_heads=heads,
                query_groups=self.value(config, "num_key_value_heads") or heads,
                head_dim=self.head_dim(config),
                vocabulary_size=self.value(config, "vocab_size"),
                tied_embeddings=bool(self.value(config, "tie_word_embeddings")),
                qkv_bias=self.qkv_bias,
                qk_norm=self.qk_norm,
                norm_epsilon=self.value(config, "rms_norm_eps"),
                rope_theta=rope_theta(config, self.value(config, "rope_theta")),
                rope_scaling=rope_scaling(config),
                max_position_embeddings=self.value(config, "max_position_embeddings"),
            )
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{file}: {field} is wrong ({first['msg']}); copy it from the model's source again"
            ) from error
        if found.attention_heads % found.query_groups:
            raise UserError(
                f"{file}: num_attention_heads ({found.attention_heads}) is not a multiple of num_key_value_heads "
                f"({found.query_groups}); copy it from the model's source again"
            )
        return found

    def configuration(
        self, architecture: Architecture, template: Mapping[str, Any], dtype: str | None = None
    ) -> dict[str, Any]:
        """config.json of a model of `architecture`, over the teacher's as template.

        Everything that fixes a shape is written out, `head_dim` always: after pruning it is no longer
        hidden_size / num_attention_heads. `dtype` is the type of the weights by torch's name (e.g. "bfloat16").
        """
        made = {key: value for key, value in template.items() if key not in ("_name_or_path", "auto_map")}
        made |= {
            "architectures": [self.class_name],
            "model_type": self.model_type,
            "num_hidden_layers": architecture.layers,
            "hidden_size": architecture.hidden_size,
            "intermediate_size": architecture.ffn_hidden_size,
            "num_attention_heads": architecture.attention_heads,
            "num_key_value_heads": architecture.query_groups,
            "head_dim": architecture.head_dim,
            "vocab_size": architecture.vocabulary_size,
            "tie_word_embeddings": architecture.tied_embeddings,
            "rms_norm_eps": architecture.norm_epsilon,
            "rope_theta": architecture.rope_theta,
            "max_position_embeddings": architecture.max_position_embeddings,
            "hidden_act": "silu",
        }
        if architecture.rope_scaling is not None:
            made.setdefault("rope_scaling", architecture.rope_scaling)  # else as the template spells it
        # Per-layer fields of a template with more layers. No supported model has layers of another type.
        if made.get("layer_types") is not None:
            made["layer_types"] = ["full_attention"] * architecture.layers
        if made.get("max_window_layers") is not None and architecture.layers != template.get("num_hidden_layers"):
            made["max_window_layers"] = min(made["max_window_layers"], architecture.layers)
        if dtype is not None:
            for key in [key for key in DTYPE_KEYS if key in made] or ["torch_dtype"]:
                made[key] = dtype
        return made


def rope_scaling(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json's rope_scaling with its type under `rope_type`; None where positions are not scaled.

    Reads the `rope_parameters` of transformers 5 as well.
    """
    found = config.get("rope_scaling") or config.get("rope_parameters")
    if not found:
        return None
    scaling = {key: value for key, value in found.items() if key not in ("type", "rope_theta")}
    scaling.setdefault("rope_type", found.get("type", "default"))
    return None if scaling["rope_type"] == "default" else scaling


def rope_theta(config: Mapping[str, Any], default: float) -> float:
    """The base of the rotary frequencies."""
    return (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta", default))


def sliding_window_fault(window: int | None, positions: int, off: str) -> Iterator[str]:
    """The fault of a sliding window that would hide tokens; `off` tells how to turn it off."""
    if window is not None and window < positions:
        yield (
            f"sliding_window is {window}, shorter than max_position_embeddings ({positions}), and sliding-window "
            f"attention is not supported; {off}"
        )
