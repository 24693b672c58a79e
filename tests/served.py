"""What an engine serves against what was meant: bytes of a checkpoint, a model's own answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rpa_ray.actors.rollout import Generated
from rpa_ray.weight_sync.digests import tensor_digest


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


def checkpoint_digests(folder: Path, dtype: torch.dtype) -> dict[str, str]:
    """Return the digest of every tensor of a safetensors checkpoint, cast to ``dtype``.

    Raises:
        ValueError: If the folder holds no safetensors file.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"folder must hold a safetensors checkpoint, got {folder}. Save the model there first."
        )
    digests: dict[str, str] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (the handle is no mapping)
                digests[name] = tensor_digest(tensors.get_tensor(name).to(dtype))
    return digests
