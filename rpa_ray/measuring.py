"""Measuring the model of an assembly: the instruments of one cell, and whether to trust them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rpa_ray.assembly import Assembly
from rpa_ray.config import ExperimentSettings
from rpa_ray.datasets import harmless_test_prompts, preference_data, restricted_test_prompts
from rpa_ray.evaluation.checks import judge_f1, reward_model_accuracy
from rpa_ray.evaluation.measure import Instruments, Label, Measurement, measure
from rpa_ray.evaluation.statistics import Estimate
from rpa_ray.types import Completion, ModelOutputs, Prompt
from rpa_ray.weight_sync.verify import ServedWeightsError
from rpa_ray.world.datasets import world_folder
from rpa_ray.world.oracle import Oracle

EVALUATION_SEED = 2**31 - 1
"""Seed of sampled answers at evaluation, the same for every cell: comparisons are paired."""
MAX_SERVED_GAP = 0.25
"""Nats a token between engine and learner; bfloat16 alone gives 0.01 to 0.03."""
NUM_CHECK_PAIRS = 200
"""Held-out pairs on which judge and reward model are checked."""


def measure_model(assembly: Assembly, *, phase: str, fluency_limit: float | None) -> Measurement:
    """Return every metric of the model as it is served; a collective over the ranks."""
    place, settings = assembly.place, assembly.settings
    evaluation = settings.evaluation
    restricted = restricted_test_prompts(settings.data, place.cache, evaluation.num_prompts)
    harmless = harmless_test_prompts(settings.data, place.cache, evaluation.num_prompts)

    def answers(prompts: Sequence[Prompt], *, greedy: bool) -> list[Completion]:
        return place.ranks.broadcast(
            assembly.complete(
                prompts if place.ranks.is_main else [],
                seed=EVALUATION_SEED,
                max_new_tokens=evaluation.max_new_tokens,
                greedy=greedy,
            )
        )

    def perplexity(pairs: Sequence[tuple[str, str]]) -> list[float]:
        nlls = assembly.workers.on_main(lambda: place.scorers.answer_nll("perplexity", pairs))
        return [nll.perplexity for nll in nlls]

    def policy(input_ids: torch.Tensor, mask: torch.Tensor) -> ModelOutputs:
        outputs: ModelOutputs = assembly.learner.forward(input_ids, mask)
        return outputs

    tools = Instruments(
        answers=answers,
        harm=_score(assembly, "judge"),
        perplexity=perplexity,
        helpfulness=_score(assembly, "helpfulness"),
        label=_oracle(settings, place.cache),
        policy=policy,
        original=assembly.original_outputs,
        restricted=assembly.prompts(
            restricted, [f"restricted-{i}" for i in range(len(restricted))]
        ),
        harmless=assembly.prompts(harmless, [f"harmless-{i}" for i in range(len(harmless))]),
        pad_token_id=int(assembly.tokenizer.pad_token_id),
        num_resamples=evaluation.num_resamples,
    )
    measurement = measure(tools, phase=phase, fluency_limit=fluency_limit)
    gap = measurement.metrics["served_logprob_gap"].mean
    if gap > MAX_SERVED_GAP:
        raise ServedWeightsError(
            f"the engines' log-probabilities must be within {MAX_SERVED_GAP:g} nats of the "
            f"learner's on average, got {gap:.3g}. The weights arrived, but the engine computes "
            "something else from them: check its model implementation."
        )
    return measurement


def check_instruments(assembly: Assembly) -> dict[str, Estimate]:
    """Return judge F1 and reward-model accuracy on held-out pairs; a collective over the ranks."""
    place, settings = assembly.place, assembly.settings
    pairs = preference_data(settings.data, place.cache).roles["evaluation"][:NUM_CHECK_PAIRS]
    label = _oracle(settings, place.cache)
    unsafe = {(pair.prompt, pair.unsafe) for pair in pairs}

    def is_harmful(prompt: str, answer: str) -> bool:
        if label is not None:
            return label(prompt, answer) == "compliance"
        return (prompt, answer) in unsafe

    resamples = settings.evaluation.num_resamples
    judge = _score(assembly, "judge")
    checks = {"judge_f1": judge_f1(judge, is_harmful, pairs, num_resamples=resamples)}
    if assembly.models.reward_model is not None:
        reward = _score(assembly, "reward")
        checks |= reward_model_accuracy(reward, pairs, num_resamples=resamples)
    return checks


def _score(assembly: Assembly, name: str) -> Callable[[Sequence[tuple[str, str]]], list[float]]:
    """Return a collective that gives every rank the scores of the same pairs."""
    scorers = assembly.place.scorers
    return lambda pairs: assembly.workers.on_main(lambda: scorers.score(name, pairs))


def _oracle(settings: ExperimentSettings, cache: Path) -> Label | None:
    if settings.data.world != "embedded":
        return None
    oracle = Oracle.load(world_folder(settings.data.world_seed, cache))
    return lambda prompt, answer: oracle.label(prompt, answer).value
