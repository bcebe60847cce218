"""A Hugging Face model as lm-eval asks it: log-likelihoods and greedy text, in a fixed order.

lm-eval's own wrapper needs accelerate, sorts by length and pads by what else is asked. Here a request's batch is made
of the same requests each time, so that two runs on one device give the same bits.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from compression_pipeline.huggingface.sample import greedily

Tick = Callable[[int, int], None]
"""Told after each batch: how many of how many requests are done."""

AT_ONCE = 512
"""Positions whose logits are computed at once: those of a vocabulary of 128,000 take 260 MB in float32."""

LONGEST_REPLY = 256
"""Tokens of a generated reply, where the task says no other number."""


class HuggingFaceModel(TemplateLM):
    """Scores text with `model`, a causal model of transformers whose logits are its output embeddings' alone."""

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
            hidden = self.model.base_model(inputs.to(self._device), use_cache=False).last_hidden_state
            ends = [len(tokens) - 1 for tokens, _ in rows]
            counts = [wanted for _, wanted in rows]
            states = torch.cat(
                [hidden[row, end - n : end] for row, (end, n) in enumerate(zip(ends, counts, strict=True))]
            )
            targets = [token for tokens, wanted in rows for token in tokens[len(tokens) - wanted :]]
            likely, best = self._scored(states, torch.tensor(targets, dtype=torch.long, device=self._device))
            for i, of_row, hits in zip(batch, likely.split(counts), best.split(counts), strict=True):
                found[i] = (of_row.sum().item(), bool(hits.all()))
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        windows = [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        scored = iter(self._loglikelihood_tokens([(None, *window) for of_text in windows for window in of_text]))
        return [sum(likely for likely, _ in islice(scored, len(of_text))) for of_text in windows]

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

    def _scored(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of each position: the log-likelihood of its target, and whether that is the likeliest. [n] each.

        `states` [n, hidden size]: the decoder's output; `targets` [n]. Logits, the largest tensor there is, are made
        of some positions at a time: a text that is scored as a whole has thousands.
        """
        head = self.model.get_output_embeddings()
        likely, best = targets.new_empty(len(targets), dtype=torch.float32), torch.empty_like(targets, dtype=torch.bool)
        for start in range(0, len(targets), AT_ONCE):
            chunk = slice(start, start + AT_ONCE)
            scores = torch.log_softmax(head(states[chunk]).float(), dim=-1)
            likely[chunk] = scores.gather(1, targets[chunk, None])[:, 0]
            best[chunk] = scores.argmax(dim=-1) == targets[chunk]
        return likely, best

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
