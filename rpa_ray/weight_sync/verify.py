"""Checks that the engines serve the weights that were meant, by their bytes and their answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rpa_ray.actors.pools import RolloutPool
from rpa_ray.actors.rollout import Generated


class ServedWeightsError(RuntimeError):
    """An engine received other weights than were meant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DigestReport:
    """Names of weights by what is wrong with them; all empty where nothing is."""

    missing: tuple[str, ...]
    """Meant but not received."""
    unexpected: tuple[str, ...]
    """Received but not meant."""
    different: tuple[str, ...]
    """Received with other bytes."""

    @property
    def ok(self) -> bool:
        """True where exactly the meant weights were received."""
        return not (self.missing or self.unexpected or self.different)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputGap:
    """How far an engine's answers are from a reference model's, over all answer tokens."""

    num_tokens: int
    mean_logprob_gap: float
    """Mean |engine - reference| log-probability of the sampled tokens, nats."""
    max_logprob_gap: float
    num_decided: int
    """Tokens where the reference's best token leads its second by more than the margin."""
    num_greedy_differences: int
    """Decided tokens where a greedy engine took another token; no meaning for sampled answers."""


def compare_digests(expected: Mapping[str, str], received: Mapping[str, str]) -> DigestReport:
    """Return what differs between the digests of the meant and of the received weights."""
    both = expected.keys() & received.keys()
    return DigestReport(
        missing=tuple(sorted(expected.keys() - received.keys())),
        unexpected=tuple(sorted(received.keys() - expected.keys())),
        different=tuple(sorted(name for name in both if expected[name] != received[name])),
    )


def verify_served(*, pool: RolloutPool, expected: Mapping[str, str]) -> None:
    """Check every engine's last push against the digests of the meant weights.

    The push must have recorded digests. Take ``expected`` from the checkpoint that the policy was
    loaded from (``checkpoint_digests``), not from the push, or a fault of the push hides itself.

    Raises:
        ServedWeightsError: If an engine received other weights, or recorded nothing.
    """
    for name, received in pool.digests().items():
        report = compare_digests(expected, received)
        if not report.ok:
            raise ServedWeightsError(
                f"{name} must have received the policy's {len(expected)} weights, got "
                f"{_listing('missing', report.missing)}, "
                f"{_listing('unexpected', report.unexpected)}, "
                f"{_listing('different', report.different)}. "
                "Check the names, the weight filter and the gather of the weight source."
            )


def verify_answers(gap: OutputGap, *, max_mean_gap: float = 0.25) -> None:
    """Check that an engine computes what a reference model does with the same weights.

    Right bytes are not enough: an engine computes from its own, repacked copies of the weights. The
    limit is in nats: bf16 against fp32 was 0.01 on a random 1M-parameter model and 0.03 on Gemma 3
    270M, old weights in the output head 0.8.

    Raises:
        ServedWeightsError: If the mean gap is above the limit, or there was no token to compare.
    """
    if not gap.mean_logprob_gap <= max_mean_gap:
        raise ServedWeightsError(
            f"mean log-probability gap must be at most {max_mean_gap:g} nats, got "
            f"{gap.mean_logprob_gap:g} over {gap.num_tokens} tokens. Compare a push of the same "
            "weights to a new engine: it tells wrong weights from a wrong computation."
        )


def output_gap(
    *,
    logits_of: Callable[[Tensor], Tensor],
    prompts: Sequence[Sequence[int]],
    generated: Sequence[Generated],
    greedy_margin: float = 0.1,
) -> OutputGap:
    """Compare answers with a reference model that scores each prompt and answer in one pass.

    ``logits_of`` maps token ids [1, seq] to logits [1, seq, vocab]; give it fp32 arithmetic on the
    weights that are served. A greedy engine may differ where two tokens are within
    ``greedy_margin`` (nats), for it computes in its own precision: in bfloat16 each of the two was
    off by up to 0.04.
    """
    gaps: list[Tensor] = []
    num_decided = num_differences = 0
    for prompt, answer in zip(prompts, generated, strict=True):
        if not answer.token_ids:
            continue
        ids = torch.tensor([[*prompt, *answer.token_ids]])
        with torch.no_grad():
            logits = logits_of(ids)[0, len(prompt) - 1 : -1]  # [answer, vocab]
        logprobs = logits.float().log_softmax(dim=-1)
        sampled = torch.tensor(answer.token_ids)
        reference = logprobs.gather(1, sampled[:, None]).squeeze(1)
        gaps.append((torch.tensor(answer.logprobs) - reference).abs())
        best = logprobs.topk(2, dim=-1)
        decided = best.values[:, 0] - best.values[:, 1] > greedy_margin
        num_decided += int(decided.sum())
        num_differences += int((decided & (best.indices[:, 0] != sampled)).sum())
    every = torch.cat(gaps) if gaps else torch.zeros(0)
    return OutputGap(
        num_tokens=every.numel(),
        mean_logprob_gap=float(every.mean()) if every.numel() else float("nan"),
        max_logprob_gap=float(every.max()) if every.numel() else float("nan"),
        num_decided=num_decided,
        num_greedy_differences=num_differences,
    )


def _listing(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
