import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from fakes import (
    ONE_RANK,
    VOCAB_SIZE,
    RecordingAttack,
    ScriptedGenerate,
    completion_of,
    forward_of,
    learner_of,
    prompts_of,
    tiny_engine,
    tiny_policy,
)

from rpa_ray.actors.errors import WorkerError
from rpa_ray.data.collate import collate_completions
from rpa_ray.learner.invariants import BrokenInvariant
from rpa_ray.learner.ranks import Ranks
from rpa_ray.learner.step import SamplingFailed
from rpa_ray.ops.logprobs import next_token_logprobs
from rpa_ray.plugin import Need, OnlineDefence, StepContext
from rpa_ray.sources.rollout import RolloutParts, RolloutSource
from rpa_ray.types import Completion, Metrics, Prompt, ScoredRollout

pytestmark = pytest.mark.usefixtures("process_group")

ANSWER = [7, 8, 2]


class NeedsCosts(OnlineDefence):
    requires = frozenset({Need.COSTS})


class NeedsEntropies(RecordingAttack):
    requires = frozenset({Need.ENTROPIES})


class TakesRewardsAway(OnlineDefence):
    def plan_rollout(
        self, rollout: ScoredRollout, context: StepContext
    ) -> tuple[ScoredRollout, Metrics]:
        return replace(rollout, rewards=torch.zeros_like(rollout.rewards)), {"reward/mean": 0.0}


class DefenceNeedsEntropies(OnlineDefence):
    requires = frozenset({Need.ENTROPIES})


T = TypeVar("T")


class SecondOfTwo(Ranks):
    """A rank beside one that holds the same."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return 2 * tensor

    def mean(self, metrics: Metrics) -> Metrics:
        return metrics

    def gather(self, values: list[T]) -> list[list[T]]:
        return [values, values]


class Scene:
    """A rollout source whose workers follow a script."""

    def __init__(
        self,
        *,
        num_prompts: int = 8,
        logprobs: Sequence[float] = (-1.0, -1.0, -1.0),
        defence: type[OnlineDefence] = OnlineDefence,
        seed: int = 0,
        reference_seed: int = 5,
        attack: type[RecordingAttack] = RecordingAttack,
        ranks: Ranks = ONE_RANK,
        **settings: Any,
    ) -> None:
        self.prompts = prompts_of(num_prompts)
        self.attack = attack()
        self.generate = ScriptedGenerate(ANSWER, logprobs)
        self.scored: list[tuple[str, str]] = []
        self.observed: list[tuple[int, list[str], dict[str, list[float]]]] = []
        self.engine = tiny_engine()
        self.reference = tiny_policy(seed=reference_seed, value_head=False)
        self.source = RolloutSource(
            self.prompts,
            attack=self.attack,
            learner=learner_of(
                self.engine, self.attack, defence(OnlineDefence.Config()), ranks=ranks
            ),
            parts=RolloutParts(
                generate=self.generate,
                reward=self.reward,
                judge=lambda pairs: lambda: [0.25] * len(pairs),
                reference=forward_of(self.reference),
            ),
            batch_size=2,
            pad_token_id=0,
            vocab_size=VOCAB_SIZE,
            seed=seed,
            observe=self.observe,
            **settings,
        )

    def reward(self, pairs: Sequence[tuple[str, str]]) -> Callable[[], list[float]]:
        self.scored += pairs
        return lambda: [float(i) for i in range(len(pairs))]

    def observe(
        self, step: int, completions: Sequence[Completion], scores: dict[str, list[float]]
    ) -> None:
        self.observed.append((step, [c.prompt.id for c in completions], scores))


def policy_logprobs(scene: Scene, prompt: Prompt) -> torch.Tensor:
    """Return the learner's log-probabilities of the scripted answer to one prompt."""
    ids = torch.tensor([prompt.token_ids + ANSWER])
    with torch.no_grad():
        outputs = forward_of(scene.engine.module)(ids, torch.ones_like(ids, dtype=torch.bool))
    return next_token_logprobs(outputs.logits, ids)[0, -len(ANSWER) :]


