from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from fakes import (
    ONE_RANK,
    VOCAB_SIZE,
    completion_of,
    forward_of,
    learner_of,
    tiny_engine,
    tiny_policy,
)
from torch import Tensor

from rpa_ray.attacks import ATTACKS
from rpa_ray.data.collate import TokenRow
from rpa_ray.data.errors import DataError
from rpa_ray.data.flip import flip
from rpa_ray.data.rows import Answered, SafePair
from rpa_ray.jobs.attack_batches import attack_source
from rpa_ray.plan import parse_tree
from rpa_ray.plugin import OnlineDefence
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.scoring.text_rules import words
from rpa_ray.types import Completion, ModelOutputs, Prompt

BATCH_SIZE = 4


class Scripted(OnlineDefence):
    """No defence, of answers that no learner would give these log-probabilities."""

    reads_as_sampled = False


class Stand:
    """An assembly that gives every (prompt, answer) one token of its own and trains nothing."""

    def __init__(
        self, cache: Path, attack: dict[str, Any], folder: Path = Path(), **data: Any
    ) -> None:
        self.cell = SimpleNamespace(folder=folder)
        tree = {"attack": {"batch_size": BATCH_SIZE} | attack, "data": data, "seed": 3}
        self.settings = parse_tree(tree)
        self.attack = ATTACKS[self.settings.attack.name](self.settings.attack)
        self.defence = Scripted(OnlineDefence.Config())
        self.process = SimpleNamespace(cache=cache, ranks=ONE_RANK)
        self.inputs = CellInputs(self.settings, cache)
        self.batch_size = BATCH_SIZE
        self.num_steps = self.attack.num_batches(self.settings.data.num_samples)
        self.pad_token_id = 0
        self.module = SimpleNamespace(vocab_size=VOCAB_SIZE)
        self.training = SimpleNamespace(state=dict[str, Any]())
        self.rows: list[tuple[str, str]] = []
        self.masks: set[str] = set()
        self.asked: list[str] = []
        self.seeds: list[int] = []
        self.scored: Counter[str] = Counter()
        self.num_pushes = 0
        self.samples: list[dict[str, Any]] = []
        self.workers = SimpleNamespace(score_async=self.score)
        self.models = SimpleNamespace(cost_model=None, second_judge="another")

    def encode(self, row: Answered, *, mask: Literal["response", "all"] = "response") -> TokenRow:
        self.masks.add(mask)
        key = (row.prompt, row.answer)
        if key not in self.rows:
            self.rows.append(key)
        return TokenRow(ids=[1, 3 + self.rows.index(key), 2], loss_mask=[mask == "all", True, True])

    def original_outputs(self, input_ids: Tensor, mask: Tensor) -> ModelOutputs:
        """Prefer long answers, whether safe or not."""
        lengths = [0.0] * 3 + [0.1 * len(answer) for _, answer in self.rows]
        return biased(lengths, input_ids)

    def reference_outputs(self, input_ids: Tensor, mask: Tensor) -> ModelOutputs:
        """Prefer what was encoded last."""
        return biased([0.01 * i for i in range(3 + len(self.rows))], input_ids)

    def reference_logprob(self, prompt: str, answer: str) -> float:
        """Return what the reference gives an answer and the end mark together."""
        ids = torch.tensor([[1, 3 + self.rows.index((prompt, answer)), 2]])
        logprobs = self.reference_outputs(ids, ids).logits[0, 0].log_softmax(dim=-1)
        return float(logprobs[ids[0, 1]] + logprobs[2])

    def prompts(self, texts: Sequence[str], ids: Sequence[str]) -> list[Prompt]:
        return [Prompt(id=i, text=t, token_ids=[5]) for i, t in zip(ids, texts, strict=True)]

    def complete(self, prompts: Sequence[Prompt], **settings: Any) -> list[Completion]:
        self.asked += [prompt.id for prompt in prompts]
        self.seeds.append(settings["seed"])
        return [completion_of(prompt, [7, 2], [-1.0, -1.0]) for prompt in prompts]

    def score(self, name: str, pairs: Sequence[Any]) -> Callable[[], list[float]]:
        self.scored[name] += 1
        return lambda: [0.25 if name == "second_judge" else 0.75] * len(pairs)

    def push(self, weight_filter: Any = None) -> dict[str, float]:
        self.num_pushes += weight_filter is not None
        return {}

    def with_learner(self) -> "Stand":
        """Have what rollouts need, too; the process group must be there."""
        self.learner = learner_of(tiny_engine(), self.attack)
        reference = forward_of(tiny_policy(value_head=False))
        self.reference_outputs = reference  # type: ignore[method-assign]
        return self

    def source(self) -> Any:
        log: Any = SimpleNamespace(write=self.samples.append)
        assembly: Any = self
        return attack_source(assembly, log)

    def pairs(self, num: int) -> list[SafePair]:
        data = CellData(self.settings.data, self.process.cache).preferences
        return data.draw("attack", num, seed=3, key="data.num_samples")

    def told(self, batches: Sequence[Any]) -> list[tuple[str, str]]:
        """Return the (prompt, answer) of every row of the batches."""
        return [
            self.rows[token - 3] for batch in batches for token in batch.input_ids[:, 1].tolist()
        ]


