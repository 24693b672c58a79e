"""Simulate how often the intervals cover what they are to cover, and how often the tests are wrong.

python benchmarks/intervals.py

Items are drawn from a beta distribution with mean p and correlation icc between the prompts of an
item; each has 8 to 10 prompts, each prompt is the mean of 4 samples, and a seed shifts the logit
of every item. Intervals are the product's, with fewer resamples.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import beta, norm

from rpa_ray.evaluation.clusters import item_totals, outer_quantiles, resampled_means
from rpa_ray.evaluation.comparisons import holm, over_seeds, paired_difference
from rpa_ray.evaluation.rank_agreement import rank_agreement
from rpa_ray.evaluation.statistics import bootstrap_median, mean_estimate

MEANS, ICCS = (0.01, 0.05, 0.5), (0.1, 0.5)
NUMS_ITEMS, NUMS_SEEDS = (36, 48, 120), (1, 3, 5)
PROMPTS, SAMPLES = (8, 10), 4
FAMILY = 6
TABLES = ("means", "pairs", "unseen-seeds", "unbounded", "ranks")

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class World:
    """Items of one kind, and what a shift of the logit makes of their mean."""

    mean: float
    icc: float
    seed_sd: float

    def propensities(self, size: tuple[int, ...], rng: np.random.Generator) -> Floats:
        return rng.beta(*self._shape(), size=size)

    def mean_at(self, shifts: Floats) -> Floats:
        """Return the mean over all items of models whose logits are shifted."""
        grid = np.linspace(-6, 6, 241) * max(self.seed_sd, 0.1)
        middles = (np.arange(20_000) + 0.5) / 20_000
        with np.errstate(divide="ignore"):
            logits = logit(beta.ppf(middles, *self._shape()))
        means = np.array([expit(logits + shift).mean() for shift in grid])
        return np.interp(shifts, grid, means)

    def mean_over_seeds(self) -> float:
        middles = (np.arange(2_000) + 0.5) / 2_000
        return float(self.mean_at(self.seed_sd * norm.ppf(middles)).mean())

    def mean_of_items(self, propensities: Floats) -> float:
        """Return what models of all seeds would have on these items."""
        middles = (np.arange(50) + 0.5) / 50
        with np.errstate(divide="ignore"):
            logits = logit(propensities)
        return float(expit(logits + self.seed_sd * norm.ppf(middles)[:, None]).mean())

    def _shape(self) -> tuple[float, float]:
        return self.mean * (1 / self.icc - 1), (1 - self.mean) * (1 / self.icc - 1)


def scores_of(
    propensities: Floats, shifts: Floats, items: NDArray[np.intp], rng: np.random.Generator
) -> Floats:
    """Return the score of each prompt from each seed, shape (seeds, prompts)."""
    with np.errstate(divide="ignore"):
        logits = logit(propensities)
    return rng.binomial(SAMPLES, expit(logits + shifts[:, None])[:, items]) / SAMPLES


def items_of(num_items: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return np.repeat(np.arange(num_items), rng.integers(PROMPTS[0], PROMPTS[1] + 1, num_items))


def covers(ends: tuple[float, float], truth: float) -> bool:
    return ends[0] <= truth <= ends[1]


def mean_row(options: argparse.Namespace, world: World, num_items: int, num_seeds: int) -> str:
    """Return the coverage and width of the intervals of a mean, one row of the table."""
    rng = np.random.default_rng([options.seed, num_items, num_seeds, int(1000 * world.mean)])
    everywhere = world.mean_over_seeds()
    shifts = world.seed_sd * rng.standard_normal((options.num, num_seeds))
    truths = world.mean_at(shifts).mean(axis=1)
    kinds = ("plain", "within", "these items", "new items", "over")
    hits: dict[str, list[bool]] = {kind: [] for kind in kinds}
    widths: dict[str, list[float]] = {"plain": [], "within": []}
    for shift, truth in zip(shifts, truths, strict=True):
        items = items_of(num_items, rng)
        propensities = world.propensities((num_items,), rng)
        scores = scores_of(propensities, shift, items, rng)
        values = scores.mean(axis=0)
        plain = outer_quantiles(
            resampled_means(item_totals(values, items), options.resamples, rng)[0], 0.95
        )
        found = mean_estimate(values, items=items, num_resamples=options.resamples)
        ends = found.ci_low, found.ci_high
        hits["plain"].append(covers(plain, truth))
        hits["within"].append(covers(ends, truth))
        widths["plain"].append(plain[1] - plain[0])
        widths["within"].append(ends[1] - ends[0])
        alone = over_seeds(scores.mean(axis=1))
        joined = over_seeds(scores.mean(axis=1), ends, bounds=(0.0, 1.0))
        if num_seeds >= 3:
            here = world.mean_of_items(propensities[items])
            hits["these items"].append(alone is not None and covers(alone, here))
            hits["new items"].append(alone is not None and covers(alone, everywhere))
            hits["over"].append(joined is not None and covers(joined, everywhere))
    texts = [f"{np.mean(held):.3f}" if held else "-" for held in hits.values()]
    texts += [f"{np.mean(held):.3f}" for held in widths.values()]
    return row([world.mean, world.icc, num_items, num_seeds, *texts])


def paired_row(
    options: argparse.Namespace, world: World, num_items: int, shift: float, is_apart: bool
) -> str:
    """Return coverage of the difference, level (or power) of its test and of Holm's family.

    A family is one baseline and as many models, all shifted alike, that fail on the items the
    baseline fails on or (apart) on others. Without a shift any finding is an error; with one,
    Holm's share is that of families with a finding.
    """
    rng = np.random.default_rng([options.seed, num_items, int(1000 * world.mean), 7])
    truth = float(np.subtract(*world.mean_at(np.array([shift, 0.0]))))
    hits, found, families, smallest, widths, plain = [], [], [], [], [], []
    for _ in range(-(-options.num // FAMILY)):
        items = items_of(num_items, rng)
        shared = world.propensities((num_items,), rng)
        baseline = scores_of(shared, np.zeros(1), items, rng)[0]
        p_values = []
        for _ in range(FAMILY):
            own = world.propensities((num_items,), rng) if is_apart else shared
            other = scores_of(own, np.array([shift]), items, rng)[0]
            difference = paired_difference(
                other, baseline, items=items, num_resamples=options.resamples
            )
            hits.append(covers((difference.ci_low, difference.ci_high), truth))
            widths.append(difference.ci_high - difference.ci_low)
            plain.append(2 * 1.96 * item_totals(other - baseline, items).standard_error)
            p_values.append(difference.p_value)
            smallest.append(difference.smallest_detectable)
        found.append(np.mean(np.array(p_values) <= 0.05))
        families.append(min(holm(p_values)) <= 0.05)
    texts = [f"{np.mean(held):.3f}" for held in (hits, found, families, plain, widths, smallest)]
    fails = "other items" if is_apart else "same items"
    return row([world.mean, world.icc, num_items, fails, f"{truth:.3f}", *texts])


def unseen_seeds_row(options: argparse.Namespace, world: World, num_items: int) -> str:
    """Return how often 5 seeds of two equal methods are told apart: by the test, by over_seeds."""
    rng = np.random.default_rng([options.seed, num_items, int(1000 * world.mean), 9])
    wrong, hits = [], []
    for _ in range(options.num):
        items = items_of(num_items, rng)
        propensities = world.propensities((num_items,), rng)
        first, second = (
            scores_of(propensities, world.seed_sd * rng.standard_normal(5), items, rng)
            for _ in range(2)
        )
        difference = paired_difference(
            first.mean(axis=0), second.mean(axis=0), items=items, num_resamples=options.resamples
        )
        joined = over_seeds(
            first.mean(axis=1) - second.mean(axis=1), (difference.ci_low, difference.ci_high)
        )
        wrong.append(difference.p_value <= 0.05)
        hits.append(joined is not None and covers(joined, 0.0))
    return row([world.mean, world.icc, num_items, f"{np.mean(wrong):.3f}", f"{np.mean(hits):.3f}"])


def unbounded_row(options: argparse.Namespace, num_items: int, spread: float) -> str:
    """Return the coverage of mean and median of log-normal values with an item effect."""
    rng = np.random.default_rng([options.seed, num_items, 11])
    hits: tuple[list[bool], list[bool]] = ([], [])
    for _ in range(options.num):
        items = items_of(num_items, rng)
        effects = spread * 0.5**0.5 * rng.standard_normal(num_items)
        values = np.exp(effects[items] + spread * 0.5**0.5 * rng.standard_normal(items.size))
        mean = mean_estimate(values, items=items, bounded=False, num_resamples=options.resamples)
        median = bootstrap_median(values, options.resamples, items=items)
        hits[0].append(covers((mean.ci_low, mean.ci_high), float(np.exp(spread**2 / 2))))
        hits[1].append(covers((median.ci_low, median.ci_high), 1.0))
    return row([spread, num_items, *(f"{np.mean(held):.3f}" for held in hits)])


def rank_row(options: argparse.Namespace, num_rows: int, pearson: float) -> str:
    """Return coverage of rho of normal rows in four groups, and level of p where rho is 0."""
    rng = np.random.default_rng([options.seed, num_rows, int(100 * pearson)])
    truth = 6 / np.pi * np.arcsin(pearson / 2)
    groups = [place % 4 for place in range(num_rows)]
    hits, found = [], []
    for _ in range(options.num):
        theirs = rng.standard_normal(num_rows)
        noise = (1 - pearson**2) ** 0.5 * rng.standard_normal(num_rows)
        agreement = rank_agreement(
            pearson * theirs + noise, theirs, groups, decimals=None, num_resamples=options.resamples
        )
        assert agreement is not None
        hits.append(covers((agreement.ci_low, agreement.ci_high), truth))
        found.append(agreement.p_value <= 0.05)
    return row([num_rows, f"{truth:.2f}", f"{np.mean(hits):.3f}", f"{np.mean(found):.3f}"])


def row(cells: list[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def tables(options: argparse.Namespace) -> Iterator[tuple[str, str, list[Callable[[], str]]]]:
    """Yield the name and heading of each table and what makes its rows."""
    sizes = list(product(MEANS, ICCS, NUMS_ITEMS))
    yield (
        "means",
        "| p | icc | items | seeds | items resampled | within seeds | t, these items "
        "| t, new items | over seeds "
        "| width, resampled | width, within |",
        [
            lambda cell=cell, k=k, s=s: mean_row(options, cell, k, s)
            for mean, icc, k in sizes
            for cell in [World(mean=mean, icc=icc, seed_sd=options.seed_sd)]
            for s in NUMS_SEEDS
        ],
    )
    yield (
        "pairs",
        "| p | icc | items | fails on | true difference | paired difference | test finds "
        "| Holm finds | width, 3.92 standard errors | width, paired | smallest detectable |",
        [
            lambda cell=cell, k=k, kind=kind: paired_row(options, cell, k, *kind)
            for mean, icc, k in sizes
            for cell in [World(mean=mean, icc=icc, seed_sd=1.0)]
            for kind in ((0.0, False), (0.0, True), (1.0, False))
            if kind[0] == 0.0 or k == 48
        ],
    )
    yield (
        "unseen-seeds",
        "| p | icc | items | test finds | over seeds |",
        [
            lambda cell=cell, k=k: unseen_seeds_row(options, cell, k)
            for mean, icc, k in sizes
            if k == 48
            for cell in [World(mean=mean, icc=icc, seed_sd=options.seed_sd)]
        ],
    )
    yield (
        "unbounded",
        "| log-normal sd | items | mean | median |",
        [
            lambda k=k, spread=spread: unbounded_row(options, k, spread)
            for spread, k in product((0.25, 0.5, 1.0), NUMS_ITEMS)
        ],
    )
    yield (
        "ranks",
        "| rows | true rho | rho | test finds |",
        [
            lambda n=n, pearson=pearson: rank_row(options, n, pearson)
            for n, pearson in product((8, 12, 24, 48), (0.0, 0.5, 0.9))
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num", type=int, default=1000, help="simulations a row")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed-sd", type=float, default=0.5, help="of the logit, over seeds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    options = parser.parse_args()
    for name, heading, rows in tables(options):
        if name not in options.tables:
            continue
        columns = heading.count("|") - 1
        print(f"{heading}\n|{' --: |' * columns}", flush=True)
        for make in rows:
            print(make(), flush=True)
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
