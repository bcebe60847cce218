"""The model families that round-trip without loss, one file each. A new one is a file here, a line in `FAMILIES`
and its name in `config.architecture.Family`.
"""

from collections.abc import Mapping
from typing import Any

from compression_pipeline.config import Family
from compression_pipeline.errors import UserError

from .base import HuggingFaceFamily
from .llama import Llama
from .mistral import Mistral
from .nemotron import Nemotron
from .qwen2 import Qwen2
from .qwen3 import Qwen3

FAMILIES: tuple[HuggingFaceFamily, ...] = (Llama(), Mistral(), Qwen2(), Qwen3(), Nemotron())

__all__ = ["FAMILIES", "HuggingFaceFamily", "family_of_config", "member"]


def member(family: Family) -> HuggingFaceFamily:
    """The member of the registry for `family`."""
    return next(each for each in FAMILIES if each.family is family)


def family_of_config(config: Mapping[str, Any], file: str) -> HuggingFaceFamily:
    """The family of a config.json: by `architectures`, or by `model_type` where that is missing.

    Raises UserError, with the list of the known ones, for any other. `file` is how the sentence names the file.
    """
    told = config.get("architectures")
    names = [name for name in told if isinstance(name, str)] if isinstance(told, list) else []
    kind = config.get("model_type")
    for each in FAMILIES:
        if each.class_name in names or (not names and kind == each.model_type):
            if kind not in (None, each.model_type):
                raise UserError(
                    f"{file}: architectures says {each.class_name} and model_type says {kind}, which is another model; "
                    "copy it from the model's source again"
                )
            return each
    found = ", ".join(names) or kind or "none"
    known = ", ".join(each.class_name for each in FAMILIES)
    raise UserError(
        f"{file}: architecture {found} is not supported{_what_it_is(config, str(found))}; use a model of one of these: "
        f"{known}"
    )


def _what_it_is(config: Mapping[str, Any], name: str) -> str:
    """Why not, where that can be told."""
    if any(key in config for key in ("vision_config", "audio_config", "text_config", "thinker_config")):
        return " (it takes more than text)"
    if (
        any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
        or "Moe" in name
        or "Mixtral" in name
    ):
        return " (a mixture of experts, which would need scores for experts and a router that is cut with them)"
    if config.get("is_encoder_decoder") or name.endswith(("ForConditionalGeneration", "ForSeq2SeqLM")):
        return " (an encoder and a decoder)"
    if name.endswith(("Classification", "RewardModel", "QuestionAnswering")):
        return " (a head for another task than language modelling)"
    if name.endswith(("ForMaskedLM", "ForPreTraining")) or name.startswith(("Bert", "Roberta", "XLMRoberta")):
        return " (an encoder)"
    if name in {each.class_name.removesuffix("ForCausalLM") + "Model" for each in FAMILIES}:
        return " (the model without its output layer; save what AutoModelForCausalLM loads)"
    return ""