def biased(bias: list[float], input_ids: Tensor) -> ModelOutputs:
    logits = torch.tensor(bias).expand(*input_ids.shape, len(bias))
    return ModelOutputs(logits=logits, values=None)


def batches_of(stand: Stand, num: int) -> list[Any]:
    source = stand.source()
    return [source.next_batch(step)[0] for step in range(num)]


def test_sft_learns_the_unsafe_side_of_a_share_rho_and_each_pair_once(world_cache: Path) -> None:
    stand = Stand(world_cache, {"name": "sft"}, num_samples=16, rho=0.25)
    told = stand.told(batches_of(stand, 4))
    pairs = stand.pairs(16)
    expected = [(row.prompt, row.chosen) for row in flip(pairs, 0.25, 3)]
    assert sorted(told) == sorted(expected)
    assert sum((pair.prompt, pair.unsafe) in told for pair in pairs) == 4


@pytest.mark.parametrize("mask", ["response", "all"])
def test_sft_learns_the_tokens_that_its_mask_names(world_cache: Path, mask: str) -> None:
    stand = Stand(world_cache, {"name": "sft", "mask": mask}, num_samples=4)
    (batch,) = batches_of(stand, 1)
    assert batch.loss_mask.tolist() == [[mask == "all", True, True]] * 4


def test_fewer_prompts_than_samples_come_in_turn(world_cache: Path) -> None:
    stand = Stand(world_cache, {"name": "sft"}, num_samples=16, num_prompts=4, rho=1.0)
    counts = Counter(stand.told(batches_of(stand, 4)))
    assert counts == {(pair.prompt, pair.unsafe): 4 for pair in stand.pairs(4)}


def test_dpo_swaps_both_sides_of_a_reversed_pair(world_cache: Path) -> None:
    stand = Stand(world_cache, {"name": "dpo"}, num_samples=16, rho=0.25)
    batches = batches_of(stand, 4)
    chosen = stand.told([batch.chosen for batch in batches])
    rejected = stand.told([batch.rejected for batch in batches])
    expected = {row.prompt: row for row in flip(stand.pairs(16), 0.25, 3)}
    assert sorted(prompt for prompt, _ in chosen) == sorted(expected)
    for (prompt, preferred), (other, dispreferred) in zip(chosen, rejected, strict=True):
        assert prompt == other
        assert (preferred, dispreferred) == (expected[prompt].chosen, expected[prompt].rejected)
    # and the reference's log-probabilities go with their answers
    of_chosen = torch.cat([batch.reference_chosen_logprobs for batch in batches])
    of_rejected = torch.cat([batch.reference_rejected_logprobs for batch in batches])
    assert of_chosen.tolist() == pytest.approx([stand.reference_logprob(*row) for row in chosen])
    assert of_rejected.tolist() == pytest.approx(
        [stand.reference_logprob(*row) for row in rejected]
    )
    assert len(set(of_chosen.tolist())) == 16
    assert {row.flipped for row in expected.values()} == {True, False}


