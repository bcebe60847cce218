"""Which layers of a model each pipeline stage has. Stages are computed here and nowhere else."""

from collections.abc import Sequence
from dataclasses import dataclass

from .architecture import Architecture


@dataclass(frozen=True)
class Stage:
    """Consecutive layers of a model, on ranks of their own."""

    layers: range
    """Counted from 0."""
    first: bool = True
    """Whether it has the embedding."""
    last: bool = True
    """Whether it has the final norm and the output layer."""

    def has_embedding(self, *, tied: bool) -> bool:
        """Whether it has the embedding's weights; where they are `tied`, the output layer is a copy of them."""
        return self.first or (self.last and tied)

    def parameters(self, model: Architecture) -> int:
        """Number of the model's parameters that this stage has."""
        norm = model.norm_parameters if self.last else 0
        return len(self.layers) * model.layer_parameters + self._tables(model) * model.embedding_parameters + norm

    def _tables(self, model: Architecture) -> int:
        """Matrices of the vocabulary's size."""
        return 1 if model.tied_embeddings and self.first and self.last else self.first + self.last


def stages_fault(model: Architecture, count: int, whose: str = "the model's") -> str | None:
    """Why the model does not split over so many stages, and which number it does; None if it does."""
    if count <= model.layers:
        return None
    layers = f"{model.layers} layer{'s' if model.layers > 1 else ''}"
    return f"{count} stages are more than {whose} {layers}, nearest: {model.layers}"


def stages(model: Architecture, count: int) -> tuple[Stage, ...]:
    """The model over so many stages, as even as can be by the parameters that each has, and a layer each at least.

    A stage's parameters are its memory (weights, gradients, optimizer) and nearly its work: embedding and output layer
    count as the layers that they are as large as. Of splits that are equally even the later stages have more layers:
    the earlier a stage, the more micro-batches it keeps the activations of.

    Raises ValueError where the model has fewer layers than there are stages.
    """
    if fault := stages_fault(model, count):
        raise ValueError(fault)
    table = model.embedding_parameters
    beside = [table * (place == 0) + table * (place == count - 1) for place in range(count)]
    layers = _even(model.layers, model.layer_parameters, beside)
    ends = [sum(layers[: place + 1]) for place in range(count)]
    return tuple(
        Stage(range(end - own, end), first=place == 0, last=place == count - 1)
        for place, (own, end) in enumerate(zip(layers, ends, strict=True))
    )


def _even(layers: int, weight: int, beside: Sequence[int]) -> list[int]:
    """Layers of each place, whose largest total of `weight` a layer and what lies `beside` is as small as can be."""
    found = [1] * len(beside)
    for _ in range(layers - len(beside)):
        lightest = min(range(len(beside)), key=lambda place: (found[place] * weight + beside[place], -place))
        found[lightest] += 1
    return found
