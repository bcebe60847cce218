"""What a checkpoint says of how it generates, made such that plain transformers loads it, saves it and generates by it.

transformers reads special tokens and settings in config.json, generation_config.json and the tokenizer, and judges most
of them only where they are used: when a model is built, at `generate`, at `save_pretrained`. A student carries all of
them, so they are judged by the library itself before anything is trained.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from compression_pipeline.errors import UserError
from compression_pipeline.text.tokenizer import TeacherTokenizer

from .families.base import DTYPE_KEYS
from .layout import CONFIG, GENERATION_CONFIG

_BEGIN, _END, _PADDING = "bos_token_id", "eos_token_id", "pad_token_id"

_SPECIAL_IDS = (
    _BEGIN,
    _END,
    _PADDING,
    "sep_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
_LISTS = frozenset({_END, "forced_eos_token_id"})
"""Keys that may list several tokens."""

_OF_MODELS = frozenset(
    {*_SPECIAL_IDS, "use_cache", "output_attentions", "output_hidden_states", "transformers_version"}
)
"""Names of settings of generation that are fields of config.json, too."""

_FIRST = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate")
"""Settings that decide which others make sense."""


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole_number(least: int) -> Callable[[Any], bool]:
    return lambda value: _is_whole(value) and least <= value < 2**31


def _number(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        known = isinstance(value, float) or _is_whole_number(-(2**30))(value)
        return known and math.isfinite(value) and holds(value)

    return fits


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


_MUST_BE: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values", "output_scores"), _flag),
    **dict.fromkeys(("return_dict_in_generate", "output_attentions", "output_hidden_states", "token_healing"), _flag),
    **dict.fromkeys(("num_beams", "num_return_sequences", "max_length"), _is_whole_number(1)),
    **dict.fromkeys(("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), _is_whole_number(0)),
    "num_beam_groups": lambda value: value == 1,
    "diversity_penalty": lambda value: value == 0,
}
"""Settings that are never null. Those that ask for groups of beams run code of the Hub, which nobody does here."""

_MAY_BE: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("temperature", "repetition_penalty", "encoder_repetition_penalty"), _number(lambda x: x > 0)),
    **dict.fromkeys(("top_p", "min_p"), _number(lambda x: 0 <= x <= 1)),
    "typical_p": _number(lambda x: 0 < x <= 1),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), _number(lambda x: 0 <= x < 1)),
    "length_penalty": _number(lambda x: True),
    "max_time": _number(lambda x: x > 0),
    "top_k": _is_whole_number(0),
    "max_new_tokens": _is_whole_number(1),
    "min_new_tokens": _is_whole_number(0),
    **dict.fromkeys(("penalty_alpha", "dola_layers", "constraints", "force_words_ids"), lambda value: False),
}
"""Settings that may be null, which turns them off."""

_FRACTIONS = frozenset(
    {"temperature", "repetition_penalty", "encoder_repetition_penalty", "typical_p", "length_penalty"}
)
"""Where transformers refuses a number that is written without a point."""


@dataclass(frozen=True)
class Settled:
    """The contents of two files, and what a person should know of them."""

    config: dict[str, Any]
    generation: dict[str, Any] | None  # None: there is no generation_config.json, and none is needed
    said: tuple[str, ...]  # a sentence each


def settle(
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None,
    tokenizer: TeacherTokenizer,
    rows: int,
    where: str,
) -> Settled:
    """What students have in config.json and generation_config.json.

    What transformers would fail with is left out or replaced, and what contradicts itself stays and is told. An id that
    is no row of the embedding gives way to that of the tokenizer. Settings that have no effect, which `save_pretrained`
    refuses, go. Settings in config.json move to generation_config.json, or go where that file overrules them.

    Args:
        config: config.json, as our family code writes it.
        generation: generation_config.json; None where there is none.
        rows: of the embedding.
        where: what sentences call the folder.

    Raises:
        UserError: transformers can't make its configuration of `config`.
    """
    said: list[str] = []
    settings = _settings()
    own = {key: value for key, value in config.items() if key not in settings}
    moved = {key: value for key, value in config.items() if key in settings}
    own = _with_sound_ids(own, tokenizer, rows, f"{where}/{CONFIG}", said)
    if moved:
        place = "students have them in" if generation is None else "they have no effect beside"
        said.append(f"{where}/{CONFIG}: {_listed(moved)} are settings of generation; {place} {GENERATION_CONFIG}")
        if generation is None:
            generation = {key: own[key] for key in (_BEGIN, _END, _PADDING) if own.get(key) is not None} | moved
    _check_config(own, f"{where}/{CONFIG}")
    if generation is not None:
        generation = _with_sound_ids(generation, tokenizer, rows, f"{where}/{GENERATION_CONFIG}", said)
        generation = _with_sound_settings(generation, f"{where}/{GENERATION_CONFIG}", said)
    said += _contradictions(own, generation, tokenizer, where)
    return Settled(own, generation, tuple(said))


def _settings() -> frozenset[str]:
    """Names of the settings of generation: old checkpoints have them in config.json, and they count there."""
    from transformers import GenerationConfig

    return frozenset(name for name in vars(GenerationConfig()) if not name.startswith("_")) - _OF_MODELS


def _with_sound_ids(
    told: Mapping[str, Any], tokenizer: TeacherTokenizer, rows: int, file: str, said: list[str]
) -> dict[str, Any]:
    made = dict(told)
    instead = {_BEGIN: tokenizer.begin, _END: tokenizer.end_of_document, _PADDING: tokenizer.padding}
    for key in _SPECIAL_IDS:
        given = told.get(key)
        if given is None:
            continue
        sound = [one for one in _as_list(given) if _is_whole(one) and 0 <= one < rows]
        if sound == _as_list(given) and (not isinstance(given, list) or (sound and key in _LISTS)):
            continue
        several = isinstance(given, list) and key in _LISTS
        made[key] = (sound if several else sound[0]) if sound else instead.get(key)
        got = f"no {key}" if made[key] is None else f"{made[key]}{'' if sound else ', as the tokenizer has it'}"
        many = "" if key in _LISTS or sound != given else "; it may be one only"
        wrong = many or f", but the embedding has rows 0 to {rows - 1}"
        said.append(f"{file}: {key} is {_short(given)}{wrong}; students get {got}")
    return made


def _with_sound_settings(told: Mapping[str, Any], file: str, said: list[str]) -> dict[str, Any]:
    """The settings that transformers takes together: one after the other, those that decide first."""
    made: dict[str, Any] = {key: told[key] for key in told if key in _SPECIAL_IDS}
    left: dict[str, Any] = {}
    for key in sorted(told, key=lambda key: key not in _FIRST):
        value = told[key]
        if value is None and key in _MUST_BE:  # no value
            continue
        if key in _FRACTIONS and _is_whole(value) and abs(value) < 2**30:
            value = float(value)
        fits = _MUST_BE.get(key) or (_MAY_BE.get(key) if value is not None else None)
        if (fits is None or fits(value)) and _is_valid(made | {key: value}):
            made[key] = value
        else:
            left[key] = value
    if left:
        sampling = "" if made.get("do_sample") else " without do_sample: true"
        said.append(
            f"{file}: {_listed(left)} have no effect or no meaning{sampling}, and transformers would not save them; "
            "students are written without them"
        )
    return {key: made[key] for key in told if key in made}


def _is_valid(settings: Mapping[str, Any]) -> bool:
    """Whether transformers loads these settings, and would save them again."""
    from packaging.version import parse
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_dict(dict(settings))
        found.validate(strict=True)
        found.to_json_string()
        parse(found.transformers_version)
    except Exception:  # whatever junk in a file makes of the library
        return False
    return True


def _check_config(config: Mapping[str, Any], file: str) -> None:
    from transformers import AutoConfig, GenerationConfig

    try:
        # A type would have torch imported; the family code has written a right one.
        AutoConfig.for_model(**{key: value for key, value in config.items() if key not in DTYPE_KEYS}).to_json_string()
        GenerationConfig.from_dict({**config, "_from_model_config": True})
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{file}: transformers can't use it ({why}); correct the field, or copy it from the model's source again"
        ) from error


def _contradictions(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None, tokenizer: TeacherTokenizer, where: str
) -> list[str]:
    """What the three places say otherwise of one token; it stays, because only its maker knows what is meant."""
    generates = config if generation is None else generation
    by_file = [(CONFIG, config)] if generation is None else [(CONFIG, config), (GENERATION_CONFIG, generation)]
    found: list[str] = []
    for key, own in ((_BEGIN, tokenizer.begin), (_PADDING, tokenizer.padding)):
        told = {file: content[key] for file, content in by_file if content.get(key) is not None}
        told |= {"the tokenizer": own} if own is not None else {}
        if len(set(told.values())) > 1:
            found.append(f"{where}: {key} is {_places(told)}; students keep all of them")
    ends = _as_list(generates.get(_END))
    if tokenizer.end_of_document not in ends:
        told = {file: content.get(_END, "none") for file, content in by_file}
        found.append(
            f"{where}: {_END} is {_places({**told, 'the tokenizer': tokenizer.end_of_document})}; documents end with "
            f"the tokenizer's, and generation stops at {ends or 'none'} alone; students keep all of them"
        )
    return found


def _places(told: Mapping[str, Any]) -> str:
    return ", ".join(f"{value} in {place}" for place, value in told.items())


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {_short(value)}" for key, value in settings.items())


def _short(value: Any) -> str:
    return json.dumps(value)[:60]
