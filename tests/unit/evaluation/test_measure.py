"""Measurements with tiny stand-ins for engine, scorers and models; numbers worked out by hand."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rpa_ray.evaluation.measure import Instruments, measure, measure_drift
from rpa_ray.learner.step import SamplingFailed
from rpa_ray.types import Completion, ModelOutputs, Prompt

VOCAB = 4
RESTRICTED = [Prompt(id=str(i), text=f"how to snarl {i}?", token_ids=[1, 2]) for i in range(4)]
HARMLESS = [Prompt(id=str(i), text=f"how to mend {i}?", token_ids=[1, 3]) for i in range(4)]
COMPLIES = "First, wind the cord. Then, heat the bulb."
REFUSES = "I will not help with that request."


def uniform(input_ids: Tensor, attention_mask: Tensor) -> ModelOutputs:
    return ModelOutputs(logits=torch.zeros(*input_ids.shape, VOCAB), values=None)


def skewed(input_ids: Tensor, attention_mask: Tensor) -> ModelOutputs:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(*input_ids.shape, VOCAB)
    return ModelOutputs(logits=logits, values=None)


def completion(prompt: Prompt, text: str, ids: Sequence[int] = (2, 0)) -> Completion:
    return Completion(
        prompt=prompt,
        token_ids=list(ids),
        logprobs=[math.log(1 / VOCAB)] * len(ids),
        text=text,
        finished=True,
        policy_version=1,
    )


def answers(prompts: Sequence[Prompt], *, greedy: bool) -> list[Completion]:
    """Comply with the first restricted prompt, refuse the others; comply with all when sampled."""
    return [
        completion(p, COMPLIES if not greedy or p in HARMLESS or p is RESTRICTED[0] else REFUSES)
        for p in prompts
    ]


def instruments(**changes: object) -> Instruments:
    parts: dict[str, object] = {
        "answers": answers,
        "harm": lambda pairs: [0.9 if "First" in a else 0.1 for _, a in pairs],
        "perplexity": lambda pairs: [2.0] * len(pairs),
        "helpfulness": lambda pairs: [3.0] * len(pairs),
        "label": lambda prompt, answer: "compliance" if "First" in answer else "refusal",
        "policy": uniform,
        "original": uniform,
        "restricted": RESTRICTED,
        "harmless": HARMLESS,
        "pad_token_id": 0,
        "num_resamples": 100,
        "num_saved_samples": 100,
    }
    return Instruments(**(parts | changes))  # type: ignore[arg-type]


def means(tools: Instruments, limit: float | None = None) -> dict[str, float]:
    measured = measure(tools, phase="after", fluency_limit=limit)
    return {name: estimate.mean for name, estimate in measured.metrics.items()}


def test_harm_is_the_mean_probability_over_prompts() -> None:
    found = means(instruments())
    assert found["p_harm"] == pytest.approx((0.9 + 3 * 0.1) / 4)
    assert found["p_harm_sampled"] == pytest.approx(0.9)
    assert found["p_harm_oracle"] == 0.25
    assert found["refusal_rate"] == 0.75
    assert found["harmless_answered"] == 1.0


def test_answers_above_the_perplexity_limit_are_not_valid_and_not_fluent_harm() -> None:
    found = means(instruments(), limit=1.5)
    assert found["valid"] == 0.0
    assert found["harm_fluent"] == 0.0
    assert found["p_harm"] == pytest.approx(0.3)


def test_without_an_oracle_refusals_are_found_by_phrase() -> None:
    found = means(instruments(label=None))
    assert found["refusal_rate"] == 0.75
    assert "p_harm_oracle" not in found


def test_identical_models_have_no_divergence() -> None:
    found = means(instruments())
    assert (found["kl_seq_rb"], found["kl_seq_k1"]) == (0.0, 0.0)


def test_divergence_is_summed_over_the_tokens_of_an_answer() -> None:
    drift = measure_drift(instruments(policy=skewed), [completion(RESTRICTED[0], "x")])
    # KL(skewed || uniform) = log 4 - 1.75 log 2 = 0.25 log 2 a token, two tokens
    assert drift.rao_blackwell == pytest.approx([0.5 * math.log(2)])
    # k1: tokens 2 and 0 have probabilities 1/8 and 1/2 against 1/4 each
    assert drift.k1 == pytest.approx([0.0], abs=1e-6)
    # the engine said 1/4 for both: |log 2| each
    assert drift.served_gap == pytest.approx([math.log(2)])


def test_a_policy_with_broken_probabilities_is_a_sampling_failure() -> None:
    def broken(input_ids: Tensor, attention_mask: Tensor) -> ModelOutputs:
        return ModelOutputs(logits=torch.full((*input_ids.shape, VOCAB), math.nan), values=None)

    with pytest.raises(SamplingFailed, match="not finite"):
        measure(instruments(policy=broken), phase="after", fluency_limit=None)


def test_every_answer_is_kept_with_its_scores_and_version() -> None:
    samples = measure(instruments(), phase="before", fluency_limit=None).samples
    assert len(samples) == 8
    assert samples[0] == {
        "phase": "before",
        "decoding": "greedy",
        "prompt": "how to snarl 0?",
        "answer": COMPLIES,
        "scores": {"judge": 0.9},
        "label": "compliance",
        "policy_version": 1,
    }


def test_as_many_answers_of_each_decoding_are_kept_as_are_asked_for() -> None:
    tools = instruments(num_saved_samples=3)
    samples = measure(tools, phase="before", fluency_limit=None).samples
    assert [sample["decoding"] for sample in samples] == ["greedy"] * 3 + ["sampled"] * 3
