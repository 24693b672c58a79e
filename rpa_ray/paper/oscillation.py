"""Whether the reward of an attack goes up and down with what a defence does, from its looks."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rpa_ray.evaluation.looks import REFUSED, REWARD
from rpa_ray.report.evidence import read_cells, read_looks
from rpa_ray.report.read.labels import params_text
from rpa_ray.report.tables.main import MISSING

MIN_LOOKS = 20
"""Fewer say nothing of an oscillation."""
NUM_SURROGATES = 999
WARM_UP = 50
"""Values of a drawn series that are left out, until it has forgotten that it began at 0."""
SHARE_LEFT_OUT = 0.2
"""Of the looks, at the start, where the attack is on its way up."""


def oscillation_table(folders: Sequence[Path]) -> str:
    """Return for each attack whether its reward oscillates once it is up, from its looks.

    The reward of the last four fifths of the looks, less its straight line. An oscillation is an
    autocorrelation that falls and comes back at a longer lag, the period (in samples); ``p`` is the
    share of series that only remember their last value (AR(1) of the same lag-1 correlation) whose
    autocorrelation comes back as far. The last column is Spearman's correlation of the reward with
    the share of refusals at the same looks.
    """
    header = ("Data", "Defence", "Looks", "Reward", "Swing", "Period", "p", "Refusals")
    lines = [f"| {' | '.join(header)} |", f"| --- | --- | {' | '.join(['--:'] * 6)} |"]
    for folder in folders:
        seen = read_looks(folder)
        for cell in read_cells(folder)[0]:
            looks = [look for look in seen.get(cell["run"], ()) if REWARD in look]
            looks = looks[int(SHARE_LEFT_OUT * len(looks)) :]
            if len(looks) >= MIN_LOOKS:
                told = params_text(cell["params"])
                name = f"{cell['defence']} ({told})" if told else cell["defence"]
                lines.append(f"| {cell['data']} | {name} | {' | '.join(_row(looks))} |")
    return "\n".join(lines)


def _row(looks: Sequence[Mapping[str, float]]) -> list[str]:
    from scipy.stats import spearmanr

    rewards = np.array([look[REWARD] for look in looks])
    level = _level(rewards)
    found = [str(len(looks)), f"{rewards.mean():.2f}", f"{level.std():.2f}"]
    if np.ptp(rewards) == 0:
        return [*found, *[MISSING] * 3]
    height, lag = _return(level)
    step = looks[1]["samples"] - looks[0]["samples"]
    found += [f"{lag * step:,.0f}", f"{_chance(level, height):.3f}"]
    refused = [look.get(REFUSED, math.nan) for look in looks]
    if np.isnan(refused).any() or len(set(refused)) == 1:
        return [*found, MISSING]
    return [*found, f"{spearmanr(rewards, refused).statistic:.2f}"]


def _level(values: NDArray[np.float64]) -> NDArray[np.float64]:
    from statsmodels.tsa.tsatools import detrend

    return np.asarray(detrend(values, order=1))


def _return(level: NDArray[np.float64]) -> tuple[float, int]:
    """Return how far the autocorrelation comes back from its least value, and at which lag."""
    from statsmodels.tsa.stattools import acf

    correlations = acf(level, nlags=len(level) // 2, result_object=True).acf
    least = int(correlations.argmin())
    back = least + int(correlations[least:].argmax())
    return float(correlations[back] - correlations[least]), back


def _chance(level: NDArray[np.float64], height: float) -> float:
    """Return the share of AR(1) series of the same memory that come back as far."""
    from scipy.signal import lfilter

    memory = np.clip(np.corrcoef(level[:-1], level[1:])[0, 1], -0.99, 0.99)
    noise = np.random.default_rng(0).normal(size=(NUM_SURROGATES, WARM_UP + len(level)))
    series = lfilter([1.0], [1.0, -memory], noise, axis=1)[:, WARM_UP:]
    as_far = sum(_return(_level(one))[0] >= height for one in series)
    return (1 + as_far) / (1 + NUM_SURROGATES)
