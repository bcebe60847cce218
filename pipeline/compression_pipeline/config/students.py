"""What may be made of a given teacher: checked before any GPU is asked for, and again before the forward pass."""

from collections.abc import Iterator

from .architecture import Architecture
from .base import nearest_multiples
from .pruning import PruneConfig
from .shapes import Search


def student_faults(teacher: Architecture, prune: PruneConfig) -> Iterator[tuple[str, str]]:
    """Faults of `prune` against `teacher` as (field in camelCase, sentence); none where the student can be made."""
    search = Search.of(teacher, prune)
    if search is not None and (fault := search.fault()) is not None:
        yield fault
    for field, wanted, has in (
        ("hiddenSize", prune.hidden_size, teacher.hidden_size),
        ("ffnHiddenSize", prune.ffn_hidden_size, teacher.ffn_hidden_size),
        ("attentionHeads", prune.attention_heads, teacher.attention_heads),
        ("layers", prune.layers, teacher.layers),
    ):
        if wanted is not None and wanted > has:
            yield field, f"{wanted} is more than the teacher's {has}; pruning only makes it smaller"
    heads, groups = prune.attention_heads, teacher.query_groups
    if heads is not None and heads % groups:
        nearest = nearest_multiples(heads, groups, most=teacher.attention_heads)
        yield (
            "attentionHeads",
            f"{heads} is not a multiple of the teacher's {groups} key/value heads, nearest: {nearest}",
        )
    if prune.drop_layers:
        missing = sorted(n for n in set(prune.drop_layers) if n > teacher.layers)
        if missing:
            yield "dropLayers", f"the teacher has layers 1 to {teacher.layers}; there is no layer {missing[0]}"
        elif len(set(prune.drop_layers)) >= teacher.layers:
            yield "dropLayers", f"drops all {teacher.layers} layers of the teacher; keep at least one"


def student_architecture(teacher: Architecture, prune: PruneConfig) -> Architecture:
    """The architecture that `prune` makes of `teacher`; of a target that of the first candidate, which a search may yet
    pass over. Call `student_faults` first.
    """
    search = Search.of(teacher, prune)
    if search is not None:
        return search.found.best[0]
    layers = prune.layers or teacher.layers - len(set(prune.drop_layers or ()))
    return teacher.model_copy(
        update={
            "hidden_size": prune.hidden_size or teacher.hidden_size,
            "ffn_hidden_size": prune.ffn_hidden_size or teacher.ffn_hidden_size,
            "attention_heads": prune.attention_heads or teacher.attention_heads,
            "layers": layers,
        }
    )
