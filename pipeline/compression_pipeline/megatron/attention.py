"""Core attention of Megatron's local layer spec through torch's scaled_dot_product_attention."""

import torch
import torch.nn.functional as functional
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType

from compression_pipeline.text.isolation import as_bias


class FusedAttention(DotProductAttention):
    """Causal attention that never holds the scores (sequence x sequence) of all heads.

    A subclass, because ModelOpt recognises Megatron's attention by its class. Grouped query heads are handled by
    the kernel, but not beside a mask: then keys and values are repeated, or a GPU would go back to torch's composed
    attention, which holds the scores. Give it `attention_mask=None`: causality is the kernel's own; a mask makes it
    slower.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: object | None = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [sequence, batch, heads, head_dim]; key and value have query groups in place of heads.
            attention_mask: True where a position must not be seen, or what is added to the scores
                (`isolation.as_bias`); broadcast to [batch, heads, sequence, sequence]. None for causal attention.

        Returns:
            [sequence, batch, heads * head_dim]
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise NotImplementedError("attention bias and packed sequences")
        sequence, batch, heads, _ = query.shape
        # Megatron: [s, b, n, d]; torch: [b, n, s, d].
        query, key, value = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        causal = attention_mask is None and (attn_mask_type or self.attn_mask_type) == AttnMaskType.causal
        if attention_mask is not None:
            if attention_mask.dtype is torch.bool:
                attention_mask = as_bias(attention_mask, query.dtype)
            key, value = (t.repeat_interleave(heads // t.size(1), dim=1) for t in (key, value))
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=causal and sequence > 1,
            dropout_p=self.attention_dropout.p if self.training else 0.0,
            scale=self.softmax_scale,
            enable_gqa=heads != key.size(1),
        )
        return attended.permute(2, 0, 1, 3).reshape(sequence, batch, -1)
