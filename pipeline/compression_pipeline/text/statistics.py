"""What was tokenized, in figures."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .indexed import IndexedWriter


def describe(writers: Mapping[str, IndexedWriter], *, end_of_document: int, vocabulary: int) -> dict[str, Any]:
    """`data/statistics.json`: for each split, documents, tokens and how long documents are.

    Where not all tokens are learned, `learned` says how many are. Lengths are in tokens and count the end-of-document
    token. `histogram` has one bin for each power of two: the number of documents of `from` to `to` tokens,
    both included.
    """
    return {
        "endOfDocument": end_of_document,
        "vocabulary": vocabulary,
        "splits": {name: _split(writer) for name, writer in writers.items()},
    }


def _split(writer: IndexedWriter) -> dict[str, Any]:
    lengths = np.array(writer.lengths, dtype=np.int64)
    found: dict[str, Any] = {"documents": len(lengths), "tokens": int(writer.tokens), "histogram": []}
    if writer.masked:
        found["learned"] = writer.learned
    if len(lengths) == 0:
        return found
    quantiles = np.percentile(lengths, [50, 90, 99])
    found |= {
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "mean": float(lengths.mean()),
        **{f"p{name}": float(value) for name, value in zip((50, 90, 99), quantiles, strict=True)},
    }
    top = int(lengths.max()).bit_length()
    edges = np.array([0, *(2**power for power in range(top + 1))])
    counts, _ = np.histogram(lengths, edges)
    found["histogram"] = [
        {"from": int(low), "to": int(high) - 1, "documents": int(count)}
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
        if count
    ]
    return found
