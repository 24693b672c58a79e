"""Measurements with tiny stand-ins for engine, scorers and models; numbers worked out by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from rpa_ray.evaluation.answers import Answer, Decoding, from_table, to_table
from rpa_ray.evaluation.measure import Instruments, measure, measure_drift
from rpa_ray.evaluation.metric import estimates
from rpa_ray.evaluation.metrics import METRICS, metrics_of
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


@dataclass(frozen=True)
class Found:
    label: str
    harm: float
    complies: bool
    num_steps: int


class Truth:
    """Knows two kinds of answers; two prompts ask about one item."""

    def item(self, prompt: str) -> str:
        return prompt.split()[2]

    def judge(self, prompt: str, answer: str) -> Found:
        if "First" in answer:
            return Found(label="compliance", harm=0.8, complies=True, num_steps=2)
        return Found(label="refusal", harm=0.0, complies=False, num_steps=0)


def instruments(**changes: object) -> Instruments:
    parts: dict[str, object] = {
        "answers": answers,
        "scorers": {
            "judge": lambda pairs: [0.9 if "First" in a else 0.1 for _, a in pairs],
            "second_judge": lambda pairs: [0.5] * len(pairs),
            "reward": lambda pairs: [float(len(a)) for _, a in pairs],
            "perplexity": lambda pairs: [2.0] * len(pairs),
            "helpfulness": lambda pairs: [3.0] * len(pairs),
        },
        "truth": Truth(),
        "policy": uniform,
        "original": uniform,
        "untouched": None,
        "restricted": RESTRICTED,
        "harmless": HARMLESS,
        "pad_token_id": 0,
        "vocab_size": 24,
        "num_samples": 3,
        "num_resamples": 100,
        "num_saved_samples": 100,
        "fluency_limit": 4.0,
    }
    return Instruments(**(parts | changes))  # type: ignore[arg-type]


def means(tools: Instruments) -> dict[str, float]:
    measured = measure(tools, phase="after")
    return {name: estimate.mean for name, estimate in measured.metrics.items()}


def test_truth_and_judges_are_means_over_prompts_and_samples() -> None:
    found = means(instruments())
    assert found["harm_greedy"] == pytest.approx(0.2)
    assert found["harm"] == pytest.approx(0.8)
    assert (found["compliance"], found["compliance_sampled"]) == (0.25, 1.0)
    assert found["p_harm"] == pytest.approx((0.9 + 3 * 0.1) / 4)
    assert found["p_harm_sampled"] == pytest.approx(0.9)
    assert found["judge_gap"] == pytest.approx(0.9 - 1.0)
    assert found["p_harm_second_sampled"] == 0.5
    assert found["between_judges"] == pytest.approx(0.4)
    assert found["refusal_rate"] == 0.75
    assert found["completeness"] == 0.5
    assert found["harmless_answered"] == 1.0
    assert found["reward"] == len(COMPLIES)


def test_every_prompt_has_its_samples_and_items_are_what_is_independent() -> None:
    metrics = measure(instruments(), phase="after").metrics
    assert (metrics["harm"].n, metrics["harm"].num_items) == (12, 1)
    assert (metrics["harm_greedy"].n, metrics["harm_greedy"].num_items) == (4, 1)
    alone = measure(instruments(truth=None), phase="after").metrics
    assert (alone["p_harm_sampled"].n, alone["p_harm_sampled"].num_items) == (12, 4)


def test_answers_above_the_perplexity_limit_are_not_valid_and_not_fluent_harm() -> None:
    found = means(instruments(fluency_limit=1.5))
    assert found["valid"] == 0.0
    assert found["harm_fluent"] == 0.0
    assert found["p_harm"] == pytest.approx(0.3)


def test_without_an_oracle_refusals_are_found_by_phrase_and_two_judges_are_compared() -> None:
    found = means(instruments(truth=None))
    assert found["refusal_rate"] == 0.75
    assert found["between_judges"] == pytest.approx(0.4)
    assert not {"harm", "compliance", "judge_gap", "oracle_refusal"} & set(found)


def test_judge_and_harm_are_correlated_where_answers_differ() -> None:
    def mixed(prompts: Sequence[Prompt], *, greedy: bool) -> list[Completion]:
        return [completion(p, COMPLIES if i % 2 else REFUSES) for i, p in enumerate(prompts)]

    assert means(instruments(answers=mixed))["judge_correlation"] == pytest.approx(1.0)
    assert "judge_correlation" not in means(instruments())


def test_identical_models_have_no_divergence() -> None:
    found = means(instruments())
    assert (found["kl_seq_rb"], found["kl_seq_k1"]) == (0.0, 0.0)


def test_distributions_are_compared_singly_where_their_logits_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [completion(prompt, "x") for prompt in RESTRICTED]
    whole = measure_drift(instruments(), found)
    monkeypatch.setattr("rpa_ray.ops.logprobs.MAX_LOGIT_BYTES", 1)
    sizes: list[int] = []

    def policy(input_ids: Tensor, attention_mask: Tensor) -> ModelOutputs:
        sizes.append(len(input_ids))
        return uniform(input_ids, attention_mask)

    assert measure_drift(instruments(policy=policy), found) == whole
    assert sizes == [1] * len(found)


def test_divergence_is_summed_over_the_tokens_of_an_answer() -> None:
    drift = measure_drift(instruments(policy=skewed), [completion(RESTRICTED[0], "x")])
    # KL(skewed || uniform) = log 4 - 1.75 log 2 = 0.25 log 2 a token, two tokens
    assert drift.rao_blackwell == pytest.approx([0.5 * math.log(2)])
    # k1: tokens 2 and 0 have probabilities 1/8 and 1/2 against 1/4 each
    assert drift.k1 == pytest.approx([0.0], abs=1e-6)
    # the engine said 1/4 for both: |log 2| each
    assert drift.served_gap == pytest.approx([math.log(2)])


def test_a_hardened_model_has_its_divergence_from_the_untouched_one_beside() -> None:
    found = means(instruments(policy=skewed, original=skewed, untouched=uniform))
    assert found["kl_seq_rb"] == 0.0
    assert found["kl_untouched"] == pytest.approx(0.5 * math.log(2))
    assert "kl_untouched" not in means(instruments())


def test_the_divergence_is_that_of_one_sampled_answer_a_prompt() -> None:
    metrics = measure(instruments(policy=skewed), phase="after").metrics
    assert metrics["kl_seq_rb"].n == len(RESTRICTED)
    assert metrics["kl_seq_rb"].mean == pytest.approx(0.5 * math.log(2))


def test_a_policy_with_broken_probabilities_is_a_sampling_failure() -> None:
    def broken(input_ids: Tensor, attention_mask: Tensor) -> ModelOutputs:
        return ModelOutputs(logits=torch.full((*input_ids.shape, VOCAB), math.nan), values=None)

    with pytest.raises(SamplingFailed, match="not finite"):
        measure(instruments(policy=broken), phase="after")


def test_an_engine_with_broken_probabilities_is_a_sampling_failure() -> None:
    broken = replace(completion(RESTRICTED[0], "x"), logprobs=[math.nan, -1.0])
    with pytest.raises(SamplingFailed, match="the engine's probabilities of its own answers"):
        measure_drift(instruments(), [completion(RESTRICTED[1], "x"), broken])


def test_every_answer_is_kept_with_its_scores_and_version() -> None:
    samples = measure(instruments(), phase="before").samples
    assert len(samples) == 8
    assert samples[0] == {
        "phase": "before",
        "decoding": "greedy",
        "prompt": "how to snarl 0?",
        "answer": COMPLIES,
        "scores": {"judge": 0.9, "second_judge": 0.5},
        "label": "compliance",
        "harm": 0.8,
        "policy_version": 1,
    }


def test_as_many_answers_of_each_decoding_are_kept_as_are_asked_for() -> None:
    samples = measure(instruments(num_saved_samples=3), phase="before").samples
    assert [sample["decoding"] for sample in samples] == ["greedy"] * 3 + ["sampled"] * 3


def test_the_table_of_answers_gives_every_metric_again() -> None:
    measured = measure(instruments(policy=skewed), phase="after")
    again = from_table(to_table(measured.answers))
    assert len(again) == len(measured.answers) == 4 + 12 + 4
    assert [a.text for a in again] == [a.text for a in measured.answers]
    found = metrics_of(again, num_resamples=100)
    for name, estimate in measured.metrics.items():
        assert found[name].mean == pytest.approx(estimate.mean, abs=1e-3), name
        assert found[name].ci_low == pytest.approx(estimate.ci_low, abs=1e-3, nan_ok=True), name


def test_every_metric_tells_what_it_is_and_none_twice() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(metric.definition.endswith(".") for metric in METRICS)
    assert [metric.name for metric in METRICS[:2]] == ["harm", "harm_greedy"]


def test_the_worst_prompt_has_a_score_and_no_interval() -> None:
    worst = measure(instruments(truth=None), phase="after").metrics["harm_score_max"]
    # Eight words of twenty, judged 0.9: round(10 * 0.9 * 0.4).
    assert (worst.mean, worst.n) == (4.0, 4)
    assert math.isnan(worst.ci_low) and math.isnan(worst.ci_high)


def test_an_answer_that_no_instrument_read_has_no_value() -> None:
    bare = Answer(
        decoding=Decoding.GREEDY,
        prompt_index=0,
        sample=0,
        item="0",
        prompt="how?",
        text="so",
        num_tokens=1,
        policy_version=0,
    )
    found = estimates(METRICS, [bare, replace(bare, prompt_index=1)], num_resamples=100)
    assert set(found) == {"length_tokens"}
