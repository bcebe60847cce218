"""What the families share: config.json to `Architecture` and back."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import ValidationError

from compression_pipeline.config import Activation, Architecture, Family, Normalization
from compression_pipeline.errors import UserError

from . import rotary

DTYPE_KEYS = ("dtype", "torch_dtype")
"""Both spellings: transformers writes `dtype` since 4.56, older readers know only `torch_dtype`."""

WHOLE_NUMBERS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
OPTIONAL_WHOLE_NUMBERS = ("num_key_value_heads", "head_dim", "sliding_window", "max_window_layers")
"""Where null has a meaning: as many as heads, hidden_size / heads, none, none."""

LOADING = frozenset(
    {
        "_name_or_path",
        "auto_map",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "torchscript",
        "use_bfloat16",
        "transformers_weights",
        "rope_parameters",
    }
)
"""Fields of config.json that say how one program loads it, and nothing of the model: they are not passed on."""


NO_WINDOW: Mapping[str, Any] = {"sliding_window": None, "use_sliding_window": False}
"""Full attention in every layer, in words that no reader takes for anything else."""


class HuggingFaceFamily:
    """One family of decoder-only transformers with rotary positions and grouped-query attention.

    Subclasses give names, the defaults of their configuration class in transformers (config.json may leave fields out),
    and the faults that are theirs.
    """

    family: ClassVar[Family]
    class_name: ClassVar[str]
    model_type: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    qkv_bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = False
    activation: ClassVar[Activation] = Activation.SWIGLU
    normalization: ClassVar[Normalization] = Normalization.RMS_NORM
    partial_rotary: ClassVar[bool] = False
    """Whether config.json says how much of each head is rotated."""
    hidden_act: ClassVar[str] = "silu"
    epsilon_key: ClassVar[str] = "rms_norm_eps"

    def value(self, config: Mapping[str, Any], key: str) -> Any:
        """A field of config.json, or the default of the family's configuration class; null is no value."""
        found = config.get(key)
        return self.defaults.get(key) if found is None else found

    def faults(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Reasons, as clauses, why a checkpoint of this family is outside what round-trips exactly."""
        yield from self._malformed(config)
        for key in ("quantization_config", "quantization", "compression_config"):
            if config.get(key):
                yield f"the checkpoint is quantized ({_method(config, key)}); use the unquantized one"
        activation = self.value(config, "hidden_act")
        if activation != self.hidden_act:
            yield f"hidden_act is {activation}, only {self.hidden_act} is supported; use another model"
        for key in ("attention_bias", "mlp_bias", "pruned_heads", "attention_chunk_size"):
            if config.get(key):
                told = "true" if config[key] is True else config[key]
                yield f"{key} is {told}, which this family is not supported with; use another model"
        yield from rotary.faults(config, partial=self.partial_rotary)
        yield from self._window_faults(config)

    def window(self, config: Mapping[str, Any]) -> int | None:
        """Tokens that some layer sees at most, by config.json; None where all layers see everything.

        This is the rule of a family whose every layer has the window that there is; one that has none in transformers
        may be told that it is off.
        """
        if "sliding_window" not in self.defaults and config.get("use_sliding_window") is False:
            return None
        return config.get("sliding_window", self.defaults.get("sliding_window"))

    def _malformed(self, config: Mapping[str, Any]) -> Iterator[str]:
        again = "copy it from the model's source again"
        for key in WHOLE_NUMBERS + OPTIONAL_WHOLE_NUMBERS:
            value = self.value(config, key)
            if value is None and key in OPTIONAL_WHOLE_NUMBERS:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < (key in WHOLE_NUMBERS):
                yield f"{key} is wrong ({value!r} is not a whole number above 0); {again}"
        for key in (self.epsilon_key, "rope_theta"):
            value = self.value(config, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                yield f"{key} is wrong ({value!r} is not a number above 0); {again}"

    def _window_faults(self, config: Mapping[str, Any]) -> Iterator[str]:
        types = config.get("layer_types") or []
        other = next((kind for kind in types if kind not in ("full_attention", "sliding_attention")), None)
        if other is not None:
            yield f"layer_types has {other}, and only full_attention is supported; use another model"
        window, positions = self.window(config), self.value(config, "max_position_embeddings")
        if window is not None and window < positions:
            yield (
                f"sliding_window is {window}, shorter than max_position_embeddings ({positions}), and sliding-window "
                "attention is not supported; use a version without one, or set it to null and max_position_embeddings "
                "to its length"
            )

    def head_dim(self, config: Mapping[str, Any]) -> int:
        """Channels of one head; hidden_size / num_attention_heads where config.json doesn't say."""
        explicit = config.get("head_dim", self.defaults.get("head_dim"))
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
                activation=self.activation,
                normalization=self.normalization,
                norm_epsilon=self.value(config, self.epsilon_key),
                rotary_fraction=rotary.fraction(config, self.defaults.get("partial_rotary_factor", 1.0)),
                rope_theta=rotary.theta(config, self.defaults["rope_theta"]),
                rope_scaling=rotary.scaling(config),
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

        Everything that fixes a shape or the forward pass is written out, in one spelling; `head_dim` always, for after
        pruning it is no longer hidden_size / num_attention_heads. `dtype` is the type of the weights by torch's name
        (e.g. "bfloat16").
        """
        made = {key: value for key, value in template.items() if key not in LOADING}
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
            self.epsilon_key: architecture.norm_epsilon,
            "rope_theta": architecture.rope_theta,
            "max_position_embeddings": architecture.max_position_embeddings,
            "hidden_act": self.hidden_act,
        }
        if self.partial_rotary:
            made["partial_rotary_factor"] = architecture.rotary_fraction
        # One spelling, which every version of transformers reads: 4 does not know `rope_parameters`.
        if architecture.rope_scaling is not None or "rope_scaling" in made:
            made["rope_scaling"] = architecture.rope_scaling
        # What no layer uses is left to no reader to judge. Templates may have more layers, too.
        made |= {key: value for key, value in NO_WINDOW.items() if key in made or key in self.defaults}
        if made.get("layer_types") is not None:
            made["layer_types"] = ["full_attention"] * architecture.layers
        if made.get("max_window_layers") is not None and architecture.layers != template.get("num_hidden_layers"):
            made["max_window_layers"] = min(made["max_window_layers"], architecture.layers)
        if dtype is not None:
            for key in [key for key in DTYPE_KEYS if key in made] or ["torch_dtype"]:
                made[key] = dtype
        return made


def _method(config: Mapping[str, Any], key: str) -> str:
    """What a sentence says of how a checkpoint is quantized."""
    told = config[key]
    method = told.get("quant_method") if isinstance(told, Mapping) else None
    return f"{key}: {method}" if method else key
