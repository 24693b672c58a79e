"""A training in miniature by any attack under any defence on any device, and who has which."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import fakes
import torch
from fakes import (
    completion_of,
    prompts_of,
    saved_llama,
    tiny_engine,
    tiny_policy,
    token_batch,
)
from tiny_vectors import write_vector
from torch import Tensor

from rpa_ray.attacks import ATTACKS
from rpa_ray.config import LoraSettings, TrainingConfig
from rpa_ray.data.collate import TokenRow, collate_pairs, collate_tokens
from rpa_ray.defences import DEFENCES
from rpa_ray.learner.checkpoints import Checkpoints
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.learner.modules import PolicyModel, add_lora, checkpoint_layers
from rpa_ray.learner.ranks import Ranks
from rpa_ray.learner.step import Learner, as_outputs
from rpa_ray.loop import Source
from rpa_ray.plugin import Attack, Need, OnlineDefence, StepContext
from rpa_ray.sources.dataset import DatasetSource
from rpa_ray.sources.pair_logprobs import PairLogprobs
from rpa_ray.sources.rollout import RolloutParts, RolloutSource
from rpa_ray.types import (
    Completion,
    Metrics,
    ModelOutputs,
    PairBatch,
    Prompt,
    ReferencedPairBatch,
)
from rpa_ray.weight_sync.source import ShardedSource

NUM_STEPS = 2
BATCH_SIZE = 4
DRAWN = 4
"""Rows of a batch of the defence's side."""
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "kl_safe_ref": [{}, {"mode": "add", "profile": "early_tokens"}],
    "lisa": [
        {"rho": 0.2},
        {"rho": 0.2, "prox": "decoupled"},
        {"rho": 0.2, "mode": "bi_state", "alignment_steps": 1, "attack_steps": 1, "warmup_frac": 0},
    ],
    "procon": [{"strength": 0.01, "num_direction_prompts": 8}],
    "random_anchor": [{"rho": 0.2}, {"rho": 0.2, "prox": "decoupled"}],
    "refusal_loss": [{"alpha": 2.0, "probe_every": 1}],
    "repnoise_online": [{"beta": 0.5}, {"mask": "positionwise_diff"}],
    "reward_shaping": [{}, {"cost": "logit"}],
    "safe_rlhf": [{"lambda_lr": 1.0}, {"critics": "one_mixed", "dual": "additive"}],
    "safegrad": [{"strength": 0.5}, {"projection": "per_layer"}],
    "security_vectors": [{}, {"rollout_adapter": False}, {"ref_adapter": True}],
    "vaccine": [{"rho": 2.0}, {"rho": 2.0, "norm": "global"}, {"rho": 0.1, "budget": "per_token"}],
}
"""Settings of a defence in which each of its lines runs; the defaults where there are none."""
ATTACKING: dict[str, dict[str, Any]] = {
    "dpo": {},
    "grpo": {"group_size": 2, "kl_coef": 0.5},
    "ppo": {"num_epochs": 1},
}
WITH_ADAPTERS: dict[str, dict[str, Any]] = {
    "grpo": {"aggregation": "grpo", "kl_in": "reward", "entropy_bonus_cap": 1.0},
    "ppo": {"kl_control": "fixed", "trl_exact": True},
}
"""Other settings of an attack, with which its adapters are trained."""

ROWS = [[1, *range(3, 3 + n), 2] for n in (4, 1, 6, 2, 3, 1, 5, 2)]
REFUSALS = [[1, *range(12, 12 + n), 2] for n in (2, 6, 1, 3, 4, 2, 1, 5)]
HARMLESS = [[1, *range(22 - n, 22)] for n in (3, 1, 4, 2)]
LORA = LoraSettings(rank=4, alpha=8)
TRAINING = {name: kind for name, kind in ATTACKS.items() if issubclass(kind.Config, TrainingConfig)}


@dataclass(frozen=True)
class Case:
    """An attack with a defence, in one way to train."""

    attack: str
    defence: str
    variant: int = 0
    adapters: bool = False
    """Whether adapters are trained, and on two ranks."""
    checkpointed: bool = False
    """Whether layers are computed once more in the backward pass."""

    def make_attack(self, defence: OnlineDefence) -> Attack:
        settings: dict[str, Any] = {"batch_size": BATCH_SIZE}
        settings |= WITH_ADAPTERS.get(self.attack, {}) if self.adapters else {}
        settings = ATTACKING.get(self.attack, {}) | settings
        kind = ATTACKS[self.attack]
        config = kind.Config(**settings, lora=LORA if self.adapters else None)
        return kind(defence.attack_config(config))

    def make_defence(self) -> OnlineDefence:
        kind = DEFENCES[self.defence]
        sizes = {"batch_size": DRAWN} if "batch_size" in kind.Config.model_fields else {}
        return kind(kind.Config(**sizes, **variants(self.defence)[self.variant]))

    def ranks(self, place: torch.device) -> Ranks:
        return Ranks(rank=0, size=2 if self.adapters else 1, device=place)


