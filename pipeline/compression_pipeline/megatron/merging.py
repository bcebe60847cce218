"""Merging of attention heads: kept heads are moved away from pruned ones, by what they differ in."""

from typing import Any

import torch
from torch import Tensor

from compression_pipeline.config import Architecture


def merge_heads(model: Any, teacher: Architecture, pairs: Tensor) -> None:
    """Change the query heads of a GPTModel in place: head_i becomes head_i + (head_i - head_j).

    `pairs`: of each layer the heads (i, j), [layers, pairs, 2]. Keys and values stay as they are: under grouped-query
    attention the paper merges queries alone (arXiv 2407.14679, section 2.3, after LaCo, arXiv 2402.11187).
    """
    groups = teacher.query_groups
    width = teacher.attention_heads // groups
    with torch.no_grad():
        for layer, merged in zip(model.decoder.layers, pairs.tolist(), strict=True):
            for tensor in layer.self_attention.linear_qkv.parameters():  # weight, and bias where there is one
                # A group's rows: its query heads, then its key, then its value.
                heads = tensor.view(groups, width + 2, teacher.head_dim, *tensor.shape[1:])
                for taker, given in merged:
                    (group, i), (_, j) = divmod(taker, width), divmod(given, width)
                    heads[group, i] += heads[group, i] - heads[group, j]
