"""A Hugging Face model as lm-eval asks it: log-likelihoods and greedy text, in a fixed order.

lm-eval's own wrapper needs accelerate, sorts by length and pads by what else is asked. Here a request's batch is made
of the same requests each time, so that two runs on one device give the same bits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from compression_pipeline.huggingface.sample import greedily

Tick = Callable[[int, int], None]
"""Told after each batch: how many of how many requests are done."""

LONGEST_REPLY = 256
"""Tokens of a generated reply, where the task says no other number."""


class HuggingFaceModel(TemplateLM):
    """Scores text with `model`, which takes tokens [batch, length] and gives logits [batch, length, vocabulary]."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int, tick: Tick = lambda done, total: None) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self._batch_size = batch_size
        self._tick = tick
        self._device = next(model.parameters()).device
        self.max_length: int = getattr(model.config, "max_position_embeddings", None) or 2048

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """As in lm-eval: the token that begins text, or else the one that ends it."""
        begins = self.tokenizer.bos_token_id
        return self.eot_token_id if begins is None else begins

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        begins = self.tokenizer.bos_token
        if add_special_tokens is None:  # as the tokenizer does, but no second token that begins text
            add_special_tokens = not (begins and string.startswith(begins))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        # Longest first: what does not fit in memory shows at once.
        order = sorted(range(len(requests)), key=lambda i: (-len(requests[i][1]) - len(requests[i][2]), i))
        for batch in self._batches(order):
            rows = [self._row(requests[i][1], requests[i][2]) for i in batch]
            longest = max(len(tokens) for tokens, _ in rows) - 1
            inputs = torch.zeros(len(rows), longest, dtype=torch.long)
            for row, (tokens, _) in enumerate(rows):  # padded behind: nothing before it can see that
                inputs[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            # Of the last positions alone, as many as hold what is asked of any row: logits are the largest tensor.
            kept = max(1, *(longest - (len(tokens) - 1) + wanted for tokens, wanted in rows))
            logits = self.model(inputs.to(self._device), use_cache=False, logits_to_keep=kept).logits
            for row, (i, (tokens, wanted)) in enumerate(zip(batch, rows, strict=True)):
                end = len(tokens) - 1 - (longest - kept)
                targets = torch.tensor(tokens[len(tokens) - wanted :], device=self._device)
                scores = torch.log_softmax(logits[row, end - wanted : end].float(), dim=-1)
                likely = scores.gather(1, targets[:, None]).sum().item()
                found[i] = (likely, bool((scores.argmax(dim=-1) == targets).all()))
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        totals: list[float] = []
        for request in requests:
            windows = map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ),
            )
            scored = self._loglikelihood_tokens([(None, context, text) for context, text in windows])
            totals.append(sum(likely for likely, _ in scored))
        return totals

    @torch.no_grad()
    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        replies: list[str] = []
        for done, request in enumerate(requests):
            context, asked = request.args
            told: Any = normalize_gen_kwargs(asked, LONGEST_REPLY)
            stops, most = [stop for stop in told["until"] if stop], told["max_gen_toks"]
            tokens = self.tok_encode(context)[-max(1, self.max_length - most) :]
            inputs = torch.tensor([tokens], device=self._device)
            made = self.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                **greedily(self.model, most),
                **({"stop_strings": stops, "tokenizer": self.tokenizer} if stops else {}),
            )
            text = self.tokenizer.decode(made[0, len(tokens) :], skip_special_tokens=True)
            replies.append(_before(text, stops))
            self._tick(done + 1, len(requests))
        return replies

    def _row(self, context: Sequence[int], text: Sequence[int]) -> tuple[list[int], int]:
        """The tokens of a request that fit, one beyond what the model sees; the last so many are scored."""
        tokens = [*context, *text][-(self.max_length + 1) :]
        return tokens, min(len(text), len(tokens) - 1)

    def _batches(self, order: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            yield batch
            self._tick(start + len(batch), len(order))


def _before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of these."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