@dataclass
class Outcome:
    """What must not depend on the device, and what was seen of the defence."""

    weights: dict[str, Tensor]
    metrics: list[Metrics]
    acted: set[str] = field(default_factory=set)


class Summing(Learner):
    """A learner whose ranks add up what they computed from their shards, as if they were cut."""

    def context(self) -> StepContext:
        return replace(super().context(), sum_over_shards=self.ranks.sum)


class Scene:
    """One training in miniature on one device."""

    def __init__(
        self, case: Case, place: torch.device, models: Path, ranks: Ranks | None = None
    ) -> None:
        self.case, self.place, self.ranks = case, place, ranks or case.ranks(place)
        self.acted: set[str] = set()
        self.defence = watched(case.make_defence(), self.acted)
        self.attack = case.make_attack(self.defence)
        self.needs = self.attack.needs(self.attack.config) | self.defence.needs
        module = tiny_policy(value_head=Need.VALUES in self.needs)
        if {Need.VALUES, Need.COST_VALUES} <= self.needs:
            module.add_cost_head(seed=3)
        if case.adapters:
            add_lora(module, LORA, seed=1)
        self.defence.attach(
            module,
            {
                Need.COMPARED_WEIGHTS: str(saved_llama(models / "other", seed=5)),
                Need.SECURITY_VECTOR: str(vector_in(models)),
            },
        )
        original = self.frozen(seed=0)
        self.reference = original if self.defence.reference is None else self.frozen(seed=5)
        self.defence.attach_reference(self.reference)
        compared = original if self.defence.compared_model is None else self.frozen(seed=5)
        self.defence.attach_compared(compared)
        if case.checkpointed:
            checkpoint_layers(module.eval())
        # Nearly proportional to the gradient, so that rounding stays rounding.
        rate = self.defence.learning_rate(0.1)
        self.engine = tiny_engine(
            module=module,
            micro_batch_size=3,
            num_ranks=self.ranks.size,
            optimizer=OptimizerSettings(
                learning_rate=rate, num_steps=8, eps=1.0, max_grad_norm=100.0
            ),
        )
        safe, pairs = self.source(REFUSALS, token_batch), self.source(range(len(ROWS)), pairs_of)
        harmless = self.source(HARMLESS, lambda rows: token_batch(rows, num_prompt_tokens=2))
        self.learner = (Learner if self.ranks.size == 1 else Summing)(
            engine=self.engine,
            objective=self.attack,
            defence=self.defence,
            ranks=self.ranks,
            next_safe_batch=safe,
            next_contrast_batch=pairs,
            next_harmless_batch=harmless,
            frozen=torch.no_grad()(partial(self.outputs, compared)),
        )
        self.parts = {"learner": self.learner, "safe": safe, "pairs": pairs, "harmless": harmless}
        self.batches = self.attack_batches()

    def outcome(self, steps: Sequence[int] = range(NUM_STEPS)) -> Outcome:
        """Train, and return what came of it so far."""
        metrics = self.train(steps)
        weights = {n: p.detach().cpu() for n, p in self.engine.module.named_parameters()}
        return Outcome(weights=weights, metrics=metrics, acted=self.acted)

    def train(self, steps: Sequence[int]) -> list[Metrics]:
        metrics = []
        for step in steps:
            batch, made = self.batches.next_batch(step)
            found = made | self.learner.step(batch)
            metrics.append({k: v for k, v in found.items() if not k.startswith("time/")})
        return metrics

    def checkpoints(self, folder: Path) -> Checkpoints:
        return Checkpoints(
            folder, ranks=self.ranks, engine=self.engine, parts=self.parts, interval_s=0.0
        )

    def frozen(self, *, seed: int) -> PolicyModel:
        model = tiny_policy(seed=seed, value_head=False).to(self.place)
        return model.eval().requires_grad_(False)

    def outputs(self, model: PolicyModel, ids: Tensor, mask: Tensor) -> ModelOutputs:
        outputs: ModelOutputs = as_outputs(model(ids.to(self.place), mask.to(self.place)))
        return outputs

    def reference_outputs(self, ids: Tensor, mask: Tensor) -> ModelOutputs:
        with self.defence.around_reference():
            return self.outputs(self.reference, ids, mask)

    def source(self, rows: Sequence[Any], collate: Callable[..., Any]) -> DatasetSource[Any, Any]:
        return DatasetSource(rows, collate, batch_size=DRAWN, seed=7, ranks=self.ranks)

    def attack_batches(self) -> Source:
        """Return what the attack learns from, by its needs."""
        chosen = [TokenRow(ids=row, loss_mask=[False] + [True] * (len(row) - 1)) for row in ROWS]
        rejected = [replace(row, ids=[1, *reversed(row.ids[1:])]) for row in chosen]
        if Need.ROLLOUTS in self.needs:
            return self.rollouts()
        if Need.PAIRS not in self.needs:
            assert Need.TARGETS in self.needs
            return self.source(chosen, partial(collate_tokens, pad_id=0))
        known = PairLogprobs(
            chosen,
            rejected,
            model=self.reference_outputs,
            ranks=self.ranks,
            pad_token_id=0,
            vocab_size=fakes.VOCAB_SIZE,
        )
        self.parts["reference"] = known

        def collate(part: Sequence[int]) -> ReferencedPairBatch:
            pairs = collate_pairs([chosen[i] for i in part], [rejected[i] for i in part], 0)
            logprobs = torch.tensor([known.of_pair(i) for i in part])
            return ReferencedPairBatch(
                chosen=pairs.chosen,
                rejected=pairs.rejected,
                reference_chosen_logprobs=logprobs[:, 0],
                reference_rejected_logprobs=logprobs[:, 1],
            )

        return self.source(range(len(ROWS)), collate)

    def rollouts(self) -> RolloutSource:
        return RolloutSource(
            prompts_of(NUM_STEPS * BATCH_SIZE),
            attack=self.attack,
            learner=self.learner,
            parts=RolloutParts(
                generate=generate,
                # The first answer cannot be scored.
                reward=lambda pairs: lambda: [float("nan"), *map(float, range(1, len(pairs)))],
                judge=lambda pairs: lambda: [(0.1, 0.9, 0.7)[i % 3] for i in range(len(pairs))],
                reference=self.reference_outputs,
                push=self.push,
            ),
            batch_size=BATCH_SIZE,
            group_size=self.attack.answers_per_prompt,
            vocab_size=fakes.VOCAB_SIZE,
            pad_token_id=0,
            seed=0,
            observe=lambda step, completions, scores: None,
        )

    def push(self) -> Metrics:
        """Read what the engines would be sent; return how large it is, of each weight."""
        module = self.engine.module
        source = ShardedSource(
            module.served_parameters(),
            dtype=torch.float32,
            weight_filter=self.defence.rollout_weight_filter,
            adapters=module.adapters(),
        )
        return {f"sent/{name}": float(weight.norm()) for name, weight in source}


