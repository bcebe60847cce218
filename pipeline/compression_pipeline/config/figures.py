"""Figures that jobs and the control plane compute, or say, alike."""

from collections.abc import Iterable


def won_back(teacher: float | None, pruned: float | None, distilled: float | None) -> float | None:
    """Share of the validation loss that pruning cost which distillation won back; 1 is all of it.

    `teacher`: the loss of the teacher that the student learnt from, the corrected one where there is one. None where a
    loss is missing, or where pruning cost nothing.
    """
    if teacher is None or pruned is None or distilled is None or not pruned > teacher:
        return None
    return (pruned - distilled) / (pruned - teacher)


def human_bytes(size: float) -> str:
    """Bytes in the decimal units of disks and of Hugging Face: 12.3 GB."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def number_runs(numbers: Iterable[int]) -> str:
    """Numbers in their order with runs shortened: "1 to 15, 32"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
