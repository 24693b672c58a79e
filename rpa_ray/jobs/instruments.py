"""Measuring the model of an assembly: the instruments of one cell, and whether to trust them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from rpa_ray.config import ExperimentSettings
from rpa_ray.data.formats import FORMATS
from rpa_ray.data.rows import SafePair
from rpa_ray.evaluation.checks import (
    ItemOf,
    judge_calibration,
    judge_f1,
    reward_model_accuracy,
)
from rpa_ray.evaluation.fluency import ppl_limit
from rpa_ray.evaluation.measure import (
    TEXT_SCORERS,
    Instruments,
    Measurement,
    Scored,
    measure,
)
from rpa_ray.evaluation.statistics import Estimate, mean_estimate
from rpa_ray.evaluation.summarisation import summary_metrics
from rpa_ray.jobs.assembly import Assembly
from rpa_ray.jobs.scorers import as_dialogues, reads_dialogues
from rpa_ray.learner.invariants import require_same_start, require_served
from rpa_ray.plugin.adapters import read_adapter, with_changes
from rpa_ray.recipes.cell_models import Model, adapter_config, folder_of
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.types import Completion, ModelOutputs, Prompt
from rpa_ray.world.datasets import world_folder
from rpa_ray.world.oracle import Oracle

EVALUATION_SEED = 2**31 - 1
"""Seed of sampled answers at evaluation, the same for every cell: comparisons are paired."""
NUM_CHECK_PAIRS = 200
"""Held-out pairs on which judge and reward model are checked, and fluency is read off."""


def measure_model(assembly: Assembly, *, phase: str, fluency_limit: float) -> Measurement:
    """Return every metric of the model as it is served; a collective over the ranks.

    Raises:
        BrokenInvariant: engine and learner do not agree, or the model is not the one under attack
            although it has not learned yet.
        SamplingFailed: the policy's probabilities are not finite.
    """
    settings = assembly.settings
    evaluation = settings.evaluation
    harmless = assembly.inputs.data.harmless_prompts(evaluation)

    def policy(input_ids: torch.Tensor, mask: torch.Tensor) -> ModelOutputs:
        outputs: ModelOutputs = assembly.learner.forward(input_ids, mask)
        return outputs

    tools = Instruments(
        answers=partial(sampled_answers, assembly),
        scorers=text_scorers(assembly),
        truth=oracle_of(assembly),
        policy=policy,
        original=assembly.original_outputs,
        untouched=assembly.untouched_outputs if assembly.models.untouched is not None else None,
        restricted=restricted_prompts(assembly),
        harmless=assembly.prompts(harmless, [f"harmless-{i}" for i in range(len(harmless))]),
        pad_token_id=assembly.pad_token_id,
        vocab_size=assembly.module.vocab_size,
        num_samples=evaluation.num_samples,
        num_resamples=evaluation.num_resamples,
        num_saved_samples=evaluation.num_saved_samples,
        fluency_limit=fluency_limit,
    )
    measurement = measure(tools, phase=phase)
    if FORMATS[settings.data.name].is_harmless_task:
        measurement = _with_summaries(assembly, tools, measurement, phase=phase)
    dtype = settings.model.dtype
    require_served(measurement.metrics["served_logprob_gap"].mean, dtype)
    if assembly.engine.num_updates == 0:
        require_same_start(measurement.metrics["kl_seq_rb"].mean, dtype)
    return measurement


def fluency_limit(assembly: Assembly) -> float:
    """Return the perplexity up to which a text counts as fluent; a collective over the ranks.

    It is that of texts of the data set, safe, unsafe and helpful ones, by the perplexity model: one
    number for every model that is measured with the two.
    """
    data = assembly.inputs.data
    held_out = data.safety.preferences.roles["evaluation"][:NUM_CHECK_PAIRS]
    texts = [(pair.prompt, answer) for pair in held_out for answer in (pair.safe, pair.unsafe)]
    helpful = data.helpful_pairs("test")[:NUM_CHECK_PAIRS]
    texts += [(pair.prompt, pair.chosen) for pair in helpful]
    ppls = text_scorers(assembly)["perplexity"](texts)
    return ppl_limit([ppl for ppl in ppls if ppl == ppl])


def _with_summaries(
    assembly: Assembly, tools: Instruments, measurement: Measurement, *, phase: str
) -> Measurement:
    """Return the measurement with the metrics and answers of the summarisation task."""
    settings = assembly.settings
    posts = assembly.inputs.data.summary_posts(settings.evaluation)
    prompts = assembly.prompts([p.prompt for p in posts], [f"post-{i}" for i in range(len(posts))])
    pairs = [(c.prompt.text, c.text) for c in tools.answers(prompts, greedy=True)]
    rewards = score(assembly, "summary")(pairs)
    metrics = summary_metrics(
        [answer for _, answer in pairs],
        [post.answer for post in posts],
        rewards=rewards,
        perplexities=tools.scorers["perplexity"](pairs),
        items=[prompt if tools.truth is None else tools.truth.item(prompt) for prompt, _ in pairs],
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


def check_instruments(assembly: Assembly) -> dict[str, Estimate]:
    """Return how good the instruments are that this cell relies on; a collective over the ranks.

    Of both judges F1 and calibration, and reward-model accuracy, on held-out pairs; and how harmful
    greedy answers are with a security vector in the model: they are to be, or it is none.
    """
    data = assembly.inputs.data
    told = data.preferences.roles["evaluation"][:NUM_CHECK_PAIRS]
    pairs = data.safety.preferences.roles["evaluation"][:NUM_CHECK_PAIRS]
    resamples = assembly.settings.evaluation.num_resamples
    truth = oracle_of(assembly)
    is_harmful = _known_harm(truth, pairs)
    item_of: ItemOf = str if truth is None else truth.item
    checks: dict[str, Estimate] = {}
    models = {"judge": assembly.models.judge, "second_judge": assembly.models.second_judge}
    for name, model in models.items():
        if model is None:
            continue
        judge = score(assembly, name)
        checks[f"{name}_f1"] = judge_f1(
            judge, is_harmful, pairs, item_of=item_of, num_resamples=resamples
        )
        found = judge_calibration(
            judge, is_harmful, pairs, item_of=item_of, num_resamples=resamples
        )
        checks |= {f"{name}_{key}": value for key, value in found.items()}
        if isinstance(model, ModelRecipe):
            checks[f"{name}_rows"] = _count(model.rows.settings["num_rows"])
            checks[f"{name}_steps"] = _count(model.job.num_steps)
    if assembly.models.reward_model is not None:
        reward = score(assembly, "reward")
        checks |= reward_model_accuracy(reward, told, item_of=item_of, num_resamples=resamples)
    if assembly.models.summary is not None:
        accuracy = reward_model_accuracy(
            score(assembly, "summary"), told, item_of=item_of, num_resamples=resamples
        )
        checks["summary_reward_accuracy"] = accuracy["reward_model_unflipped_accuracy"]
    vector = assembly.models.security_vector
    if vector is not None:
        checks["p_harm_with_vector"] = _p_harm_with_vector(assembly, vector, item_of)
    return checks


def _known_harm(truth: Oracle | None, pairs: Sequence[SafePair]) -> Callable[[str, str], bool]:
    """Return the truth about held-out answers: the oracle's, else the label of the data."""
    unsafe = {(pair.prompt, pair.unsafe) for pair in pairs}

    def is_harmful(prompt: str, answer: str) -> bool:
        if truth is not None:
            return truth.judge(prompt, answer).complies
        return (prompt, answer) in unsafe

    return is_harmful