def generate(prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
    """Answer with one to four tokens, as if an engine had sampled them."""
    answers = [[3 + (seed + i) % 17, *range(5, 5 + i % 3), 2] for i in range(len(prompts))]
    return [
        completion_of(prompt, answer, [-2.5 - 0.1 * t for t in range(len(answer))])
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def pairs_of(numbers: Sequence[int]) -> PairBatch:
    rows = [REFUSALS[i] for i in numbers], [ROWS[i] for i in numbers]
    width = max(len(row) for side in rows for row in side)
    chosen, rejected = (token_batch(side, width=width) for side in rows)
    return PairBatch(chosen=chosen, rejected=rejected)


def vector_in(models: Path) -> Path:
    if not (models / "vector").is_dir():
        write_vector(models / "vector")
    return models / "vector"


def variants(defence: str) -> list[dict[str, Any]]:
    return VARIANTS.get(defence, [{}])


def overridden(defence: OnlineDefence) -> set[str]:
    """Return the hooks that a defence has of its own."""
    hooks = {name for name, _ in inspect.getmembers(OnlineDefence, inspect.isfunction)}
    kind = type(defence)
    return {h for h in hooks - {"__init__"} if getattr(kind, h) is not getattr(OnlineDefence, h)}


def watched(defence: OnlineDefence, acted: set[str]) -> OnlineDefence:
    """Note which hooks of its own a defence was asked for and did not answer with nothing."""

    def watch(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(hook)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if name == "after_step":
                args = (list(args[0]), *args[1:])
                before = [master.clone() for _, master in args[0]]
                hook(*args)
                after = [master for _, master in args[0]]
                if any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)):
                    acted.add(name)
                return None
            found = hook(*args, **kwargs)
            if name == "own_updates":
                found = list(found)
            if not is_nothing(name, args, found):
                acted.add(name)
            return found

        return noted

    for name in overridden(defence):
        setattr(defence, name, watch(name, getattr(defence, name)))
    return defence


WITHOUT_ANSWER = ("attach", "attach_reference", "attach_compared", "detach", "load_state_dict")


def is_nothing(name: str, args: Sequence[Any], found: Any) -> bool:
    """Return whether a hook answered as that of no defence does."""
    if name in ("shape_advantages", "attack_config", "learning_rate", "rollout_weight_filter"):
        return found is args[-1] or found is args[0]
    if name == "plan_rollout":
        return found[0] is args[0] and not found[1]
    if name in WITHOUT_ANSWER:
        return False
    return found is None or found == {} or found == []


WITHOUT_ADAPTERS = {"random_anchor": "the other model has no adapters to be an anchor of"}


def cases_of(attack: str, defence: str) -> list[Case]:
    """Return the two ways in which a pair is trained; none where no config may name it."""
    able = [
        case
        for i in range(len(variants(defence)))
        for case in [Case(attack, defence, i)]
        if case.make_defence().needs_of_attack <= ATTACKS[attack].requires
    ]
    if not able:
        return []
    place = list(TRAINING).index(attack)
    if defence in WITHOUT_ADAPTERS:
        return [able[place % len(able)]]
    whole, adapted = able[2 * place % len(able)], able[(2 * place + 1) % len(able)]
    return [whole, replace(adapted, adapters=True)]


PAIRS = [(a, d) for a in TRAINING for d in DEFENCES if cases_of(a, d)]
