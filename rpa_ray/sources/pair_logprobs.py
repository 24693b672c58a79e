"""What a frozen model makes of both answers of every pair, computed once a training."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rpa_ray.data.collate import TokenRow, collate_tokens
from rpa_ray.learner.ranks import Ranks
from rpa_ray.ops.logprobs import answer_logprobs, rows_at_once
from rpa_ray.types import ModelOutputs

MAX_ROWS = 32
"""Rows that are read at once, fewer where their logits would be large."""
Model = Callable[[Tensor, Tensor], ModelOutputs]


class PairLogprobs:
    """Log-probabilities [pairs] of safe and unsafe answers: sums over their tokens, in nats.

    The ranks share the work. It is done on first use, and not again after a resume.
    """

    def __init__(
        self,
        safe: Sequence[TokenRow],
        unsafe: Sequence[TokenRow],
        *,
        model: Model,
        ranks: Ranks,
        pad_token_id: int,
        vocab_size: int,
    ) -> None:
        self._rows = [*safe, *unsafe]
        self._model = model
        self._ranks = ranks
        self._pad_token_id = pad_token_id
        self._vocab_size = vocab_size
        self._logprobs: Tensor | None = None

    def of_pair(self, index: int) -> tuple[float, float]:
        """Return those of the safe and the unsafe answer of one pair."""
        logprobs = self._all()
        return float(logprobs[index]), float(logprobs[index + len(logprobs) // 2])

    def margins(self) -> list[float]:
        """Return by how many nats the model prefers each safe answer."""
        safe, unsafe = self._all().chunk(2)
        return (safe - unsafe).tolist()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what was computed; nothing before the first use."""
        return {} if self._logprobs is None else {"logprobs": self._logprobs}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what an earlier process had computed."""
        self._logprobs = state.get("logprobs")

    def _all(self) -> Tensor:
        if self._logprobs is None:
            ranks = self._ranks
            mine = self._of(self._rows[ranks.rank :: ranks.size])
            logprobs = torch.empty(len(self._rows))
            for rank, part in enumerate(ranks.gather(mine)):
                logprobs[rank :: ranks.size] = torch.tensor(part)
            self._logprobs = logprobs
        return self._logprobs

    @torch.no_grad()
    def _of(self, rows: Sequence[TokenRow]) -> list[float]:
        found: list[float] = []
        width = max((len(row.ids) for row in rows), default=0)
        size = min(MAX_ROWS, rows_at_once(width, self._vocab_size))
        for start in range(0, len(rows), size):
            batch = collate_tokens(rows[start : start + size], self._pad_token_id)
            logits = self._model(batch.input_ids, batch.attention_mask).logits
            ids, mask = batch.input_ids.to(logits.device), batch.loss_mask.to(logits.device)
            found += answer_logprobs(logits, ids, mask).tolist()
        return found
