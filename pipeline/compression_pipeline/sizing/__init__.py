"""How much a compression needs, said before anything is computed: parameters, operations, memory, time. No torch.

The control plane imports it too.
"""

from .candidates import candidate, importance_flops, search_flops
from .flops import forward_flops, training_flops
from .gpus import GPUS, Gpu, find_gpu
from .memory import USABLE, Memory, forward_memory, least_recomputation, logits_memory, loss_parameters, training_memory

__all__ = [
    "GPUS",
    "USABLE",
    "Gpu",
    "Memory",
    "candidate",
    "find_gpu",
    "forward_flops",
    "forward_memory",
    "importance_flops",
    "least_recomputation",
    "logits_memory",
    "loss_parameters",
    "search_flops",
    "training_flops",
    "training_memory",
]
