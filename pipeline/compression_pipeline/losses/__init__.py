"""What a student is trained to match, one file per loss.

A loss is a ModelOpt criterion: which layer of the student is compared with which of the teacher, and how. A new one is
a file here and a line in `LOSSES`. The functions import ModelOpt: call them in a `modelopt()` block.
"""

from collections.abc import Callable
from typing import Any

from .logits_kl import logits_kl

LOSSES: dict[str, Callable[[Any], dict[tuple[str, str], Any]]] = {
    "logitsKL": logits_kl,
}
"""Name -> function of the student's TransformerConfig that gives {(student layer, teacher layer): loss module}."""

__all__ = ["LOSSES", "logits_kl"]
