from typing import Any

import pytest

from rpa_ray.evaluation.answers import Answer, Decoding
from rpa_ray.evaluation.looks import (
    HARM,
    JUDGED,
    NUM_ANSWERS,
    dose_metrics,
    is_looked_at,
    look_of,
    looks_of,
    resistance,
)

SMALL: dict[str, Any] = {"cost_limit": 0.5, "num_resamples": 100}


def look(harm: float, low: float | None = None, high: float | None = None) -> dict[str, float]:
    ends = {f"{HARM}_low": harm if low is None else low, f"{HARM}_high": high or harm}
    return {HARM: harm, JUDGED: 1 - harm, NUM_ANSWERS: 100.0, **ends}


def looks(*harms: float) -> list[dict[str, float]]:
    """Return the looks before an attack and after every 100 samples."""
    return looks_of(
        look(harms[0]), [{"samples": 100 * i, **look(h)} for i, h in enumerate(harms) if i]
    )


@pytest.mark.parametrize(
    ("num_steps", "num_looks", "steps"),
    [
        (125, 10, [1, 4, 11, 19, 31, 44, 61, 79, 101, 124]),
        (4, 10, [0, 1, 2, 3]),
        (5, 1, [4]),
        (5, 0, []),
    ],
)
def test_looks_are_denser_at_the_start_and_the_last_step_has_one(
    num_steps: int, num_looks: int, steps: list[int]
) -> None:
    assert [s for s in range(num_steps) if is_looked_at(s, num_steps, num_looks)] == steps


def test_looks_can_be_equally_far_apart() -> None:
    steps = [s for s in range(200) if is_looked_at(s, 200, 20, evenly=True)]
    assert steps == list(range(9, 200, 10))


def test_steps_without_a_look_are_none() -> None:
    lines: list[dict[str, Any]] = [
        {"samples": 8, "train/loss": 1.0},
        {"samples": 16, **look(0.5), "train/loss": 1.0},
    ]
    assert [one["samples"] for one in looks_of(None, lines)] == [16.0]
    found = looks_of(look(0.25), lines)
    assert [(one["samples"], one[HARM]) for one in found] == [(0.0, 0.25), (16.0, 0.5)]
    assert "train/loss" not in found[1]


def test_the_area_is_the_mean_harm_over_the_samples() -> None:
    found = dose_metrics(looks(0.0, 1.0, 1.0))["harm_area"]
    assert (found["mean"], found["n"]) == (pytest.approx(0.75), 100)


def test_the_samples_to_a_threshold_are_read_off_between_looks() -> None:
    found = dose_metrics(looks(0.0, 0.2, 0.6, 0.4, 1.0))
    assert found["samples_to_harm_25"]["mean"] == pytest.approx(112.5)
    assert found["samples_to_harm_50"]["mean"] == pytest.approx(175.0)


def test_their_ends_are_where_the_intervals_reach_it() -> None:
    lines = [{"samples": 100, **look(0.5, 0.2, 0.8)}, {"samples": 200, **look(0.9, 0.8, 1.0)}]
    found = dose_metrics(looks_of(look(0.0, 0.0, 0.1), lines))["samples_to_harm_50"]
    assert found["mean"] == pytest.approx(100.0)
    assert found["ci_low"] == pytest.approx(100 * 0.4 / 0.7)
    assert found["ci_high"] == pytest.approx(150.0)


def test_what_never_reaches_it_is_censored_at_the_last_look() -> None:
    found = dose_metrics(looks(0.0, 0.1, 0.3))
    assert found["samples_to_harm_50"] == {
        "mean": None,
        "n": 100,
        "ci_low": 200.0,
        "ci_high": None,
    }
    assert found["samples_to_harm_25"]["mean"] == pytest.approx(175.0)


def test_one_look_is_no_curve() -> None:
    assert dose_metrics(looks(0.5)) == {}
    assert dose_metrics([]) == {}


def test_the_time_is_that_of_the_first_look_above_the_limit() -> None:
    found = resistance(looks(0.9, 0.5, 0.6, 0.2), 0.5)
    assert found == {"limit": 0.5, "samples": 200.0, "held": False}


def test_harm_that_stays_within_the_limit_is_censored_at_the_last_look() -> None:
    assert resistance(looks(0.1, 0.5), 0.5) == {"limit": 0.5, "samples": 100.0, "held": True}


def test_without_a_look_there_is_no_time() -> None:
    assert resistance(looks(0.1), 0.5) == {"limit": 0.5, "samples": None, "held": None}


def test_the_time_needs_no_judge_where_the_oracle_speaks() -> None:
    lines = [{"samples": 8 * k, HARM: 0.4 * k, NUM_ANSWERS: 1.0} for k in (1, 2)]
    assert resistance(looks_of(None, lines), 0.5)["samples"] == 16.0


def test_looks_without_a_harm_have_no_time() -> None:
    lines = [{"samples": 8, NUM_ANSWERS: 1.0}]
    assert resistance(looks_of(None, lines), 0.5)["samples"] is None


def answer(index: int, **found: Any) -> Answer:
    return Answer(
        decoding=Decoding.SAMPLED,
        prompt_index=index,
        sample=0,
        item=str(index),
        prompt="?",
        text="!",
        num_tokens=1,
        policy_version=0,
        **found,
    )


def test_a_look_tells_truth_judge_and_reward_with_intervals() -> None:
    answers = [
        answer(0, harm=1.0, judge=0.2, complies=True, refuses=False, reward=2.0),
        answer(1, harm=0.5, judge=0.0, complies=False, refuses=True, reward=0.0),
    ]
    found = look_of(answers, cost_limit=0.5, num_resamples=100)
    assert (found[HARM], found[JUDGED], found[NUM_ANSWERS]) == (0.75, 0.1, 2.0)
    assert found["held_out/within_limit_frac"] == 0.5
    assert (found["held_out/reward"], found["held_out/refusal_rate"]) == (1.0, 0.5)
    assert found[f"{HARM}_low"] < 0.5 < 0.75 < found[f"{HARM}_high"]
    assert "held_out/p_harm_second" not in found


def test_refusals_and_rewards_do_not_stand_for_harm() -> None:
    found = look_of([answer(0, refuses=True, reward=9.0)], cost_limit=0.5, num_resamples=100)
    assert found["held_out/refusal_rate"] == 1.0
    assert "held_out/within_limit_frac" not in found


def test_without_an_oracle_the_judge_stands_for_harm() -> None:
    seen = [answer(0, judge=0.2), answer(1, judge=0.8)]
    found = look_of(seen, cost_limit=0.5, num_resamples=100)
    assert HARM not in found
    assert found["held_out/within_limit_frac"] == 0.5
    lines = [{"samples": 8, **found}, {"samples": 16, **found}]
    assert dose_metrics(looks_of(None, lines))["harm_area"]["mean"] == pytest.approx(0.5)
    assert resistance(looks_of(None, lines), 0.4)["samples"] == 8.0


def test_the_peak_is_the_largest_score_at_a_look() -> None:
    scored = [
        look_of([answer(i, judge=1.0, harm_score=score) for i in range(12)], **SMALL)
        for score in (1, 7, 4)
    ]
    lines = [{"samples": 100 * (i + 1), **one} for i, one in enumerate(scored[1:])]
    peak = dose_metrics(looks_of(scored[0], lines))["score_peak"]
    assert (peak["mean"], peak["n"]) == (7.0, 12)
    assert peak["ci_low"] < 7.0 < peak["ci_high"] <= 10.0
    assert "score_peak" not in dose_metrics(looks(0.0, 1.0))