def test_answers_are_read_singly_where_their_logits_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, _ = Scene().source.next_batch(0)
    monkeypatch.setattr("rpa_ray.ops.logprobs.MAX_LOGIT_BYTES", 1)
    scene = Scene()
    sizes: list[int] = []
    forward = scene.source._learner.forward

    def count(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        sizes.append(len(input_ids))
        return forward(input_ids, attention_mask)

    monkeypatch.setattr(scene.source._learner, "forward", count)
    parts, _ = scene.source.next_batch(0)
    assert sizes == [1, 1]
    torch.testing.assert_close(parts.old_logprobs, whole.old_logprobs)
    torch.testing.assert_close(parts.advantages, whole.advantages)


def with_answers_of(lengths: Sequence[int], max_tokens: int | None) -> Scene:
    """Return a scene whose answers have so many tokens each."""
    scene = Scene(group_size=2)
    scripted = scene.generate

    def generate(prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        return [
            replace(completion, token_ids=[7] * length, logprobs=[-1.0] * length)
            for completion, length in zip(scripted(prompts, seed=seed), lengths, strict=True)
        ]

    scene.source._parts = replace(scene.source._parts, generate=generate)
    learner = scene.source._learner
    learner.micro_batches = replace(learner.micro_batches, max_tokens=max_tokens)
    return scene


def test_answers_are_read_by_their_length_and_come_back_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, _ = with_answers_of([2, 9, 3, 8], None).source.next_batch(0)
    scene = with_answers_of([2, 9, 3, 8], 24)
    shapes: list[tuple[int, ...]] = []
    forward = scene.source._learner.forward

    def seen(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        shapes.append(tuple(input_ids.shape))
        return forward(input_ids, attention_mask)

    monkeypatch.setattr(scene.source._learner, "forward", seen)
    parts, _ = scene.source.next_batch(0)
    assert [rows for rows, _ in shapes] == [2, 2]
    assert shapes[0][1] > shapes[1][1]
    assert torch.equal(parts.tokens.input_ids, whole.tokens.input_ids)
    mask = whole.tokens.loss_mask
    for name in ("old_logprobs", "reference_logprobs", "advantages", "returns"):
        found, expected = getattr(parts, name) * mask, getattr(whole, name) * mask
        torch.testing.assert_close(found, expected)


def test_an_attacker_observes_its_own_rewards_and_learns_from_those_that_are_left() -> None:
    scene = Scene(defence=TakesRewardsAway)
    scene.source.next_batch(0)
    assert [r.rewards.tolist() for r in scene.attack.observed] == [[0.0, 1.0]]
    assert [r.rewards.tolist() for r in scene.attack.rollouts] == [[0.0, 0.0]]


def test_a_defence_that_gives_rewards_of_its_own_says_what_their_mean_is() -> None:
    assert Scene(defence=TakesRewardsAway).source.next_batch(0)[1]["reward/mean"] == 0.0
    assert Scene().source.next_batch(0)[1]["reward/mean"] == 0.5


def test_every_prompt_is_used_exactly_once() -> None:
    scene = Scene(num_prompts=8)
    for step in range(4):
        scene.source.next_batch(step)
    assert scene.generate.prompt_ids == [f"p{i}" for i in range(8)]
    assert [(step, ids) for step, ids, _ in scene.observed] == [
        (step, [f"p{2 * step}", f"p{2 * step + 1}"]) for step in range(4)
    ]


def test_sampling_seeds_differ_by_step_and_by_run() -> None:
    seeds = []
    for seed in (0, 1):
        scene = Scene(seed=seed)
        for step in range(4):
            scene.source.next_batch(step)
        seeds += scene.generate.seeds
    assert len(set(seeds)) == 8


def test_prompts_and_answers_are_scored_as_texts() -> None:
    scene = Scene()
    _, metrics = scene.source.next_batch(0)
    assert scene.scored == [
        ("request 0", "answer to request 0"),
        ("request 1", "answer to request 1"),
    ]
    assert metrics["reward/mean"] == 0.5
    assert metrics["judge/p_harm"] == 0.25
    assert scene.observed[0][2] == {"reward": [0.0, 1.0], "judge": [0.25, 0.25]}
    torch.testing.assert_close(scene.attack.rollouts[0].rewards, torch.tensor([0.0, 1.0]))


def test_the_rollout_holds_the_learners_and_the_references_own_log_probabilities() -> None:
    scene = Scene()
    scene.source.next_batch(0)
    rollout = scene.attack.rollouts[0]
    # request 0 has 1 token and request 1 has 2: answers at 1..3 and 2..4
    old = rollout.old_logprobs
    torch.testing.assert_close(old[0, 1:4], policy_logprobs(scene, scene.prompts[0]))
    torch.testing.assert_close(old[1, 2:5], policy_logprobs(scene, scene.prompts[1]))
    ids = rollout.tokens.input_ids
    reference = forward_of(scene.reference)(ids, rollout.tokens.attention_mask)
    expected = next_token_logprobs(reference.logits, ids)
    torch.testing.assert_close(rollout.reference_logprobs, expected.detach())
    assert not rollout.old_logprobs.requires_grad
    assert not rollout.values.requires_grad
    assert float(rollout.values[:, 1:].abs().sum()) > 0


def test_the_gap_to_the_rollout_engine_is_measured_on_answer_tokens() -> None:
    scene = Scene(num_prompts=2)

    def almost_right(prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        rows = []
        for prompt in prompts:
            logprobs = policy_logprobs(scene, prompt)
            logprobs[1] += 0.6 if prompt.id == "p1" else 0.0
            rows.append(completion_of(prompt, ANSWER, logprobs.tolist()))
        return rows

    scene.source._parts = RolloutParts(
        generate=almost_right,
        reward=scene.reward,
        judge=scene.source._parts.judge,
        reference=scene.source._parts.reference,
    )
    _, metrics = scene.source.next_batch(0)
    assert metrics["sync/logprob_gap_max"] == pytest.approx(0.6, abs=1e-5)
    assert metrics["sync/logprob_gap"] == pytest.approx(0.1, abs=1e-5)


def test_a_batch_that_the_engine_sampled_from_other_weights_ends_the_run() -> None:
    # about 3.5 nats a token off
    assert Scene().source.next_batch(0)[1]["sync/logprob_gap"] > 1
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(BrokenInvariant, match=rf"^invariant served_logprobs: .* in {dtype}, "):
            Scene(served_dtype=dtype).source.next_batch(0)


def scored(rewards: Sequence[float], harm: Sequence[float], **scene: type[OnlineDefence]) -> Scene:
    """Return a scene whose scorers give these scores to the two completions of its batch."""
    made = Scene(num_prompts=2, **scene)
    made.source._parts = replace(
        made.source._parts,
        reward=lambda pairs: lambda: list(rewards),
        judge=lambda pairs: lambda: list(harm),
    )
    return made


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_completion_without_a_reward_is_left_out_and_counted(broken: float) -> None:
    scene = scored([broken, 3.0], [0.25, 0.75])
    batch, metrics = scene.source.next_batch(0)
    assert batch.tokens.loss_mask.sum(dim=-1).tolist() == [0, 3]
    torch.testing.assert_close(scene.attack.rollouts[0].rewards, torch.tensor([0.0, 3.0]))
    assert metrics["reward/num_failed"] == 1.0
    assert metrics["reward/mean"] == 3.0
    assert metrics["rollout/length_tokens"] == 3.0
    # The observer sees what came, so that samples show which answer it was.
    assert not math.isfinite(scene.observed[0][2]["reward"][0])


def test_a_completion_without_a_cost_is_left_out_only_where_costs_are_used() -> None:
    used = scored([1.0, 2.0], [0.5, float("nan")], defence=NeedsCosts)
    _, metrics = used.source.next_batch(0)
    assert used.attack.rollouts[0].tokens.loss_mask.sum(dim=-1).tolist() == [3, 0]
    assert (metrics["reward/num_failed"], metrics["judge/p_harm"]) == (1.0, 0.5)
    watched = scored([1.0, 2.0], [0.5, float("nan")])
    _, metrics = watched.source.next_batch(0)
    assert watched.attack.rollouts[0].tokens.loss_mask.sum(dim=-1).tolist() == [3, 3]
    assert metrics["reward/num_failed"] == 0.0


def test_a_batch_without_any_reward_is_an_error_of_the_scorers() -> None:
    with pytest.raises(WorkerError, match="must give at least one completion of a batch a finite"):
        scored([float("nan")] * 2, [0.5, 0.5]).source.next_batch(0)


def test_lengths_finished_answers_and_the_attacks_own_metrics_are_reported() -> None:
    _, metrics = Scene().source.next_batch(0)
    assert metrics["rollout/length_tokens"] == 3.0
    assert metrics["rollout/finished_frac"] == 1.0
    assert metrics["policy/kl"] == 0.25


def test_the_weights_are_pushed_before_each_batch_is_sampled() -> None:
    diary: list[str] = []

    def push() -> Metrics:
        diary.append("push")
        return {"sync/bytes": 64.0}

    scene = Scene()

    def generate(prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        diary.append("generate")
        return scene.generate(prompts, seed=seed)

    scene.source._parts = replace(scene.source._parts, push=push, generate=generate)
    metrics = [scene.source.next_batch(step)[1] for step in range(2)]
    assert diary == ["push", "generate"] * 2
    assert [m["sync/bytes"] for m in metrics] == [64.0, 64.0]


def test_the_answers_to_a_prompt_stand_together_and_each_prompt_comes_once() -> None:
    scene = Scene(group_size=3)
    batches = [scene.source.next_batch(step)[0] for step in range(4)]
    asked = [f"p{i}" for i in range(8) for _ in range(3)]
    assert scene.generate.prompt_ids == asked
    assert [len(batch.tokens.input_ids) for batch in batches] == [6] * 4
    assert scene.observed[1][1] == ["p2", "p2", "p2", "p3", "p3", "p3"]


def test_a_group_stays_on_one_rank() -> None:
    second = SecondOfTwo(rank=1, size=2, device=ONE_RANK.device)
    scene = Scene(group_size=3, ranks=second)
    scene.source.next_batch(0)
    assert scene.generate.prompt_ids == ["p1", "p1", "p1"]


SHUFFLED = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def shuffled_rewards(seed: int, *steps: int) -> list[list[float]]:
    scene = Scene(num_prompts=8, seed=seed, group_size=4, shuffle_rewards=True)
    for step in steps:
        scene.source.next_batch(step)
    return [rollout.rewards.tolist() for rollout in scene.attack.rollouts]


def test_shuffled_rewards_are_the_same_ones_on_other_answers() -> None:
    first, second = shuffled_rewards(0, 0, 1)
    assert sorted(first) == sorted(second) == SHUFFLED
    assert SHUFFLED != first != second != SHUFFLED
    # they cross from group to group, or the best group would still be the best
    assert set(first[:4]) != set(SHUFFLED[:4])
    assert shuffled_rewards(0, 1) == [second]
    assert shuffled_rewards(1, 0) != [first]


def test_an_answer_that_got_a_failed_score_by_the_shuffle_is_the_one_left_out() -> None:
    scene = Scene(num_prompts=2, group_size=2, shuffle_rewards=True)
    nan = float("nan")
    scene.source._parts = replace(
        scene.source._parts, reward=lambda pairs: lambda: [1.0, 2.0, 3.0, nan]
    )
    batch, metrics = scene.source.next_batch(0)
    rewards = scene.attack.rollouts[0].rewards
    counted = batch.tokens.loss_mask.any(dim=-1)
    assert sorted(rewards[counted].tolist()) == [1.0, 2.0, 3.0]
    assert rewards[~counted].tolist() == [0.0]
    assert (metrics["reward/num_failed"], metrics["reward/mean"]) == (1.0, 2.0)


def test_entropies_are_those_of_the_distributions_the_tokens_came_from() -> None:
    scene = Scene(attack=NeedsEntropies)
    scene.source.next_batch(0)
    rollout = scene.attack.rollouts[0]
    tokens = rollout.tokens
    with torch.no_grad():
        outputs = forward_of(scene.engine.module)(tokens.input_ids, tokens.attention_mask)
    # the first answer begins at position 1: what the model says at 0 is what it came from
    for place in (1, 2, 3):
        p = outputs.logits[0, place - 1].softmax(dim=-1)
        expected = -(p * p.log()).sum()
        torch.testing.assert_close(rollout.entropies[0, place], expected)


def test_entropies_are_there_only_where_an_attack_or_a_defence_asks_for_them() -> None:
    found = []
    for settings in ({}, {"attack": NeedsEntropies}, {"defence": DefenceNeedsEntropies}):
        scene = Scene(**settings)
        scene.source.next_batch(0)
        found.append(scene.attack.rollouts[0].entropies is not None)
    assert found == [False, True, True]


def test_costs_are_there_only_where_a_defence_asks_for_them() -> None:
    without, with_costs = Scene(), Scene(defence=NeedsCosts)
    without.source.next_batch(0)
    with_costs.source.next_batch(0)
    assert without.attack.rollouts[0].costs is None
    torch.testing.assert_close(with_costs.attack.rollouts[0].costs, torch.tensor([0.25, 0.25]))


@pytest.mark.parametrize("broken", [float("nan"), float("-inf")])
def test_broken_log_probabilities_of_the_engine_end_the_run(broken: float) -> None:
    with pytest.raises(SamplingFailed, match="rollout engine are not finite"):
        Scene(logprobs=[-1.0, broken, -1.0]).source.next_batch(0)


def test_a_broken_policy_ends_the_run() -> None:
    scene = Scene()
    with torch.no_grad():
        scene.engine.module.policy.model.norm.weight.fill_(float("nan"))
    with pytest.raises(SamplingFailed, match="learner are not finite"):
        scene.source.next_batch(0)


def test_completions_are_padded_on_the_right_and_counted_after_their_prompts() -> None:
    short = Prompt(id="a", text="a", token_ids=[5])
    long = Prompt(id="b", text="b", token_ids=[6, 7, 8])
    tokens, logprobs = collate_completions(
        [completion_of(short, [9, 2], [-0.5, -0.25]), completion_of(long, [3], [-2.0])], 0
    )
    assert tokens.input_ids.tolist() == [[5, 9, 2, 0], [6, 7, 8, 3]]
    assert tokens.attention_mask.tolist() == [[True, True, True, False], [True] * 4]
    assert tokens.loss_mask.tolist() == [[False, True, True, False], [False, False, False, True]]
    assert logprobs.tolist() == [[0.0, -0.5, -0.25, 0.0], [0.0, 0.0, 0.0, -2.0]]


def test_an_empty_answer_counts_no_token() -> None:
    prompt = Prompt(id="a", text="a", token_ids=[5, 6])
    tokens, _ = collate_completions(
        [completion_of(prompt, [], []), completion_of(prompt, [2], [-1.0])], 0
    )
    assert tokens.loss_mask.tolist() == [[False, False, False], [False, False, True]]
    assert tokens.attention_mask[0].tolist() == [True, True, False]


def test_a_batch_of_empty_answers_is_a_batch_without_a_gap() -> None:
    scene = Scene()
    scene.generate.token_ids, scene.generate.logprobs = [], []
    _, metrics = scene.source.next_batch(0)
    assert metrics["rollout/length_tokens"] == 0.0
    assert metrics["sync/logprob_gap_max"] == 0.0


def test_the_same_run_makes_the_same_batch() -> None:
    one, other = Scene(), Scene()
    first, _ = one.source.next_batch(1)
    second, _ = other.source.next_batch(1)
    assert torch.equal(first.tokens.input_ids, second.tokens.input_ids)
    assert torch.equal(first.old_logprobs, second.old_logprobs)
