"""A sentence by the exported student: where it starts, and how it goes on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compression_pipeline.random_order import permutation
from compression_pipeline.text.indexed import IndexedText

PROMPT_WORDS = 12
DOCUMENTS = 100
"""Documents looked at for one that is long enough."""

LONGEST = 1000
"""Characters of a sample."""


def documents(prefix: Path, *, sample: int | None = None) -> Iterator[list[int]]:
    """Token ids of the sequences of an indexed dataset, one after the other.

    `sample`: not all, but so many at most, drawn from the whole dataset, always the same ones.
    """
    text = IndexedText(prefix)
    for number in range(len(text)) if sample is None else permutation(len(text), "prompt")[:sample].tolist():
        yield text[number].tolist()


def default_prompt(prefix: Path, tokenizer: Any) -> str:
    """The first words of a document out of a sample of the dataset at `prefix`: the first one that has more of them."""
    fallback = ""
    for tokens in documents(prefix, sample=DOCUMENTS):
        words = tokenizer.decode(tokens, skip_special_tokens=True).split()
        if len(words) > PROMPT_WORDS:
            return " ".join(words[:PROMPT_WORDS])
        fallback = fallback or " ".join(words)
    return fallback


def continue_greedily(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """`prompt` and the continuation that a transformers model finds most likely, at most `LONGEST` characters."""
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    if inputs["input_ids"].shape[1] == 0:  # an empty prompt, and a tokenizer that starts with nothing
        return ""
    output = model.generate(**inputs, **greedily(model, tokens))
    continuation = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return clean(prompt + continuation)


def greedily(model: Any, most: int, *, least: int | None = None) -> dict[str, Any]:
    """Arguments of `model.generate` for the most likely token each time: `most` new ones, and no fewer than `least`."""
    from transformers import GenerationConfig

    told = model.generation_config
    # A configuration of its own: the model's may ask for sampling.
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=most,
        min_new_tokens=least,
        bos_token_id=told.bos_token_id,
        eos_token_id=told.eos_token_id,
        pad_token_id=told.pad_token_id if told.pad_token_id is not None else _first_token(told.eos_token_id),
    )
    # Else the model's own settings fill in what is at its default here: sampling, beams, penalties.
    return {"generation_config": settings, "use_model_defaults": False}


def clean(text: str) -> str:
    """Text fit for a report: no control characters, no character cut in half at the end, at most `LONGEST` long."""
    printable = "".join(letter for letter in text if letter in "\n\t" or letter.isprintable())
    return printable[:LONGEST].rstrip("\ufffd").strip()


def _first_token(token: Any) -> Any:
    """One end-of-text token; generation configs may list several."""
    return token[0] if isinstance(token, list) else token
