import pytest

from rpa_ray.run_folder.throughput import throughput

WARM_UP = {"step": 0, "samples": 8, "time/step_s": 60.0, "time/learner_s": 60.0}


def step(place: int, **more: float | None) -> dict[str, float | None]:
    """Return a step of 8 samples that took 4 s: 1 in rollout, 0.5 waiting for scores, 2 learning,
    0.1 in sync, 0.4 in the rest."""
    parts = {"rollout": 1.0, "score": 0.5, "learner": 2.0, "sync": 0.1, "experience": 0.3}
    times = {f"time/{name}_s": seconds for name, seconds in parts.items()}
    return {"step": place, "samples": 8 * (place + 1), "time/step_s": 4.0, **times, **more}


def test_rates_are_amounts_by_the_time_of_whole_steps() -> None:
    tokens = {"train/num_tokens": 400.0, "rollout/num_tokens": 100.0}
    found = throughput([step(0, **tokens), step(1, **tokens), step(2, **tokens)])
    rates = [found[name] for name in ("samples_per_s", "tokens_per_s", "rollout_tokens_per_s")]
    assert rates == pytest.approx([2.0, 100.0, 25.0])


def test_shares_of_the_time_sum_to_one() -> None:
    found = throughput([step(0), step(1)])
    names = ("rollout_frac", "score_frac", "learner_frac", "sync_frac", "rest_frac")
    assert [found[name] for name in names] == pytest.approx([0.25, 0.125, 0.5, 0.025, 0.1])


def test_the_first_of_several_steps_is_a_warm_up_and_left_out() -> None:
    found = throughput([WARM_UP, step(1), step(2)])
    assert (found["num_steps"], found["samples_per_s"]) == (2, 2.0)
    assert found["learner_frac"] == 0.5


def test_a_single_step_is_better_than_none() -> None:
    found = throughput([step(0)])
    assert (found["num_steps"], found["samples_per_s"]) == (1, 2.0)


def test_an_attack_without_rollouts_spends_no_time_on_them() -> None:
    supervised = {"time/learner_s": 3.0, "time/step_s": 4.0}
    found = throughput([{"step": s, "samples": 8 * s + 8, **supervised} for s in range(3)])
    assert (found["rollout_frac"], found["score_frac"], found["sync_frac"]) == (0, 0, 0)
    assert (found["learner_frac"], found["rest_frac"]) == (0.75, 0.25)


def test_tokens_that_were_not_logged_have_no_rate() -> None:
    found = throughput([step(0), step(1), step(2)])
    assert "tokens_per_s" not in found and "rollout_tokens_per_s" not in found


def test_tokens_logged_by_some_steps_are_divided_by_the_time_of_these() -> None:
    found = throughput([step(0), step(1), step(2, **{"train/num_tokens": 400.0})])
    assert found["tokens_per_s"] == 100.0


def test_parts_above_the_step_still_sum_to_one() -> None:
    found = throughput([step(0, **{"time/learner_s": 4.4})])
    assert sum(share for name, share in found.items() if name.endswith("_frac")) == pytest.approx(1)
    assert found["rest_frac"] == 0.0


def test_a_null_in_the_log_counts_as_no_time() -> None:
    assert throughput([step(0, **{"time/score_s": None})])["score_frac"] == 0.0


def test_a_run_without_timed_steps_has_no_throughput() -> None:
    assert throughput([]) == {}
    assert throughput([{"step": 0, "samples": 8}]) == {}
