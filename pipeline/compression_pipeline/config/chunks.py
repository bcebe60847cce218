"""How many tokens the output layers and the losses take at once: logits are the largest tensors there are, so few of
them are ever made.
"""

from dataclasses import dataclass

PRODUCT = {False: 2**24, True: 2**27}
"""Logits of one model in a matrix product, without and with a GPU: enough to keep all cores busy, and few beside the
weights. 64 MiB in float32 on a CPU, 256 MiB in bfloat16 on a GPU.
"""

ENOUGH = {False: 256, True: 8192}
"""Tokens of a product at most, however few words there are: on a CPU more are no faster. None was measured on a GPU."""

BLOCK = {False: 2**19, True: 2**24}
"""Logits of one model whose losses are computed at once. A CPU keeps them in its cache meanwhile."""

PART = 2**22
"""Numbers of an output layer's gradient that are made in bfloat16, or turned into it, at once: few beside the whole,
and enough rows of it for a product to keep a GPU busy, however few tokens it is of. None was measured on a GPU.
"""

CALIBRATION_TOKENS = 8192
"""Tokens in one forward pass that nothing is trained by, about; at least one sequence. All their logits are there."""


@dataclass(frozen=True)
class Chunks:
    """Numbers of tokens that are taken at once."""

    product: int
    """By the matrix products of the output layers."""
    block: int
    """By the losses, out of those of a product. Each loss makes several copies of a block's logits in float32."""

    @classmethod
    def of(cls, vocabulary: int, *, on_gpu: bool) -> "Chunks":
        """For output layers of so many words."""
        product = min(ENOUGH[on_gpu], tokens_per_chunk(vocabulary, PRODUCT[on_gpu]))
        return cls(product, min(product, tokens_per_chunk(vocabulary, BLOCK[on_gpu])))


def tokens_per_chunk(vocabulary: int, logits: int) -> int:
    """As many tokens as have so many logits, and at least one."""
    return max(1, logits // vocabulary)


def even(tokens: int, most: int) -> int:
    """Tokens of each chunk but the last, where as few chunks as there can be are about equally long."""
    return -(-tokens // -(-tokens // most))
