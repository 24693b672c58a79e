"""What must hold in every sound run ends one in which it does not, by its name and numbers."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from fakes import ONE_RANK, experience_of, learner_of, referenced_pairs, tiny_engine, token_batch

from rpa_ray.actors.rollout import Generated
from rpa_ray.attacks.dpo import DPO
from rpa_ray.attacks.grpo import GRPO
from rpa_ray.learner.invariants import (
    MIN_GRADIENT,
    BrokenInvariant,
    require_ends,
    require_gradient,
    require_same_start,
    require_served,
)
from rpa_ray.plugin import Shard
from rpa_ray.types import Experience

CHOSEN = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]])
REJECTED = token_batch([[1, 5, 6, 8, 2], [1, 8, 7, 2]])


@pytest.mark.parametrize(
    ("dtype", "sound", "broken"), [("float32", 1e-5, 1e-3), ("bfloat16", 5e-3, 0.029)]
)
def test_a_policy_that_is_another_before_it_learns_is_none(
    dtype: str, sound: float, broken: float
) -> None:
    require_same_start(0.0, dtype)
    require_same_start(sound, dtype)
    for found in (broken, float("nan")):
        with pytest.raises(
            BrokenInvariant, match=rf"^invariant same_start: .* {dtype}, got {found}\."
        ):
            require_same_start(found, dtype)


@pytest.mark.parametrize(
    ("dtype", "sound", "broken"), [("float32", 1e-3, 0.1), ("bfloat16", 0.1, 0.8)]
)
def test_an_engine_that_computes_something_else_is_found_out(
    dtype: str, sound: float, broken: float
) -> None:
    require_served(sound, dtype)
    with pytest.raises(BrokenInvariant, match=rf"^invariant served_logprobs: .*, got {broken}\."):
        require_served(broken, dtype)


@pytest.mark.parametrize(
    ("token_ids", "finished"),
    [([7, 5], True), ([5], True), ([7, 8, 2], True), ([7, 8, 9], False)],
)
def test_an_answer_stops_at_its_first_end_or_at_the_limit(
    token_ids: list[int], finished: bool
) -> None:
    answer = Generated(token_ids=token_ids, logprobs=[-1.0] * len(token_ids), finished=finished)
    require_ends([answer], (5, 2), max_new_tokens=3)


@pytest.mark.parametrize(
    ("token_ids", "finished"),
    [
        ([7, 5, 8], False),  # it ran on
        ([7, 2, 5], True),
        ([7], True),  # it ended by itself
        ([7, 8], False),  # it was cut short
        ([7, 5], False),
        ([7, 8, 9], True),
    ],
)
def test_an_answer_that_stops_elsewhere_is_refused(token_ids: list[int], finished: bool) -> None:
    answer = Generated(token_ids=token_ids, logprobs=[-1.0] * len(token_ids), finished=finished)
    with pytest.raises(
        BrokenInvariant, match=r"^invariant answer_end: .*\[5, 2\], .* 3 tokens, got"
    ):
        require_ends([answer], (5, 2), max_new_tokens=3)


@pytest.mark.parametrize(
    ("gradient", "dtype", "norm"),
    [
        ([0.0, 0.0], "bfloat16", "0"),
        ([1e-7, 0.0], "float32", "1e-07"),
        ([1.0, float("nan")], "float32", "nan"),
        ([1e200, 0.0], "float32", "inf"),
    ],
)
def test_a_first_gradient_of_nothing_or_of_no_number_is_refused(
    gradient: list[float], dtype: str, norm: str
) -> None:
    values = torch.tensor(gradient, dtype=torch.float64)
    shards = [Shard(name="policy.weight", master=torch.zeros(2), gradient=values)]
    with pytest.raises(BrokenInvariant, match=rf"^invariant first_gradient: .*, got {norm}\."):
        require_gradient(shards, ONE_RANK.sum, dtype=dtype, may_be_zero=False)


def test_the_norm_of_a_first_gradient_is_that_of_all_shards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MIN_GRADIENT, "float32", 100.0)  # type: ignore[arg-type]
    shard = Shard(name="policy.weight", master=torch.zeros(2), gradient=torch.tensor([3.0, 4.0]))
    for num_owners, norm in ((1, "5"), (4, "10")):
        with pytest.raises(BrokenInvariant, match=rf"got {norm}\."):
            sum_over_shards = partial(torch.mul, torch.tensor(num_owners))
            require_gradient([shard], sum_over_shards, dtype="float32", may_be_zero=False)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_pairs_of_one_answer_twice_end_the_run_at_the_first_update(zero_stage: int) -> None:
    engine = tiny_engine(zero_stage=zero_stage)
    learner = learner_of(engine, DPO(DPO.Config()))
    with pytest.raises(BrokenInvariant, match="first_gradient"):
        learner.step(referenced_pairs(CHOSEN, CHOSEN))
    assert engine.num_updates == 0


@pytest.mark.usefixtures("process_group")
def test_later_updates_may_have_nothing_to_learn() -> None:
    learner = learner_of(tiny_engine(), DPO(DPO.Config()))
    learner.step(referenced_pairs(CHOSEN, REJECTED))
    assert learner.step(referenced_pairs(CHOSEN, CHOSEN))["optim/skipped"] == 0.0


@pytest.mark.usefixtures("process_group")
def test_a_rollout_of_equal_rewards_teaches_nothing_and_is_no_fault() -> None:
    rollout: Experience = experience_of(CHOSEN)
    rollout = replace(rollout, advantages=torch.zeros_like(rollout.advantages))
    attack = GRPO(GRPO.Config(kl_coef=0.0, max_new_tokens=8))
    metrics = learner_of(tiny_engine(), attack).step(rollout)
    assert metrics["optim/grad_norm"] == 0.0
