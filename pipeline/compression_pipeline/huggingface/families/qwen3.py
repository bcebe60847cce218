"""Qwen3 (dense): no biases, RMSNorm on every query and key head."""

from collections.abc import Mapping
from typing import Any, ClassVar

from compression_pipeline.config import Family

from .qwen2 import Qwen2


class Qwen3(Qwen2):
    """Qwen3ForCausalLM. Its configuration class is Qwen2's with an explicit head_dim."""

    family = Family.QWEN3
    class_name = "Qwen3ForCausalLM"
    model_type = "qwen3"
    qkv_bias = False
    qk_norm = True
    defaults: ClassVar[Mapping[str, Any]] = {**Qwen2.defaults, "head_dim": 128}
