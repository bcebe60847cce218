"""What ranks that share matrices have of a checkpoint, and read of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import MODELS, save_model
from safetensors import safe_open
from torch import Tensor

from compression_pipeline.config import Parallelism
from compression_pipeline.huggingface import conversion
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.huggingface.splitting import Share, joined


class Watched:
    """A file of tensors that notes the bytes of what is read."""

    def __init__(self, read: list[int], *given: Any, **named: Any) -> None:
        self._file: Any = safe_open(*given, **named)
        self._read = read

    def get_tensor(self, name: str) -> Tensor:
        return self._noted(self._file.get_tensor(name))

    def get_slice(self, name: str) -> "Watched":
        found = Watched.__new__(Watched)
        found._file, found._read = self._file.get_slice(name), self._read
        return found

    def get_shape(self) -> list[int]:
        return self._file.get_shape()

    def __getitem__(self, at: Any) -> Tensor:
        return self._noted(self._file[at])

    def _noted(self, tensor: Tensor) -> Tensor:
        self._read.append(tensor.numel() * tensor.element_size())
        return tensor


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_each_rank_reads_its_parts_alone_and_together_they_are_the_model(
    kind: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}
    folder = save_model(tmp_path / "model", kind, **fields)
    architecture = read_architecture(folder)
    gated = architecture.activation.gated
    whole = dict(conversion.to_megatron(architecture, conversion.CheckpointReader(folder)))
    read: list[list[int]] = [[] for _ in range(ranks)]
    parts: list[dict[str, Tensor]] = []
    for rank, seen in enumerate(read):
        monkeypatch.setattr(conversion, "safe_open", lambda *given, seen=seen, **named: Watched(seen, *given, **named))
        reader, share = conversion.CheckpointReader(folder), Share(rank, ranks)
        small = architecture.shared_by(ranks)
        parts.append(dict(conversion.to_megatron(small, lambda name, of=reader, share=share: of.part(name, share))))
        for name, tensor in whole.items():
            assert torch.equal(parts[rank][name], share.cut(name, tensor, gated=gated)), name
    for name, tensor in whole.items():
        assert torch.equal(joined(name, [part[name] for part in parts], gated=gated), tensor), name
    every = sum(tensor.numel() for tensor in whole.values())
    norms = every - ranks * (every - architecture.shared_by(ranks).parameters) // (ranks - 1)
    assert norms < 0.05 * every
    assert [sum(seen) for seen in read] == [4 * (norms + (every - norms) // ranks)] * ranks
    largest = max(tensor.numel() for tensor in whole.values())
    assert max(max(seen) for seen in read) <= 4 * largest // ranks


def test_what_does_not_divide_is_told_with_what_would(tmp_path: Path) -> None:
    architecture = read_architecture(save_model(tmp_path / "model"))
    assert not list(Parallelism(tensor=2).faults(architecture, "the teacher's"))
    assert list(Parallelism(tensor=3).faults(architecture, "the teacher's")) == [
        (
            "tensor",
            "3 does not divide the teacher's 2 key/value heads and 4 query heads and 320 tokens of the vocabulary, "
            "nearest: 2",
        )
    ]
    odd = architecture.model_copy(update={"vocabulary_size": 321})
    assert [said for _, said in Parallelism(tensor=2).faults(odd, "the student's")] == [
        "2 does not divide the student's 321 tokens of the vocabulary, nearest: 1"
    ]


@pytest.mark.parametrize(("ranks", "tensor"), [(1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (9, 8)])
def test_a_machine_with_fewer_ranks_splits_a_copy_over_those(ranks: int, tensor: int) -> None:
    assert Parallelism(tensor=8).within(ranks) == Parallelism(tensor=tensor)
