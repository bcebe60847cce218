"""The GPUs whose peak and memory are known."""

import re
from dataclasses import dataclass

_MIB = 1024**2


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU."""

    name: str
    peak_flops: float
    """Dense BF16 operations per second with FP32 accumulation, by NVIDIA's data sheets (no sparsity)."""
    memory: int
    """Bytes that a process finds, as nvidia-smi tells them."""


GPUS: dict[str, Gpu] = {
    name: Gpu(name, peak, mebibytes * _MIB)
    for name, peak, mebibytes in (
        ("B300", 2.25e15, 275_040),
        ("B200", 2.25e15, 183_359),
        ("GB200", 2.5e15, 189_471),
        ("H200", 989.4e12, 143_771),
        ("GH200", 989.4e12, 97_871),
        ("H100 NVL", 835e12, 95_830),
        ("H100 PCIe", 756e12, 81_559),
        ("H100", 989.4e12, 81_559),
        ("H800", 989.4e12, 81_559),
        ("H20", 148e12, 97_871),
        ("A100", 312e12, 81_920),
        ("A800", 312e12, 81_920),
        ("L40S", 362e12, 46_068),
        ("L40", 181e12, 46_068),
        ("L4", 121e12, 23_034),
        ("A10", 125e12, 23_028),
        ("A30", 165e12, 24_576),
        ("A40", 149.7e12, 46_068),
        ("RTX 6000 Ada", 364.2e12, 49_140),
        ("RTX A6000", 154.8e12, 49_140),
        ("RTX 4090", 165.2e12, 24_564),
        ("RTX 3090", 71e12, 24_576),
    )
}
"""By name."""

SMALLER = {("A100", 40): 40_960 * _MIB}
"""Kinds that are made with less memory, too: (name, gigabytes in the driver's name) -> bytes."""


def find_gpu(name: str) -> Gpu | None:
    """The GPU of a name, which may be the driver's (NVIDIA H100 80GB HBM3), the label's that a node has of it
    (NVIDIA-A100-SXM4-40GB), or the table's; None where it isn't known, or is a slice of one (MIG).

    The longest name in the table that the given one contains is taken, so that an H100 PCIe is no H100.
    """
    words = f" {name.replace('-', ' ')} ".lower()
    known = [each for each in GPUS if f" {each.lower()} " in words]
    if not known or " mig " in words:
        return None
    found = GPUS[max(known, key=len)]
    told = re.search(r" (\d+) ?gb ", words)
    if told is not None and (memory := SMALLER.get((found.name, int(told[1])))):
        return Gpu(f"{found.name} {told[1]}GB", found.peak_flops, memory)
    return found
