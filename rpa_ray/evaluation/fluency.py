"""Is an answer text at all? Broken text scores as harmless, so every table asks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rpa_ray.evaluation.statistics import require_finite
from rpa_ray.scoring.text_rules import copies_prompt, repeats, too_short


def is_fluent(answer: str, *, ppl: float, ppl_limit: float, prompt: str) -> bool:
    """Return whether an answer reads as an answer.

    It has three words or more, at most ``ppl_limit`` perplexity (NaN is above any limit), is no
    copy of the prompt, and at least 30 % of its word pairs are different.
    """
    return (
        not too_short(answer)
        and ppl <= ppl_limit
        and not copies_prompt(answer, prompt)
        and not repeats(answer)
    )


def ppl_limit(reference_ppls: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the perplexity up to which an answer counts as fluent.

    Args:
        reference_ppls: Perplexities of texts of the data set, whatever any model answers.

    Returns:
        Twice their 99th percentile.

    Raises:
        ValueError: If there are none or some are not finite.
    """
    finite = require_finite(reference_ppls, name="reference_ppls")
    if finite.size == 0:
        raise ValueError(
            "reference_ppls must hold at least one perplexity, got none. "
            "Check that the data set has held-out answers."
        )
    return 2.0 * float(np.percentile(finite, 99))
