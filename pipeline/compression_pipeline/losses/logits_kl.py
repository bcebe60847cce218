"""Forward KL on the logits: the loss of the published recipe (arXiv 2408.11796), alone better than beside others."""

from typing import Any

from torch import Tensor

from .forward_kl import forward_kl


def logits_kl(student_config: Any) -> dict[tuple[str, str], Any]:
    """Forward KL between the two output layers, temperature 1, per token."""
    from modelopt.torch.distill.plugins.megatron import LogitsKLLoss

    class FusedLogitsKLLoss(LogitsKLLoss):
        """ModelOpt's LogitsKLLoss (tensor parallel 1) with value and gradient fused; the same figures."""

        def forward(self, predictions: Any, targets: Any) -> Any:
            """Losses [batch, sequence] and flags, of the two layers' (logits [sequence, batch, vocabulary], bias)."""
            student, teacher = self.pre_forward(predictions, targets)
            loss: Tensor = forward_kl(student, teacher)
            return self.post_forward(loss, tp_reduce=True)

    return {("output_layer", "output_layer"): FusedLogitsKLLoss(student_config)}
