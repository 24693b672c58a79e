"""Where an attacker who learns from his trials looks next: a TPE of Optuna, asked anew each time.

    points and results of the trials so far -> a study in memory -> the next point

Nothing of a study has to outlive an interruption: the points and the run folders do.
"""

import json
import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from rpa_ray.campaign.trial import harm_of, looks_on_the_way
from rpa_ray.config import Distribution, Point, SweepSettings
from rpa_ray.config.sweep import NUM_RANDOM, key_of
from rpa_ray.report.tables.response import metrics_of

Tried = tuple[Point, Mapping[str, Any] | None]
"""The point of a trial, and what its run folder says came out; None where nothing has yet."""


def next_point(sweep: SweepSettings, tried: Sequence[Tried]) -> Point:
    """Return where the next trial is to be.

    The same settings and results give the same point. What was tried already, which a TPE over
    choices asks for again, is replaced by the next random point.

    Args:
        sweep: What varies.
        tried: The trials so far, in order.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize" if sweep.mode == "max" else "minimize",
        sampler=optuna.samplers.TPESampler(
            seed=Random(f"{sweep.seed} {len(tried)}").getrandbits(32),  # noqa: S311 - no secret
            n_startup_trials=NUM_RANDOM,
            constant_liar=True,  # trials that are running count as bad: two are not alike
        ),
    )
    distributions = {key: _distribution(sweep, key) for key in sweep.grid}
    for one, outcome in tried:
        study.add_trial(_trial(sweep, one, outcome, distributions))
    found = study.ask(distributions).params
    point = {key: _value(sweep, key, found[key]) for key in sweep.grid}
    known = {key_of(one) for one, _ in tried}
    if key_of(point) not in known:
        return point
    return next(drawn for drawn in sweep.draws() if key_of(drawn) not in known)


def _trial(
    sweep: SweepSettings,
    point: Point,
    outcome: Mapping[str, Any] | None,
    distributions: dict[str, BaseDistribution],
) -> FrozenTrial:
    """Return a trial as Optuna knows it; one that failed will be run again, and counts as open.

    One that was stopped is pruned: no result, but the harm at its looks.
    """
    given: dict[str, Any] = {
        "params": {key: _parameter(sweep, key, point[key]) for key in sweep.grid},
        "distributions": distributions,
    }
    if outcome is None or outcome["status"] == "failed":
        return create_trial(state=TrialState.RUNNING, **given)
    if outcome["status"] == "stopped":
        looks = enumerate(map(harm_of, looks_on_the_way(outcome)), start=1)
        return create_trial(state=TrialState.PRUNED, intermediate_values=dict(looks), **given)
    means = [outcome["metrics"].get(name, {}).get("mean") for name in metrics_of(sweep)]
    value = next((mean for mean in means if mean is not None and math.isfinite(mean)), None)
    if value is None:
        return create_trial(state=TrialState.FAIL, **given)
    return create_trial(value=value, **given)


def _distribution(sweep: SweepSettings, key: str) -> BaseDistribution:
    values = sweep.grid[key]
    if isinstance(values, Distribution):
        return FloatDistribution(values.low, values.high, log=values.scale == "log")
    return CategoricalDistribution([json.dumps(value) for value in values])


def _parameter(sweep: SweepSettings, key: str, value: Any) -> Any:
    """Return a value as Optuna's distribution of the key has it."""
    return value if isinstance(sweep.grid[key], Distribution) else json.dumps(value)


def _value(sweep: SweepSettings, key: str, parameter: Any) -> Any:
    """Return the value of a key for which Optuna has a parameter."""
    values = sweep.grid[key]
    if isinstance(values, Distribution):
        return values.rounded(parameter)
    return json.loads(parameter)