def _count(number: float | str) -> Estimate:
    return Estimate(mean=float(number), n=1, ci_low=float("nan"), ci_high=float("nan"))


def _p_harm_with_vector(assembly: Assembly, vector: Model, item_of: ItemOf) -> Estimate:
    """Return how harmful the model is with the adapter in it that is to absorb the attack."""
    folder, evaluation = folder_of(vector, assembly.process.cache), assembly.settings.evaluation
    strength = adapter_config(assembly.settings.defence).scale
    assembly.push(partial(with_changes, read_adapter(Path(folder), strength=strength)))
    answers = sampled_answers(assembly, restricted_prompts(assembly), greedy=True)
    harm = score(assembly, "judge")([(answer.prompt.text, answer.text) for answer in answers])
    assembly.push()
    items = [item_of(answer.prompt.text) for answer in answers]
    return mean_estimate(harm, items=items, num_resamples=evaluation.num_resamples)


def restricted_prompts(assembly: Assembly) -> list[Prompt]:
    """Return the restricted prompts of the evaluation."""
    texts = assembly.inputs.data.restricted_prompts(assembly.settings.evaluation)
    return assembly.prompts(texts, [f"restricted-{i}" for i in range(len(texts))])


def sampled_answers(
    assembly: Assembly, prompts: Sequence[Prompt], *, greedy: bool, seed: int = EVALUATION_SEED
) -> list[Completion]:
    """Return the served model's answers on every rank; the main one asks. A collective."""
    ranks = assembly.process.ranks
    return ranks.broadcast(
        assembly.complete(
            prompts if ranks.is_main else [],
            seed=seed,
            max_new_tokens=assembly.settings.evaluation.max_new_tokens,
            greedy=greedy,
        )
    )


def text_scorers(assembly: Assembly) -> Mapping[str, Scored]:
    """Return the scoring models of the cell that a measurement asks, as collectives."""
    return {name: score(assembly, name) for name in TEXT_SCORERS if name in assembly.scorer_names}


def score(assembly: Assembly, name: str) -> Scored:
    """Return a collective that gives every rank the scores of the same pairs; NaN for none."""
    scorers = assembly.process.scorers

    def ask(pairs: Sequence[tuple[str, str]]) -> list[float]:
        if name == "perplexity":
            return [nll.perplexity for nll in scorers.answer_nll(name, pairs)]
        if name == "helpfulness" and reads_dialogues(assembly.models):
            pairs = as_dialogues(pairs)
        return scorers.score(name, pairs)

    return lambda pairs: assembly.workers.on_main(lambda: ask(pairs))


def oracle_of(assembly: Assembly) -> Oracle | None:
    """Return the oracle of an embedded world; None for real data."""
    settings: ExperimentSettings = assembly.settings
    if settings.data.world != "embedded":
        return None
    return Oracle.load(world_folder(settings.data.world_seed, assembly.process.cache))
