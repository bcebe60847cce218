"""The sizes of a benchmark's models: its arguments, and a Llama of them."""

import argparse

from compression_pipeline.config import Architecture


def parser_of(doc: str | None, **more: int) -> argparse.ArgumentParser:
    """Takes the sizes of a teacher, by default the demo's, and `more`: numbers with their defaults."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    sizes = {"layers": 6, "hidden": 128, "ffn": 384, "heads": 8, "groups": 4, "vocabulary": 2048, "sequence": 128}
    for name, default in {**sizes, **more}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def llama(chosen: argparse.Namespace, hidden: int, ffn: int) -> Architecture:
    """A Llama of the chosen sizes, and of these widths."""
    return Architecture.model_validate(
        {
            "family": "Llama",
            "layers": chosen.layers,
            "hidden_size": hidden,
            "ffn_hidden_size": ffn,
            "attention_heads": chosen.heads,
            "query_groups": chosen.groups,
            "head_dim": chosen.hidden // chosen.heads,
            "vocabulary_size": chosen.vocabulary,
        }
    )
