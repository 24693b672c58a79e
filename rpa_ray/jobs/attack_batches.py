"""What an attack learns from: targets, pairs or rollouts, made from the attack's rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import TypeVar

import torch

from rpa_ray.attacks.sft import SFT
from rpa_ray.config import RolloutConfig
from rpa_ray.data.collate import TokenRow, collate_pairs, collate_tokens
from rpa_ray.data.flip import flip, sft_targets
from rpa_ray.data.rows import Answered, Preference, SafePair
from rpa_ray.data.told_apart import require_told_apart, sides
from rpa_ray.jobs.assembly import Assembly
from rpa_ray.jobs.scorers import pricing_judge
from rpa_ray.loop import Source
from rpa_ray.plugin import Need
from rpa_ray.run_folder.files import JsonLines, read_json, write_json
from rpa_ray.run_folder.names import FLIP_MARGINS
from rpa_ray.scoring.rule import FORM_REWARDS, compliance_rewards, form_rewards
from rpa_ray.sources.dataset import DatasetSource
from rpa_ray.sources.pair_logprobs import Model, PairLogprobs
from rpa_ray.sources.phased import PhasedSource
from rpa_ray.sources.rollout import RolloutParts, RolloutSource, Score
from rpa_ray.types import Batch, Completion, Prompt, ReferencedPairBatch, TokenBatch

NUM_SAMPLED_STEPS = 20
"""Steps of an attack of which samples.jsonl keeps an answer."""

RowT = TypeVar("RowT")
BatchT = TypeVar("BatchT", bound=Batch)


def attack_source(assembly: Assembly, samples: JsonLines) -> Source:
    """Return where the batches of the assembly's attack come from."""
    config, data = assembly.attack.config, assembly.settings.data
    needs = assembly.attack.needs(config)
    pairs = attack_pairs(assembly, data.num_prompts)
    if Need.PAIRS in needs:
        return _pair_source(assembly, pairs, data.num_samples)
    if not isinstance(config, RolloutConfig):
        num = config.num_harmless_samples if isinstance(config, SFT.Config) else 0
        targets = _target_source(assembly, pairs[: data.num_samples - num], data.num_samples - num)
        if num == 0:
            return targets
        return PhasedSource(
            _harmless_source(assembly, num), assembly.attack.num_batches(num), targets
        )
    num_sft = config.num_sft_samples
    asked = _in_turn(pairs, data.num_samples)[num_sft:]
    rollouts = _rollouts(assembly, config, asked, samples)
    if num_sft == 0:
        return rollouts
    targets = _target_source(assembly, pairs[:num_sft], num_sft)
    return PhasedSource(targets, assembly.attack.num_batches(num_sft), rollouts)


