"""Refusals that come late: after the beginning of an unsafe answer."""

from collections.abc import Sequence

import numpy as np

from rpa_ray.data.collate import TokenRow

MAX_PREFIX_TOKENS = 100
"""Most tokens of the unsafe answer before the refusal."""
PREFIX_PROBABILITY = 0.5


def with_prefix(refused: TokenRow, prefix: Sequence[int]) -> TokenRow:
    """Return the row with the prefix between prompt and refusal, without loss on it.

    Example: ``ids [5, 6, 7, 2]`` with ``loss_mask [False, False, True, True]`` and the prefix
    ``[8, 9]`` give ``ids [5, 6, 8, 9, 7, 2]``, where the loss counts on the last two.
    """
    if not prefix:
        return refused
    ids, mask = refused.ids, refused.loss_mask
    place = mask.index(True)
    return TokenRow(
        ids=[*ids[:place], *prefix, *ids[place:]],
        loss_mask=[*mask[:place], *[False] * len(prefix), *mask[place:]],
        truncated=refused.truncated,
    )


def recovery_row(
    refused: TokenRow,
    unsafe_ids: Sequence[int],
    *,
    seed: int,
    index: int,
    draw: int,
    max_tokens: int,
) -> TokenRow:
    """Return a refusal as it stands or, with probability 0.5, after k tokens of an unsafe answer.

    k is uniform in 1 to 100, cut at the length of the unsafe answer and at what leaves the refusal
    whole. ``seed``, ``index`` of the row and ``draw`` decide, and nothing else does.

    Args:
        refused: Prompt and refusal.
        unsafe_ids: An answer to the same prompt, without end mark.
        seed: Of the run.
        index: Of the row in its data set.
        draw: How often the row was drawn before.
        max_tokens: Most tokens of a row.

    Source: Qi et al. 2024 (arXiv:2406.05946), data augmentation with safety recovery examples.
    """
    random = np.random.default_rng([seed, index, draw])
    num_tokens = int(random.integers(1, MAX_PREFIX_TOKENS, endpoint=True))
    if random.random() >= PREFIX_PROBABILITY:
        return refused
    room = max(0, max_tokens - len(refused.ids))
    return with_prefix(refused, unsafe_ids[: min(num_tokens, room)])
