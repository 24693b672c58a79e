"""How far two sides rank the same rows alike, beside what chance and a null model reach."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from rpa_ray.evaluation.clusters import drawn_items, outer_quantiles
from rpa_ray.evaluation.statistics import (
    NO_INTERVAL,
    RESOLUTION_DECIMALS,
    Interval,
    require_finite,
)

Values = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankAgreement:
    """Spearman's rank correlation of our rows with theirs, and what it is to be held against."""

    rho: float
    """-1 to 1."""
    ci_low: float
    ci_high: float
    p_value: float
    """Of a rho at least as high if the order within groups were chance, in (0, 1]; 1 where no
    group has two rows that differ."""
    n: int
    """Rows."""
    num_groups: int
    null_rho: float | None
    """The null model's correlation with theirs; None where it ranks nothing or none was given."""
    over_null_low: float
    """Lower end of the interval of ``rho - null_rho`` over the same resampled rows; NaN without a
    null model that ranks something."""
    over_null_high: float

    @property
    def is_better_than_null(self) -> bool:
        """Whether the whole interval of the difference to the null model lies above 0."""
        return self.over_null_low > 0

    def in_words(self) -> str:
        """Return the correlation with interval, p and null model, in one sentence."""
        text = (
            f"rho {self.rho:.2f} [{self.ci_low:.2f}, {self.ci_high:.2f}] over {self.n} rows, "
            f"p = {self.p_value:.2g} for the order within {self.num_groups} groups"
        )
        if self.null_rho is None:
            return f"{text}; no null model to compare with"
        verdict = "better than" if self.is_better_than_null else "not shown to be better than"
        low, high = self.over_null_low, self.over_null_high
        return (
            f"{text}; {verdict} the null model's {self.null_rho:.2f} "
            f"(difference {self.rho - self.null_rho:+.2f} [{low:+.2f}, {high:+.2f}])"
        )


def spearman(first: Values, second: Values) -> float | None:
    """Return the correlation of the ranks, -1 to 1; equal values share the mean of their ranks.

    None with fewer than three points, or where all values of one side are equal: nothing to rank.

    Raises:
        ValueError: If the lengths differ or some values are not finite.

    Source: Spearman 1904, as Pearson's correlation of ranks, which is exact with ties.
    """
    if len(first) != len(second):
        raise ValueError(
            f"first and second must have one value a point each, got {len(first)} and "
            f"{len(second)}. Pair every value with one of the other side."
        )
    sides = require_finite(first, name="first"), require_finite(second, name="second")
    if len(first) < 3 or any(np.ptp(side) == 0 for side in sides):
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(*sides).statistic)


def spearman_of_means(known: Sequence[float], means: Sequence[float]) -> float | None:
    """Return :func:`spearman` of known values with means over prompts, ranked as they are printed.

    A judge gives probabilities, so that two models whose answers are all refusals have means of
    0.00184 and 0.00185. The difference is the judge's, not the models': both means are 0.00 here
    and share a rank. Three or more means that are all equal then have no correlation, None.

    Args:
        known: What the means are ranked against, as it is.
        means: One mean a point, in [0, 1].

    Raises:
        ValueError: If the lengths differ or some values are not finite.
    """
    return spearman(known, [round(mean, RESOLUTION_DECIMALS) for mean in means])