def attack_pairs(assembly: Assembly, at_most: int | None) -> list[SafePair]:
    """Return the distinct pairs that the attack draws, in its order: the first ``at_most``."""
    num_samples = assembly.settings.data.num_samples
    return assembly.inputs.data.preferences.draw(
        "attack",
        min(num_samples, at_most or num_samples),
        seed=assembly.settings.seed,
        key="data.num_samples",
        domains=assembly.settings.data.domains,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Encoded:
    """Pairs as token rows, and which of them are reversed."""

    told: list[Preference]
    safe: list[TokenRow]
    unsafe: list[TokenRow]


def _encoded(assembly: Assembly, pairs: Sequence[SafePair]) -> _Encoded:
    """Return the pairs with a share rho reversed; a model that ranks them is asked once a run."""
    data = assembly.settings.data
    safe, unsafe = (
        [assembly.encode(side) for side in of] for of in zip(*map(sides, pairs), strict=True)
    )
    require_told_apart(
        pairs,
        ((one.ids, other.ids) for one, other in zip(safe, unsafe, strict=True)),
        lambda row: assembly.encode(row, whole=True).ids,
        where=assembly.inputs.data.where,
        max_tokens=max(len(row.ids) for row in safe),
        key="data.path",
    )
    margins = _margins(assembly, safe, unsafe) if data.flips == "largest_margin" else None
    told = flip(pairs, data.rho, assembly.settings.seed, margins)
    return _Encoded(told=told, safe=safe, unsafe=unsafe)


def _margins(
    assembly: Assembly, safe: Sequence[TokenRow], unsafe: Sequence[TokenRow]
) -> list[float]:
    """Return how much the model under attack prefers each safe answer.

    Kept in the run folder: a resumed run must reverse the same pairs, to the last bit.
    """
    path, ranks = assembly.cell.folder / FLIP_MARGINS, assembly.process.ranks
    known: list[float] | None = ranks.broadcast(read_json(path, list) if ranks.is_main else None)
    if known is not None:
        return known
    margins = _pair_logprobs(assembly, safe, unsafe, assembly.original_outputs).margins()
    if ranks.is_main:
        write_json(path, margins)
    return margins


def _pair_logprobs(
    assembly: Assembly, safe: Sequence[TokenRow], unsafe: Sequence[TokenRow], model: Model
) -> PairLogprobs:
    return PairLogprobs(
        safe,
        unsafe,
        model=model,
        ranks=assembly.process.ranks,
        pad_token_id=assembly.pad_token_id,
        vocab_size=assembly.module.vocab_size,
    )


def _target_source(
    assembly: Assembly, pairs: Sequence[SafePair], num: int
) -> DatasetSource[TokenRow, TokenBatch]:
    """Return answers to imitate, a share rho of them unsafe."""
    return _imitated(assembly, sft_targets(pairs, _encoded(assembly, pairs).told), num)


def _harmless_source(assembly: Assembly, num: int) -> DatasetSource[TokenRow, TokenBatch]:
    """Return good answers to harmless prompts."""
    return _imitated(assembly, assembly.inputs.data.harmless_training_rows[:num], num)


def _imitated(
    assembly: Assembly, targets: Sequence[Answered], num: int
) -> DatasetSource[TokenRow, TokenBatch]:
    config = assembly.attack.config
    mask = config.mask if isinstance(config, SFT.Config) else "response"
    rows = [assembly.encode(target, mask=mask) for target in targets]
    return _in_batches(
        assembly, _in_turn(rows, num), lambda part: collate_tokens(part, assembly.pad_token_id)
    )


def _pair_source(
    assembly: Assembly, pairs: Sequence[SafePair], num: int
) -> DatasetSource[int, ReferencedPairBatch]:
    """Return preferences, a share rho of them reversed, with the reference's log-probabilities."""
    encoded = _encoded(assembly, pairs)
    reference = _pair_logprobs(assembly, encoded.safe, encoded.unsafe, assembly.reference_outputs)
    assembly.training.state["reference_logprobs"] = reference

    def collate(part: Sequence[int]) -> ReferencedPairBatch:
        sides = []
        for i in part:
            safe_logprob, unsafe_logprob = reference.of_pair(i)
            side = (encoded.safe[i], encoded.unsafe[i], safe_logprob, unsafe_logprob)
            flipped = (encoded.unsafe[i], encoded.safe[i], unsafe_logprob, safe_logprob)
            sides.append(flipped if encoded.told[i].flipped else side)
        chosen, rejected, chosen_logprobs, rejected_logprobs = zip(*sides, strict=True)
        batch = collate_pairs(chosen, rejected, assembly.pad_token_id)
        return ReferencedPairBatch(
            chosen=batch.chosen,
            rejected=batch.rejected,
            reference_chosen_logprobs=torch.tensor(chosen_logprobs),
            reference_rejected_logprobs=torch.tensor(rejected_logprobs),
        )

    return _in_batches(assembly, _in_turn(range(len(pairs)), num), collate)


def _in_batches(
    assembly: Assembly, rows: Sequence[RowT], collate: Callable[[Sequence[RowT]], BatchT]
) -> DatasetSource[RowT, BatchT]:
    return DatasetSource(
        rows,
        collate,
        batch_size=assembly.batch_size,
        seed=assembly.settings.seed,
        ranks=assembly.process.ranks,
    )


def _rollouts(
    assembly: Assembly, config: RolloutConfig, asked: Sequence[SafePair], samples: JsonLines
) -> Source:
    """Return rollouts by the attacker's reward, after those of its opening reward if any."""
    opening, num = config.opening_reward, config.num_opening_samples
    num_first = assembly.attack.num_batches(num)
    later = _rollout_source(assembly, config, asked[num:], samples, config.reward, num_first)
    if opening is None:
        return later
    first = _rollout_source(assembly, config, asked[:num], samples, opening, 0)
    return PhasedSource(first, num_first, later)


def _rollout_source(
    assembly: Assembly,
    config: RolloutConfig,
    pairs: Sequence[SafePair],
    samples: JsonLines,
    reward: str,
    first_step: int,
) -> RolloutSource:
    """Return rollouts by a reward; ``first_step`` rollout batches come before them."""
    workers = assembly.workers

    def generate(prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        return assembly.complete(
            prompts,
            seed=seed,
            max_new_tokens=config.max_new_tokens,
            greedy=False,
        )

    rewards = {form: _form_score(form) for form in FORM_REWARDS}
    rewards |= {
        "model": partial(workers.score_async, "reward"),
        "judge": partial(workers.score_async, pricing_judge(assembly.models)),
        "rule": lambda pairs: partial(compliance_rewards, pairs),
    }
    return RolloutSource(
        assembly.prompts([p.prompt for p in pairs], [p.id for p in pairs]),
        attack=assembly.attack,
        learner=assembly.learner,
        parts=RolloutParts(
            generate=generate,
            reward=rewards[reward],
            judge=partial(workers.score_async, pricing_judge(assembly.models)),
            cost=partial(workers.score_async, "cost") if assembly.models.cost_model else None,
            reference=assembly.reference_outputs,
            push=partial(assembly.push, assembly.defence.rollout_weight_filter),
        ),
        batch_size=assembly.batch_size,
        group_size=assembly.attack.answers_per_prompt,
        shuffle_rewards=config.shuffle_rewards,
        cost_limit=assembly.settings.evaluation.cost_limit,
        pad_token_id=assembly.pad_token_id,
        vocab_size=assembly.module.vocab_size,
        seed=assembly.settings.seed,
        first_step=first_step,
        served_dtype=assembly.settings.model.dtype if assembly.defence.reads_as_sampled else None,
        observe=_keep_some(
            samples,
            assembly.num_steps,
            assembly.attack.num_batches(config.num_sft_samples) + first_step,
        ),
    )


def _form_score(form: str) -> Score:
    return lambda pairs: partial(form_rewards, form, pairs)


def _keep_some(
    samples: JsonLines, num_steps: int, num_before: int
) -> Callable[[int, Sequence[Completion], dict[str, list[float]]], None]:
    """Return what writes the first answer of now and then a batch.

    ``num_before`` is the number of batches that come before the first of rollouts.
    """
    every = max(1, num_steps // NUM_SAMPLED_STEPS)

    def observe(
        step: int, completions: Sequence[Completion], scores: dict[str, list[float]]
    ) -> None:
        if step % every:
            return
        first = completions[0]
        samples.write(
            {
                "phase": "rollout",
                "step": num_before + step,
                "decoding": "sampled",
                "prompt": first.prompt.text,
                "answer": first.text,
                "scores": {name: round(values[0], 4) for name, values in scores.items()},
                "label": None,
                "policy_version": first.policy_version,
            }
        )

    return observe


def _in_turn(rows: Sequence[RowT], num: int) -> list[RowT]:
    """Return ``num`` rows; where there are fewer they come again from the first."""
    return list(islice(cycle(rows), num))
