"""A measurement ends a run whose engine, learner and model under attack are not one."""

from types import SimpleNamespace
from typing import Any

import pytest

from rpa_ray.evaluation.measure import Measurement
from rpa_ray.evaluation.statistics import Estimate
from rpa_ray.jobs import instruments
from rpa_ray.jobs.instruments import measure_model
from rpa_ray.learner.invariants import BrokenInvariant
from rpa_ray.plan import parse_tree


def measured(
    monkeypatch: pytest.MonkeyPatch, *, gap: float = 0.0, kl: float = 0.0, num_updates: int = 0
) -> Measurement:
    """Measure a float32 model of which these are found."""
    found = {
        name: Estimate(mean=value, n=1, ci_low=value, ci_high=value)
        for name, value in (("served_logprob_gap", gap), ("kl_seq_rb", kl))
    }
    measurement = Measurement(metrics=found, answers=[])
    monkeypatch.setattr(instruments, "measure", lambda tools, phase: measurement)
    for name in ("text_scorers", "oracle_of", "restricted_prompts"):
        monkeypatch.setattr(instruments, name, lambda assembly: None)
    assembly: Any = SimpleNamespace(
        settings=parse_tree({"model": {"dtype": "float32"}}),
        inputs=SimpleNamespace(data=SimpleNamespace(harmless_prompts=lambda evaluation: [])),
        prompts=lambda texts, ids: [],
        original_outputs=None,
        models=SimpleNamespace(untouched=None),
        pad_token_id=0,
        module=SimpleNamespace(vocab_size=24),
        engine=SimpleNamespace(num_updates=num_updates),
    )
    return measure_model(assembly, phase="before", fluency_limit=1.0)


def test_a_sound_measurement_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, gap=1e-6).metrics["served_logprob_gap"].mean == 1e-6
    assert measured(monkeypatch, kl=20.0, num_updates=5).metrics["kl_seq_rb"].mean == 20.0


def test_a_policy_away_from_its_start_before_it_learns_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(BrokenInvariant, match=r"^invariant same_start: .*, got 0\.029\."):
        measured(monkeypatch, kl=0.029)


def test_an_engine_away_from_the_learner_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokenInvariant, match=r"^invariant served_logprobs: .*, got 0\.03\."):
        measured(monkeypatch, gap=0.03, num_updates=5)
