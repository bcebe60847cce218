"""Knowledge distillation by ModelOpt's Megatron plugin: a student that runs its teacher along."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from compression_pipeline.huggingface.conversion import stage_of
from compression_pipeline.text.batches import Batch
from compression_pipeline.text.isolation import bias_for

from . import private
from .loss_function import Shapes
from .modelopt import modelopt
from .objective import Objective


def combine(student: Any, teacher: Any, objective: Objective) -> Any:
    """Turn a GPTModel into one whose forward pass runs the teacher too, in place; returns it.

    The teacher is frozen: no gradients, eval mode in every forward pass, absent from state dicts and sharded state
    dicts (so from checkpoints), and not trainable (so without optimizer state). While training, the student computes
    no language-model loss: it would only be thrown away. Parameters of the losses are among the model's: trained and
    in checkpoints.
    """
    with modelopt():
        import modelopt.torch.distill as mtd
        from modelopt.torch.distill.plugins.megatron import (
            DistillationConfig,
            adjust_distillation_model_for_mcore,
        )

        objective.attach(student, teacher)
        stage = stage_of(student)
        criterion: Any = {("output_layer", "output_layer"): objective} if stage.last else {}
        mode: Any = [("kd_loss", {"teacher_model": teacher, "criterion": criterion, "loss_balancer": None})]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No distillation loss criterion")  # only the last stage has one
            model: Any = mtd.convert(student, mode=mode)
        adjust_distillation_model_for_mcore(model, DistillationConfig(skip_lm_loss=True, criterion=criterion))
        if not (stage.first and stage.last):
            private.between_stages(model, objective.packed, objective.unpacked)
    return model


def of_student(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Those of a combined model's parameters that are the student's, by their names in a plain GPTModel."""
    return {name: tensor for name, tensor in parameters if not name.startswith(private.ADDED)}


class DistillationLoss:
    """The engine's loss function of a combined model: its objective, and nothing else."""

    def __init__(self, model: Any, objective: Objective) -> None:
        """`model`: what `combine` made with `objective`; the engine calls it wrapped, the loss looks into it."""
        self._model = model
        self._objective = objective

    def shapes(self, received: Shapes, sent: Shapes) -> tuple[Shapes, Shapes]:
        """Those of both models' hidden states and of what else is compared."""
        comes, goes = self._objective.widths
        return [(*shape[:-1], comes) for shape in received], [(*shape[:-1], goes) for shape in sent]

    def forward(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """Run teacher and student; what they made stays in the model, ModelOpt's hooks keep it."""
        with self._objective.captured(batch.labels, batch.weights):
            return model(batch.tokens, batch.positions, bias_for(model, batch.mask), labels=batch.labels)

    def reduce(self, output: Tensor, batch: Batch) -> Tensor:
        """The objective's value for the batch."""
        return self._model.compute_kd_loss()


class CachedLoss:
    """The engine's loss function of a student whose teacher's logits are in the batches."""

    def __init__(self, student: Any, objective: Objective) -> None:
        """`student`: a GPTModel, which stays one."""
        objective.attach(student, None)
        self._objective = objective

    def forward(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """Run the student; there are no logits."""
        with self._objective.captured(batch.labels, batch.weights, batch.teacher):
            return model(batch.tokens, batch.positions, bias_for(model, batch.mask))

    def reduce(self, output: Tensor, batch: Batch) -> Tensor:
        """The objective's value for the batch."""
        return self._objective(None, None)


class StudentAlone:
    """A combined model's student as a GPTModel to measure: its forward pass leaves the teacher out."""

    def __init__(self, model: Any) -> None:
        """`model`: what `combine` returned."""
        self._model = model

    @property
    def training(self) -> bool:
        return self._model.training

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """All of the combined model's."""
        return self._model.parameters()

    @property
    def config(self) -> Any:
        """The student's."""
        return self._model.config

    def set_input_tensor(self, tensors: list[Tensor | None]) -> None:
        """What the student's pipeline stage received."""
        private.student_input(self._model, tensors)

    def eval(self) -> None:
        """Put the student into eval mode."""
        self._model.eval()

    def train(self, mode: bool = True) -> None:
        """Put the student into training mode (or not)."""
        self._model.train(mode)

    def __call__(self, *arguments: Any, **named: Any) -> Tensor:
        return private.student_forward(self._model, *arguments, **named)