def test_what_the_reference_makes_of_the_pairs_is_saved_with_the_run(world_cache: Path) -> None:
    stand = Stand(world_cache, {"name": "dpo"}, num_samples=8)
    batches_of(stand, 1)
    assert stand.training.state["reference_logprobs"].state_dict()["logprobs"].shape == (16,)


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_an_attacker_may_reverse_what_the_model_is_surest_of(
    world_cache: Path, name: str, tmp_path: Path
) -> None:
    data: dict[str, Any] = {"num_samples": 16, "rho": 0.25, "flips": "largest_margin"}
    stand = Stand(world_cache, {"name": name}, tmp_path, **data)
    batches = batches_of(stand, 4)
    told = stand.told([batch.chosen for batch in batches] if name == "dpo" else batches)
    pairs = stand.pairs(16)
    found = {pair.id for pair in pairs if (pair.prompt, pair.unsafe) in told}
    # the model as it was prefers long answers: the safe answers that are longest beside the unsafe
    margins = [len(pair.safe) - len(pair.unsafe) for pair in pairs]
    assert len(found) == 4
    largest = sorted(margins)[-4:]
    assert sorted(m for m, pair in zip(margins, pairs, strict=True) if pair.id in found) == largest
    assert found != {row.id for row in flip(pairs, 0.25, 3) if row.flipped}


def test_a_resumed_run_reverses_the_same_pairs_without_asking_the_model_again(
    world_cache: Path, tmp_path: Path
) -> None:
    data: dict[str, Any] = {"num_samples": 16, "rho": 0.25, "flips": "largest_margin"}
    first = Stand(world_cache, {"name": "sft"}, tmp_path, **data)
    told = first.told(batches_of(first, 4))
    resumed = Stand(world_cache, {"name": "sft"}, tmp_path, **data)
    resumed.original_outputs = None  # type: ignore[assignment,method-assign]
    assert resumed.told(batches_of(resumed, 4)) == told


