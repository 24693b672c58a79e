"""How good summaries are: words shared with a person's summary, length, reward and perplexity."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence

from rpa_ray.evaluation.statistics import Estimate, bootstrap_median, mean_estimate
from rpa_ray.scoring.text_rules import words

SHARES = {"rouge1"}
"""The metrics that lie in [0, 1] by nature."""

_ROUGE_WORD = re.compile(r"[a-z0-9]+")


def rouge1(summary: str, reference: str) -> float:
    """Return the F1 of the words that two texts share; a repeated word counts as often as in both.

    Words are runs of ASCII letters and digits in lower case, without stemming. Between 0 and 1; 0
    where either text has no words.

    Source: Lin 2004 (ROUGE), n = 1.
    """
    own, other = (Counter(_ROUGE_WORD.findall(text.lower())) for text in (summary, reference))
    num_words = own.total() + other.total()
    return 2 * (own & other).total() / num_words if num_words else 0.0


def summary_metrics(
    summaries: Sequence[str],
    references: Sequence[str],
    *,
    rewards: Sequence[float],
    perplexities: Sequence[float],
    items: Sequence[Hashable],
    num_resamples: int,
) -> dict[str, Estimate]:
    """Return every metric of the summarisation task, with intervals over items.

    Args:
        summaries: What the model wrote, one a post.
        references: The summary of each post to compare with.
        rewards: Score of each summary by the reward model of the task.
        perplexities: Of each summary; NaN, for an empty one, is left out of the median.
        items: What each post is about: posts about one item are not independent.
        num_resamples: Bootstrap resamples of each interval.
    """
    pairs = zip(summaries, references, strict=True)
    values = {
        "rouge1": [rouge1(*pair) for pair in pairs],
        "summary_reward": list(rewards),
        "length_words": [float(len(words(summary))) for summary in summaries],
    }
    metrics = {
        name: mean_estimate(v, items=items, bounded=name in SHARES, num_resamples=num_resamples)
        for name, v in values.items()
    }
    defined = [(ppl, item) for ppl, item in zip(perplexities, items, strict=True) if ppl == ppl]
    if defined:
        ppls, of_items = zip(*defined, strict=True)
        metrics["summary_ppl_median"] = bootstrap_median(ppls, num_resamples, items=of_items)
    return metrics
