"""A causal language model as a judge of fluency: how improbable it finds an answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rpa_ray.scoring.batching import check_template, cut_to, in_batches, read_tokens
from rpa_ray.scoring.weights import require_every_weight, scoring_dtype

_MAX_LOGIT_BYTES = 2**30
"""Of a batch; log-probabilities take as much again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerNll:
    """Negative log-likelihood of one answer."""

    nll_sum: float
    """Nats, summed over the answer's tokens."""
    num_tokens: int
    """Tokens of the answer in the judge's tokenizer; 0 for an empty answer."""

    @property
    def perplexity(self) -> float:
        """``exp(mean NLL)``; NaN for an empty answer, whose perplexity is undefined."""
        return math.exp(self.nll_sum / self.num_tokens) if self.num_tokens else math.nan


class PerplexityScorer:
    """Scores an answer given a beginning-of-sequence token and what the template puts before it.

    The template ``{answer}`` gives the usual perplexity of the answer alone; with a prompt in it,
    the answer is conditioned on the prompt. Text after the answer is not allowed. Rows longer than
    ``max_length`` tokens lose their end.

    Source: the perplexity metric of Hugging Face's evaluate, one text at a time.
    """

    def __init__(
        self,
        path: Path,
        *,
        template: str,
        max_length: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        """Load model and tokenizer from a folder.

        Raises:
            ValueError: If the template does not end with the answer, the tokenizer has no token to
                begin with, or the model lacks weights.
        """
        check_template(template)
        if not template.endswith("{answer}"):
            raise ValueError(f"template must end with {{answer}}, got {template!r}. Cut its end.")
        self._context = template.removesuffix("{answer}")
        self._batch_size = batch_size
        self._device = device
        self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self._first_token_id = _first_token_id(self._tokenizer)
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=scoring_dtype(path, device),
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
        require_every_weight(path, loading["missing_keys"])
        self._model: PreTrainedModel = model.eval().to(device)
        self._max_length = read_tokens(self._model, self._tokenizer, max_length)
        self._tokens_at_once = _MAX_LOGIT_BYTES // (4 * model.config.get_text_config().vocab_size)

    def score(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """Return the perplexity of each answer; NaN for an empty one."""
        return [nll.perplexity for nll in self.answer_nll(texts)]

    def answer_nll(self, texts: Sequence[tuple[str, str]]) -> list[AnswerNll]:
        """Return the negative log-likelihood of each answer, in their order."""
        contexts = [
            [self._first_token_id, *self._ids(self._context.format(prompt=p))] for p, _ in texts
        ]
        rows = [
            [*context, *self._ids(answer)]
            for context, (_, answer) in zip(contexts, texts, strict=True)
        ]
        cut = cut_to(rows, self._max_length)
        longest = max(map(len, cut), default=1)
        return in_batches(
            cut,
            batch_size=max(1, min(self._batch_size, self._tokens_at_once // longest)),
            pad_token_id=0,  # never read: the mask hides it and its loss is not counted
            compute=lambda ids, mask, numbers: self._nll_batch(
                ids, mask, [len(contexts[number]) for number in numbers]
            ),
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _nll_batch(
        self, input_ids: Tensor, attention_mask: Tensor, context_lengths: list[int]
    ) -> list[AnswerNll]:
        input_ids, attention_mask = input_ids.to(self._device), attention_mask.to(self._device)
        with torch.no_grad():
            logits = self._model(input_ids=input_ids, attention_mask=attention_mask).logits
        logprobs = logits[:, :-1].float().log_softmax(dim=-1)
        nll = -logprobs.gather(2, input_ids[:, 1:, None]).squeeze(2)  # [batch, seq - 1]
        starts = torch.tensor(context_lengths, device=self._device)
        positions = torch.arange(1, input_ids.shape[1], device=self._device)
        counts = (positions >= starts[:, None]) & attention_mask[:, 1:].bool()
        sums = nll.masked_fill(~counts, 0.0).sum(dim=1)
        return [
            AnswerNll(nll_sum=float(total), num_tokens=int(number))
            for total, number in zip(sums, counts.sum(dim=1), strict=True)
        ]


def _first_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    token_id = tokenizer.bos_token_id
    if token_id is None:
        token_id = tokenizer.eos_token_id
    if token_id is None:
        raise ValueError(
            "tokenizer must have a beginning- or end-of-sequence token, got neither. "
            "Set bos_token in its tokenizer_config.json."
        )
    return int(token_id)