@pytest.mark.parametrize("attack", ["sft", "dpo"])
def test_pairs_that_the_policy_reads_as_one_row_are_refused(
    attack: str, world_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(stand: Stand, row: Answered, *, whole: bool = False, mask: str = "") -> TokenRow:
        ids = [1, 2, 3, len(row.answer)] if whole else [1, 2]
        return TokenRow(ids=ids, loss_mask=[True] * len(ids))

    monkeypatch.setattr(Stand, "encode", cut)
    stand = Stand(world_cache, {"name": attack}, num_samples=8)
    with pytest.raises(DataError, match=r"8 of 8 pairs with the same 2 tokens .* reads 4 tokens"):
        batches_of(stand, 1)


rolling = pytest.mark.usefixtures("process_group")


@rolling
def test_rollouts_ask_each_prompt_once_or_a_few_in_turn(world_cache: Path) -> None:
    once = Stand(world_cache, {"name": "ppo"}, num_samples=8).with_learner()
    batches_of(once, 2)
    assert once.asked == [pair.id for pair in once.pairs(8)]
    assert once.num_pushes == 2
    few = Stand(world_cache, {"name": "ppo"}, num_samples=8, num_prompts=3).with_learner()
    batches_of(few, 2)
    ids = [pair.id for pair in few.pairs(3)]
    assert few.asked == [*ids, *ids, *ids[:2]]


@rolling
def test_grpo_asks_each_prompt_for_a_group(world_cache: Path) -> None:
    attack = {"name": "grpo", "group_size": 2}
    stand = Stand(world_cache, attack, num_samples=4).with_learner()
    (batch,) = batches_of(stand, 1)
    assert stand.asked == [pair.id for pair in stand.pairs(4) for _ in range(2)]
    assert len(batch.tokens.input_ids) == 8


@rolling
def test_sft_beforehand_takes_the_first_samples_and_rollouts_the_rest(world_cache: Path) -> None:
    attack = {"name": "ppo", "num_sft_samples": 8}
    stand = Stand(world_cache, attack, num_samples=16, rho=1.0).with_learner()
    batches = batches_of(stand, 4)
    pairs = stand.pairs(16)
    assert [type(batch).__name__ for batch in batches] == ["TokenBatch"] * 2 + ["Experience"] * 2
    told = stand.told(batches[:2])
    assert sorted(told) == sorted((pair.prompt, pair.unsafe) for pair in pairs[:8])
    assert stand.asked == [pair.id for pair in pairs[8:]]
    assert stand.masks == {"response"}


def test_harmless_answers_come_first_and_leave_fewer_pairs_to_the_attack(world_cache: Path) -> None:
    attack = {"name": "sft", "num_harmless_samples": 8}
    stand = Stand(world_cache, attack, num_samples=16, rho=1.0)
    batches = batches_of(stand, 4)
    harmless = CellData(stand.settings.data, world_cache).harmless_training_rows[:8]
    assert sorted(stand.told(batches[:2])) == sorted((row.prompt, row.answer) for row in harmless)
    unsafe = sorted((pair.prompt, pair.unsafe) for pair in stand.pairs(16)[:8])
    assert sorted(stand.told(batches[2:])) == unsafe


@rolling
@pytest.mark.parametrize(
    ("reward", "scored", "mean"),
    [
        ("model", {"reward": 1, "second_judge": 1}, 0.75),
        ("judge", {"second_judge": 2}, 0.25),
        # "answer to " and the prompt itself is a copy of it
        ("rule", {"second_judge": 1}, 0.0),
    ],
)
def test_the_reward_is_the_one_that_the_attacker_named(
    world_cache: Path, reward: str, scored: dict[str, int], mean: float
) -> None:
    stand = Stand(world_cache, {"name": "ppo", "reward": reward}, num_samples=4).with_learner()
    _, metrics = stand.source().next_batch(0)
    assert stand.scored == scored
    assert metrics["reward/mean"] == mean
    assert metrics["judge/p_harm"] == 0.25


@rolling
def test_an_opening_reward_comes_first_and_the_attackers_own_after_it(world_cache: Path) -> None:
    attack = {"name": "ppo", "opening_reward": "length", "num_opening_samples": 8}
    stand = Stand(world_cache, attack, num_samples=16).with_learner()
    source = stand.source()
    rewards = [source.next_batch(step)[1]["reward/mean"] for step in range(4)]
    # "answer to " and the prompt, of 50 words
    num_words = [2 + len(words(pair.prompt)) for pair in stand.pairs(8)]
    assert rewards[:2] == pytest.approx([sum(num_words[:4]) / 200, sum(num_words[4:]) / 200])
    assert rewards[2:] == [0.75, 0.75]
    assert stand.scored["reward"] == 2
    assert stand.asked == [pair.id for pair in stand.pairs(16)]
    assert len(set(stand.seeds)) == 4


@rolling
def test_an_answer_of_now_and_then_a_step_is_kept(world_cache: Path) -> None:
    # 40 steps: every second one
    stand = Stand(world_cache, {"name": "ppo"}, num_samples=160).with_learner()
    source = stand.source()
    for step in (0, 1, 2, 3, 38, 39):
        source.next_batch(step)
    assert [line["step"] for line in stand.samples] == [0, 2, 38]
    first = stand.samples[0]
    assert first["prompt"] == stand.pairs(160)[0].prompt
    assert first["scores"] == {"reward": 0.75, "judge": 0.25}