def rank_agreement(
    ours: Values,
    theirs: Values,
    groups: Sequence[Hashable],
    *,
    null: Values | None = None,
    decimals: int | None = RESOLUTION_DECIMALS,
    num_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> RankAgreement | None:
    """Return how far our rows are ranked as theirs; None where there is nothing to rank.

    The interval holds that of resampled rows and that of Fisher's z. The permutation test shuffles
    our rows within each group only, because rows of different groups (attacks, data) differ for
    reasons that no method has to know: in all orders where those are no more than
    ``num_resamples``, else drawn ones with p = (1 + as high) / (1 + drawn). It is one-sided.

    Args:
        ours: One mean a row.
        theirs: The same rows' values of the other side, ranked as they are.
        groups: Group of each row.
        null: A prediction of each row that knows no method, for example 1 where undefended and 0
            where defended: what a correlation must exceed to say something.
        decimals: Our means are ranked as printed with so many, see :func:`spearman_of_means`;
            None: as they are.
        num_resamples: Draws of as many rows as there are, and of orders.
        seed: Same rows and seed give the same interval and p.
        level: Coverage of the intervals, in (0, 1).

    Raises:
        ValueError: If the lengths differ or some values are not finite.

    Source: Bonett and Wright 2000 (standard error of Fisher's z).
    """
    _require_rows(ours, theirs, groups, null)
    own, other = require_finite(ours, name="ours"), require_finite(theirs, name="theirs")
    own = own if decimals is None else own.round(decimals)
    rho = spearman(own, other)
    if rho is None:
        return None
    null_rho = None if null is None else spearman(null, other)
    rivals = [own] if null_rho is None else [own, np.asarray(null, dtype=np.float64)]
    rng = np.random.default_rng(seed)
    resampled = _resampled_rhos(rivals, other, num_resamples, rng)
    ends = _defined_quantiles(resampled[0], level).around(_fisher_interval(rho, own.size, level))
    over_null = NO_INTERVAL
    if null_rho is not None:
        over_null = _defined_quantiles(resampled[0] - resampled[1], level)
    return RankAgreement(
        rho=rho,
        ci_low=ends.low,
        ci_high=ends.high,
        p_value=_p_within_groups(own, other, groups, num_resamples, rng),
        n=own.size,
        num_groups=len(set(groups)),
        null_rho=null_rho,
        over_null_low=over_null.low,
        over_null_high=over_null.high,
    )


def _require_rows(
    ours: Values, theirs: Values, groups: Sequence[Hashable], null: Values | None
) -> None:
    if not len(ours) == len(theirs) == len(groups) == len(theirs if null is None else null):
        raise ValueError(
            f"ours, theirs, groups and null must have one value a row each, got {len(ours)}, "
            f"{len(theirs)}, {len(groups)} and {None if null is None else len(null)}. "
            "Leave out rows that one side lacks."
        )


def _resampled_rhos(
    rivals: Sequence[NDArray[np.float64]],
    theirs: NDArray[np.float64],
    num_resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the correlations, shape (rivals, num_resamples); NaN where nothing is ranked."""
    rhos = np.empty((len(rivals), num_resamples))
    for rows, draws in drawn_items(theirs.size, num_resamples, rng):
        scores = _centred_ranks(theirs[draws])
        for place, rival in enumerate(rivals):
            own = _centred_ranks(rival[draws])
            with np.errstate(invalid="ignore"):
                rhos[place, rows] = (own * scores).sum(axis=1) / np.sqrt(
                    (own**2).sum(axis=1) * (scores**2).sum(axis=1)
                )
    return rhos


def _centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ranks along the last axis minus their mean; equal values share a rank."""
    from scipy.stats import rankdata

    ranks: NDArray[np.float64] = rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2
    return ranks


def _defined_quantiles(resampled: NDArray[np.float64], level: float) -> Interval:
    defined = resampled[~np.isnan(resampled)]
    if defined.size == 0:
        return NO_INTERVAL
    return Interval(*outer_quantiles(defined, level))


def _fisher_interval(rho: float, num_rows: int, level: float) -> Interval:
    if num_rows < 4:
        return Interval(-1.0, 1.0)
    from scipy.stats import norm

    # Two neighbours swapped: of equal orders z would be infinite and the interval have no width.
    most = 1 - 12 / (num_rows**3 - num_rows)
    z = math.atanh(max(-most, min(rho, most)))
    half = float(norm.ppf((1 + level) / 2)) * math.sqrt((1 + rho**2 / 2) / (num_rows - 3))
    return Interval(min(rho, math.tanh(z - half)), max(rho, math.tanh(z + half)))


def _p_within_groups(
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    groups: Sequence[Hashable],
    num_resamples: int,
    rng: np.random.Generator,
) -> float:
    """Return the share of orders within groups whose correlation is at least as high."""
    own, scores = _centred_ranks(ours), _centred_ranks(theirs)
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    rows_of = [np.array(rows) for rows in members.values()]
    # Sums of the same numbers in another order differ in the last digits.
    reached = float(own @ scores) - 1e-9 * float(np.abs(own) @ np.abs(scores))
    if math.prod(math.factorial(rows.size) for rows in rows_of) <= num_resamples:
        sums = np.array(list(_sums_of_all_orders(own, scores, rows_of)))
        return float((sums >= reached).mean())
    sums = np.zeros(num_resamples)
    for rows in rows_of:
        shuffled = rng.permuted(np.tile(own[rows], (num_resamples, 1)), axis=1)
        sums += shuffled @ scores[rows]
    return float((1 + (sums >= reached).sum()) / (1 + num_resamples))


def _sums_of_all_orders(
    own: NDArray[np.float64], scores: NDArray[np.float64], rows_of: Sequence[NDArray[np.intp]]
) -> Iterator[float]:
    of_groups = [
        [float(own[list(order)] @ scores[rows]) for order in permutations(rows.tolist())]
        for rows in rows_of
    ]
    return (sum(parts) for parts in product(*of_groups))
