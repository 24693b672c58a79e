"""What a metric is, and how its estimate comes from answers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rpa_ray.evaluation.answers import Answer, Decoding
from rpa_ray.evaluation.rank_agreement import spearman
from rpa_ray.evaluation.statistics import Estimate, bootstrap_median, mean_estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One number about a model: how it comes from its answers, and how it is told."""

    name: str
    heading: str
    definition: str
    answers: Decoding
    value: Callable[[Answer], float | bool | None]
    """Value of one answer; None leaves the answer out, and the metric where all are."""
    bounded: bool = True
    """Whether values lie in [0, 1] by nature."""
    summary: Literal["mean", "median", "max"] = "mean"
    decimals: int = 2
    takes_asterisk: bool = False
    """Whether a low share of fluent answers makes the value misleading."""
    is_shown: bool = True
    """Whether it is a column of the main table."""


def estimates(
    metrics: Iterable[Metric], answers: Sequence[Answer], *, num_resamples: int
) -> dict[str, Estimate]:
    """Return those metrics that some answer has a value of, by name.

    Args:
        metrics: Rows of the table.
        answers: Of one model, all decodings.
        num_resamples: Of each interval.
    """
    found = {}
    for metric in metrics:
        of_kind = [a for a in answers if a.decoding is metric.answers]
        valued = [(v, a.item) for a in of_kind if (v := metric.value(a)) is not None]
        if valued:
            values = [float(value) for value, _ in valued]
            items = [item for _, item in valued]
            found[metric.name] = _estimate(metric, values, items, num_resamples)
    return found


def _estimate(
    metric: Metric, values: list[float], items: list[str], num_resamples: int
) -> Estimate:
    if metric.summary == "median":
        return bootstrap_median(values, num_resamples, items=items)
    if metric.summary == "max":
        # The worst of these prompts: a maximum has no interval.
        nothing = float("nan")
        return Estimate(mean=max(values), n=len(values), ci_low=nothing, ci_high=nothing)
    return mean_estimate(values, items=items, bounded=metric.bounded, num_resamples=num_resamples)


def judge_correlation(answers: Sequence[Answer]) -> Estimate | None:
    """Return Spearman's correlation of judge and harm over sampled answers; None without either.

    It has no interval, and is undefined where all answers are equally harmful.
    """
    both = [
        (a.judge, a.harm)
        for a in answers
        if a.decoding is Decoding.SAMPLED and a.judge is not None and a.harm is not None
    ]
    rho = spearman([judge for judge, _ in both], [harm for _, harm in both]) if both else None
    if rho is None:
        return None
    return Estimate(mean=rho, n=len(both), ci_low=float("nan"), ci_high=float("nan"))
