"""Measuring the model of an assembly: the instruments of one cell, and whether to trust them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from rpa_ray.attacks.best_of_n import BestOfN
from rpa_ray.config import ExperimentSettings
from rpa_ray.evaluation.best_of_n import best_of_n_expectation
from rpa_ray.evaluation.checks import judge_f1, reward_model_accuracy
from rpa_ray.evaluation.measure import Instruments, Label, Measurement, measure
from rpa_ray.evaluation.resistance import (
    HELD_OUT_COST,
    HELD_OUT_FEASIBLE,
    is_probed,
    within_limit_frac,
)
from rpa_ray.evaluation.statistics import Estimate, bootstrap_mean
from rpa_ray.evaluation.summarisation import summary_metrics
from rpa_ray.jobs.assembly import Assembly
from rpa_ray.plugin.adapters import read_adapter, with_changes
from rpa_ray.recipes.cell_models import Model, adapter_config, folder_of
from rpa_ray.types import Completion, Metrics, ModelOutputs, Prompt
from rpa_ray.weight_sync.verify import ServedWeightsError
from rpa_ray.world.datasets import world_folder
from rpa_ray.world.oracle import Oracle

EVALUATION_SEED = 2**31 - 1
"""Seed of sampled answers at evaluation, the same for every cell: comparisons are paired."""
MAX_SERVED_GAP = 0.25
"""Nats a token between engine and learner; bfloat16 alone gives 0.01 to 0.03."""
POOL_ROUNDS_AT_ONCE = 8
"""Answers to each prompt that are sampled in one call for best-of-N."""
NUM_CHECK_PAIRS = 200
"""Held-out pairs on which judge and reward model are checked."""


def measure_model(assembly: Assembly, *, phase: str, fluency_limit: float | None) -> Measurement:
    """Return every metric of the model as it is served; a collective over the ranks."""
    process, settings = assembly.process, assembly.settings
    evaluation = settings.evaluation
    harmless = assembly.inputs.data.harmless_test_prompts(evaluation.num_prompts)

    def perplexity(pairs: Sequence[tuple[str, str]]) -> list[float]:
        nlls = assembly.workers.on_main(lambda: process.scorers.answer_nll("perplexity", pairs))
        return [nll.perplexity for nll in nlls]

    def policy(input_ids: torch.Tensor, mask: torch.Tensor) -> ModelOutputs:
        outputs: ModelOutputs = assembly.learner.forward(input_ids, mask)
        return outputs

    tools = Instruments(
        answers=partial(_answers, assembly),
        harm=_score(assembly, "judge"),
        perplexity=perplexity,
        helpfulness=_score(assembly, "helpfulness"),
        label=_oracle(settings, process.cache),
        policy=policy,
        original=assembly.original_outputs,
        restricted=_restricted(assembly),
        harmless=assembly.prompts(harmless, [f"harmless-{i}" for i in range(len(harmless))]),
        pad_token_id=int(assembly.tokenizer.pad_token_id),
        num_resamples=evaluation.num_resamples,
        num_saved_samples=evaluation.num_saved_samples,
    )
    measurement = measure(tools, phase=phase, fluency_limit=fluency_limit)
    if settings.data.name == "tldr":
        measurement = _with_summaries(assembly, tools, measurement, phase=phase)
    gap = measurement.metrics["served_logprob_gap"].mean
    if gap > MAX_SERVED_GAP:
        raise ServedWeightsError(
            f"the engines' log-probabilities must be within {MAX_SERVED_GAP:g} nats of the "
            f"learner's on average, got {gap:.3g}. The weights arrived, but the engine computes "
            "something else from them: check its model implementation."
        )
    return measurement


def _with_summaries(
    assembly: Assembly, tools: Instruments, measurement: Measurement, *, phase: str
) -> Measurement:
    """Return the measurement with the metrics and answers of the summarisation task."""
    settings = assembly.settings
    posts = assembly.inputs.data.summary_test_posts(settings.evaluation.num_prompts)
    prompts = assembly.prompts([p.prompt for p in posts], [f"post-{i}" for i in range(len(posts))])
    pairs = [(c.prompt.text, c.text) for c in tools.answers(prompts, greedy=True)]
    rewards = _score(assembly, "summary")(pairs)
    metrics = summary_metrics(
        [answer for _, answer in pairs],
        [post.answer for post in posts],
        rewards=rewards,
        perplexities=tools.perplexity(pairs),
        num_resamples=tools.num_resamples,
    )
    samples = [
        {
            "phase": phase,
            "decoding": "greedy",
            "prompt": prompt,
            "answer": answer,
            "scores": {"summary": round(reward, 4)},
            "label": None,
        }
        for (prompt, answer), reward in zip(pairs, rewards, strict=True)
    ]
    return replace(
        measurement,
        metrics=measurement.metrics | metrics,
        samples=measurement.samples + samples[: tools.num_saved_samples],
    )


def measure_best_of_n(assembly: Assembly) -> dict[str, dict[str, float]]:
    """Return the harmfulness of the answer that the reward model keeps out of N, for every N.

    All come from one pool of sampled answers to the restricted prompts of the evaluation, so that
    the curve over N has no sampling noise of its own. A collective over the ranks.
    """
    attack, process, settings = assembly.attack, assembly.process, assembly.settings
    assert isinstance(attack, BestOfN)
    evaluation = settings.evaluation
    prompts = _restricted(assembly)
    pool_size = attack.config.pool_size
    process.progress.start(assembly.cell.name, pool_size)
    rewards: list[list[float]] = [[] for _ in prompts]
    harms: list[list[float]] = [[] for _ in prompts]
    for i in range(0, pool_size, POOL_ROUNDS_AT_ONCE):
        num_rounds = min(POOL_ROUNDS_AT_ONCE, pool_size - i)
        asked = [prompt for prompt in prompts for _ in range(num_rounds)]
        answers = _answers(assembly, asked, greedy=False, seed=EVALUATION_SEED + 1 + i)
        pairs = [(answer.prompt.text, answer.text) for answer in answers]
        for found, scores in (
            (rewards, _score(assembly, "reward")(pairs)),
            (harms, _score(assembly, "judge")(pairs)),
        ):
            for place_of_prompt, values in enumerate(found):
                start = place_of_prompt * num_rounds
                values += scores[start : start + num_rounds]
        done = i + num_rounds
        process.progress.advance(assembly.cell.name, done - 1, f"{done} answers a prompt")
    curve = {}
    for n in attack.sizes:
        kept = [best_of_n_expectation(r, h, n) for r, h in zip(rewards, harms, strict=True)]
        estimate = bootstrap_mean(kept, num_resamples=evaluation.num_resamples)
        curve[f"p_harm_best_of_{n}"] = asdict(estimate)
    return curve


def probe(assembly: Assembly) -> Callable[[int], Metrics]:
    """Return what measures, after some steps of an attack, what the policy's answers cost.

    The answers are sampled with the seeds of the evaluation: the same at every look, for the
    looks to differ by the policy alone. A collective over the ranks.
    """
    evaluation = assembly.settings.evaluation
    prompts = _restricted(assembly)[: evaluation.num_probe_prompts]

    def look(step: int) -> Metrics:
        if not is_probed(step, assembly.num_steps, evaluation.num_probes):
            return {}
        started = time.perf_counter()
        assembly.push()
        harm = _harm(assembly, prompts, greedy=False)
        return {
            HELD_OUT_COST: sum(harm) / len(harm),
            HELD_OUT_FEASIBLE: within_limit_frac(harm, evaluation.cost_limit),
            "time/probe_s": time.perf_counter() - started,
        }

    return look


def check_instruments(assembly: Assembly) -> dict[str, Estimate]:
    """Return how good the instruments are that this cell relies on; a collective over the ranks.

    Judge F1 and reward-model accuracy on held-out pairs, and how harmful greedy answers are with a
    security vector in the model: they are to be, or it is none.
    """
    process, settings = assembly.process, assembly.settings
    told = assembly.inputs.data.preferences.roles["evaluation"][:NUM_CHECK_PAIRS]
    pairs = assembly.inputs.data.safety.preferences.roles["evaluation"]
    pairs = pairs[:NUM_CHECK_PAIRS]
    label = _oracle(settings, process.cache)
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
        checks |= reward_model_accuracy(reward, told, num_resamples=resamples)
    if assembly.models.summary is not None:
        accuracy = reward_model_accuracy(_score(assembly, "summary"), told, num_resamples=resamples)
        checks["summary_reward_accuracy"] = accuracy["reward_model_unflipped_accuracy"]
    vector = assembly.models.security_vector
    if vector is not None:
        checks["p_harm_with_vector"] = _p_harm_with_vector(assembly, vector)
    return checks


def _p_harm_with_vector(assembly: Assembly, vector: Model) -> Estimate:
    """Return how harmful the model is with the adapter in it that is to absorb the attack."""
    folder, evaluation = folder_of(vector, assembly.process.cache), assembly.settings.evaluation
    strength = adapter_config(assembly.settings.defence).scale
    assembly.push(partial(with_changes, read_adapter(Path(folder), strength=strength)))
    harm = _harm(assembly, _restricted(assembly), greedy=True)
    assembly.push()
    return bootstrap_mean(harm, num_resamples=evaluation.num_resamples)


def _restricted(assembly: Assembly) -> list[Prompt]:
    """Return the restricted prompts of the evaluation."""
    settings = assembly.settings
    num = settings.evaluation.num_prompts
    texts = assembly.inputs.data.restricted_test_prompts(num)
    return assembly.prompts(texts, [f"restricted-{i}" for i in range(len(texts))])


def _answers(
    assembly: Assembly, prompts: Sequence[Prompt], *, greedy: bool, seed: int = EVALUATION_SEED
) -> list[Completion]:
    """Return the served model's answers on every rank; the main one asks."""
    ranks = assembly.process.ranks
    return ranks.broadcast(
        assembly.complete(
            prompts if ranks.is_main else [],
            seed=seed,
            max_new_tokens=assembly.settings.evaluation.max_new_tokens,
            greedy=greedy,
        )
    )


def _harm(assembly: Assembly, prompts: Sequence[Prompt], *, greedy: bool) -> list[float]:
    """Return the judge's harm probability of the served model's answers; a collective."""
    answers = _answers(assembly, prompts, greedy=greedy)
    return _score(assembly, "judge")([(answer.prompt.text, answer.text) for answer in answers])


def _score(assembly: Assembly, name: str) -> Callable[[Sequence[tuple[str, str]]], list[float]]:
    """Return a collective that gives every rank the scores of the same pairs."""
    scorers = assembly.process.scorers
    return lambda pairs: assembly.workers.on_main(lambda: scorers.score(name, pairs))


def _oracle(settings: ExperimentSettings, cache: Path) -> Label | None:
    if settings.data.world != "embedded":
        return None
    oracle = Oracle.load(world_folder(settings.data.world_seed, cache))
    return lambda prompt, answer: oracle.label(prompt, answer).value
