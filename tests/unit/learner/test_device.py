"""Every attack with every defence on a device that is not the CPU, to the values of the CPU.

Attacks and defences come from the tables. All pairs that a config may name run, each with the whole
model on one rank in micro-batches, and with adapters on two ranks. The variants of a defence take
turns over its attacks. An attack without training settings makes no step and has no pair. What the
device is, and what it cannot see, says ``pretended``.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from fakes import (
    completion_of,
    prompts_of,
    saved_llama,
    tiny_engine,
    tiny_policy,
    token_batch,
)
from pretended import CPU, MixedDevices, fetched, pretended, stand_in, two_ranks
from tiny_vectors import write_vector
from torch import Tensor

from rpa_ray.attacks import ATTACKS
from rpa_ray.attacks.sft import SFT
from rpa_ray.config import LoraSettings, TrainingConfig
from rpa_ray.data.collate import TokenRow, collate_pairs, collate_tokens
from rpa_ray.defences import DEFENCES
from rpa_ray.learner import checkpoints
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
    LossTerm,
    Metrics,
    ModelOutputs,
    PairBatch,
    Prompt,
    ReferencedPairBatch,
    TokenBatch,
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

    def __init__(self, case: Case, place: torch.device, models: Path) -> None:
        self.case, self.place, self.ranks = case, place, case.ranks(place)
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


@contextmanager
def placed(case: Case, on_device: bool) -> Iterator[torch.device]:
    """Have the engine of a case live on the device or on the CPU, beside another rank or alone."""
    with (
        pretended() if on_device else nullcontext(CPU) as place,
        stand_in(place),
        two_ranks() if case.adapters else nullcontext(),
    ):
        yield place


@cache
def outcome_of(case: Case, on_device: bool, models: Path) -> Outcome:
    with placed(case, on_device) as place:
        scene = Scene(case, place, models)
        outcome = scene.outcome()
        scene.defence.load_state_dict(scene.defence.state_dict())
        scene.defence.detach()
    return outcome


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def assert_same(here: Outcome, there: Outcome) -> None:
    torch.testing.assert_close(here.weights, there.weights, rtol=1e-4, atol=1e-5)
    assert len(here.metrics) == len(there.metrics)
    for one, other in zip(here.metrics, there.metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(("attack", "defence"), PAIRS)
def test_a_pair_trains_on_the_device_as_on_the_cpu(attack: str, defence: str, models: Path) -> None:
    for case in cases_of(attack, defence):
        assert_same(outcome_of(case, True, models), outcome_of(case, False, models))


@pytest.mark.parametrize(("attack", "defence"), PAIRS)
def test_a_pair_learns_the_same_with_layers_that_are_computed_again(
    attack: str, defence: str, models: Path
) -> None:
    for case in cases_of(attack, defence):
        again = outcome_of(replace(case, checkpointed=True), False, models)
        assert_same(again, outcome_of(case, False, models))


def test_every_attack_that_trains_and_every_defence_is_in_a_pair() -> None:
    assert {attack for attack, _ in PAIRS} == set(TRAINING)
    assert {defence for _, defence in PAIRS} == set(DEFENCES)
    for attack in ATTACKS.keys() - TRAINING.keys():
        assert ATTACKS[attack](ATTACKS[attack].Config()).num_batches(1000) == 0


@pytest.mark.parametrize("defence", VARIANTS)
def test_every_variant_of_a_defence_runs(defence: str) -> None:
    run = {case.variant for attack in TRAINING for case in cases_of(attack, defence)}
    assert run == set(range(len(VARIANTS[defence])))


@pytest.mark.parametrize(("attack", "defence"), [pair for pair in PAIRS if pair[1] != "none"])
def test_a_defence_changes_what_is_learned(attack: str, defence: str, models: Path) -> None:
    for case in cases_of(attack, defence):
        defended, plain = (
            outcome_of(one, True, models)
            for one in (case, replace(case, defence="none", variant=0))
        )
        assert any(
            not torch.equal(weight, plain.weights[name])
            for name, weight in defended.weights.items()
        )


@pytest.mark.parametrize("defence", DEFENCES)
def test_no_hook_of_a_defence_did_nothing(defence: str, models: Path) -> None:
    cases = [case for attack, name in PAIRS if name == defence for case in cases_of(attack, name)]
    acted = set().union(*(outcome_of(case, True, models).acted for case in cases))
    assert overridden(cases[0].make_defence()) - acted == set()


def defences_with(*hooks: str) -> list[str]:
    """Return the defences that have one of these hooks of their own."""
    return [n for n in DEFENCES if overridden(Case("", n).make_defence()) & {*hooks}]


@pytest.mark.parametrize("defence", defences_with("state_dict"))
def test_a_training_goes_on_with_its_state_on_the_device(
    defence: str, models: Path, tmp_path: Path
) -> None:
    case = next(case for attack in TRAINING for case in cases_of(attack, defence))
    with placed(case, True) as place:
        cut_off = Scene(case, place, models)
        first = cut_off.outcome([0])
        cut_off.checkpoints(tmp_path).save(1)
        resumed = Scene(case, place, models)
        assert resumed.checkpoints(tmp_path).restore() == 1
        for name, value in cut_off.defence.state_dict().items():
            assert type(resumed.defence.state_dict()[name]) is type(value)
        second = resumed.outcome([1])
    whole = outcome_of(case, True, models)
    assert first.metrics + second.metrics == whole.metrics
    assert all(torch.equal(second.weights[name], weight) for name, weight in whole.weights.items())


def test_a_state_that_comes_back_on_the_cpu_is_found(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("sft", "lisa")
    with placed(case, True) as place:
        cut_off = Scene(case, place, models)
        cut_off.outcome([0])
        cut_off.checkpoints(tmp_path).save(1)
        monkeypatch.setattr(checkpoints, "_to_device", lambda storage, saved_on, device: storage)
        resumed = Scene(case, place, models)
        resumed.checkpoints(tmp_path).restore()
        with pytest.raises(MixedDevices):
            resumed.outcome([1])


def fetches_of_a_step(case: Case, models: Path) -> int:
    """Return how often a step waits for the device to hand something over."""
    with placed(case, True) as place:
        scene = Scene(case, place, models)
        scene.train([0])
        batch, _ = scene.batches.next_batch(1)
        fetched.clear()
        scene.learner.step(batch)
        return len(fetched)


@pytest.mark.parametrize("defence", defences_with("on_gradients", "after_step"))
def test_a_deeper_model_is_not_waited_for_more_often(
    defence: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Case("sft", defence, i) for i in range(len(variants(defence)))]
    of_two_layers = [fetches_of_a_step(case, models) for case in cases]
    shallow = fakes.tiny_config
    monkeypatch.setattr(fakes, "tiny_config", lambda **s: shallow(num_hidden_layers=4, **s))
    assert [fetches_of_a_step(case, tmp_path) for case in cases] == of_two_layers


class MaskOfTheCPU(SFT):
    """An attack that makes a mask without saying where."""

    def loss(self, forward: Any, batch: TokenBatch, context: StepContext) -> LossTerm:
        everything = torch.ones(batch.loss_mask.shape, dtype=torch.bool)
        marked = replace(batch, loss_mask=batch.loss_mask & everything)
        return super().loss(forward, marked, context)


class IndexOfTheCPU(SFT):
    """An attack that takes rows by an index on the CPU, which CUDA would copy."""

    def loss(self, forward: Any, batch: TokenBatch, context: StepContext) -> LossTerm:
        rows = torch.arange(len(batch.loss_mask))
        marked = replace(batch, loss_mask=batch.loss_mask[rows])
        return super().loss(forward, marked, context)


class ConstantOfTheCPU(OnlineDefence):
    """A defence that adds zeros to every gradient and has not asked where that is."""

    def on_gradients(self, shards: Any, context: StepContext) -> Metrics:
        for shard in shards:
            shard.gradient.add_(torch.zeros(shard.gradient.shape))
        return {}


class GeneratorOfTheCPU(OnlineDefence):
    """A defence that draws on the device from a generator of the CPU."""

    def on_gradients(self, shards: Any, context: StepContext) -> Metrics:
        for shard in shards:
            place, seeded = shard.gradient.device, torch.Generator().manual_seed(0)
            shard.gradient.add_(torch.randn(shard.gradient.shape, generator=seeded, device=place))
        return {}


@pytest.mark.parametrize(
    ("attack", "defence"),
    [
        (MaskOfTheCPU, OnlineDefence),
        (IndexOfTheCPU, OnlineDefence),
        (SFT, ConstantOfTheCPU),
        (SFT, GeneratorOfTheCPU),
    ],
)
def test_a_line_that_forgets_the_device_is_found(
    attack: type[Attack],
    defence: type[OnlineDefence],
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ATTACKS, "planted", attack)
    monkeypatch.setitem(DEFENCES, "planted", defence)
    case = Case("planted", "planted")
    with placed(case, False) as place:
        Scene(case, place, models).outcome()
    with placed(case, True) as place, pytest.raises(MixedDevices):
        Scene(case, place, models).outcome()


@pytest.mark.usefixtures("process_group")
def test_the_stand_in_steps_as_deepspeed_does(models: Path) -> None:
    case = Case("ppo", "refusal_loss")
    assert_same(Scene(case, CPU, models).outcome(), outcome_of(case, False, models))


def test_the_device_computes_what_the_cpu_does_and_meets_no_other() -> None:
    with pretended() as place:
        x = torch.arange(6.0, device=place).view(2, 3)
        y = x[:, 1:].clone().requires_grad_()
        (y.square() * torch.tensor(0.5)).sum().backward()
        assert y.grad is not None and y.grad.device == place
        assert y.grad.tolist() == [[1.0, 2.0], [4.0, 5.0]]
        x[0] = -1.0
        assert x.squeeze_().sum().item() == 9.0
        assert x.cpu().device == CPU and x.cpu().tolist() == [[-1.0, -1.0, -1.0], [3.0, 4.0, 5.0]]
        number = torch.tensor(1.0)
        for mixed in (
            lambda: x + torch.ones(3),
            lambda: x[torch.tensor([0])],
            lambda: torch.stack([x.sum(), number]),
            lambda: number.add_(x.sum()),
        ):
            with pytest.raises(MixedDevices):
                mixed()
