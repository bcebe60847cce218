"""Nemotron (Nemotron-4, Minitron): squared ReLU without a gate, layernorm1p, heads that are rotated in part."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from compression_pipeline.config import Activation, Family, Normalization

from . import rotary
from .base import HuggingFaceFamily


class Nemotron(HuggingFaceFamily):
    """NemotronForCausalLM."""

    family = Family.NEMOTRON
    class_name = "NemotronForCausalLM"
    model_type = "nemotron"
    activation = Activation.SQUARED_RELU
    normalization = Normalization.LAYER_NORM_1P
    partial_rotary = True
    hidden_act = "relu2"
    epsilon_key = "norm_eps"
    # transformers' NemotronConfig.
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 256000,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 32,
        "num_attention_heads": 48,
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    }

    def faults(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Besides what all families refuse: scaled positions, which transformers' Nemotron does not compute."""
        yield from super().faults(config)
        if rotary.scaling(config) is not None:
            yield "rope_scaling is set, which transformers leaves out of account in this family; remove it"
