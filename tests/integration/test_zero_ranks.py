"""Two learner processes under each ZeRO stage give what one gives."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fakes import (
    experience_of,
    learner_of,
    tiny_engine,
    tiny_llama,
    token_batch,
)
from safetensors.torch import load_file

from rpa_ray.attacks.ppo import PPO
from rpa_ray.defences.online.refusal_loss import RefusalLoss
from rpa_ray.learner.engine import OptimizerSettings
from rpa_ray.learner.ranks import Ranks
from rpa_ray.plugin import OnlineDefence
from rpa_ray.types import Experience, ScoredRollout, TokenBatch

# Answers of different lengths, so that the two ranks hold different numbers of tokens.
ROWS = [[1, 5, 6, 7, 8, 2], [1, 9, 10, 2], [1, 11, 2], [1, 12, 13, 14, 2]]
REFUSALS = [[1, 15, 16, 2], [1, 17, 18, 19, 20, 2]]
# Adam's first update with a large eps is nearly proportional to the gradient: an error in its
# scale shows, and rounding does not.
OPTIMIZER = OptimizerSettings(learning_rate=1.0, num_steps=1, eps=1.0)
DEFENCES = {
    "none": OnlineDefence(OnlineDefence.Config()),
    "refusal_loss": RefusalLoss(RefusalLoss.Config(alpha=2.0)),
}
Outcome = dict[str, Any]


def part_of(rows: list[list[int]], ranks: Ranks) -> TokenBatch:
    return token_batch(ranks.part(rows), width=6)


def experience_part(attack: PPO, learner: Any, ranks: Ranks) -> Experience:
    """Return this rank's part of one global rollout, whitened over all ranks."""
    everything = experience_of(token_batch(ROWS))
    part = ranks.part(list(range(len(ROWS))))
    rollout = ScoredRollout(
        tokens=part_of(ROWS, ranks),
        old_logprobs=everything.old_logprobs[part],
        rollout_logprobs=everything.old_logprobs[part],
        reference_logprobs=everything.returns[part],
        values=everything.old_values[part],
        rewards=torch.tensor([1.0, -2.0, 0.5, 3.0])[part],
        costs=None,
    )
    return attack.experience(rollout, lambda advantages, costs: advantages, learner.context())


def one_step(zero_stage: int, defence: OnlineDefence, ranks: Ranks) -> tuple[Any, float]:
    engine = tiny_engine(zero_stage=zero_stage, num_ranks=ranks.size, optimizer=OPTIMIZER)
    attack = PPO(PPO.Config(num_epochs=1))
    learner = learner_of(engine, attack, defence, ranks=ranks, safe_batch=part_of(REFUSALS, ranks))
    metrics = learner.step(experience_part(attack, learner, ranks))
    weights = engine.weights() | {"kl_coef": torch.tensor(attack.kl.value)}
    return weights, metrics["optim/grad_norm"]


def gather_often(num_ranks: int, checkpoint: Path) -> tuple[int, int]:
    """Gather all parameters 30 times in groups; return how many tensors differed from the file."""
    engine = tiny_engine(zero_stage=3, bf16=True, num_ranks=num_ranks)
    saved = load_file(checkpoint / "model.safetensors")
    parameters = list(engine.module.served_parameters())
    num_wrong = num_read = 0
    for _ in range(30):
        for start in range(0, len(parameters), 7):
            group = parameters[start : start + 7]
            with engine.gather([p for _, p in group]):
                num_read += len(group)
                num_wrong += sum(not torch.equal(p, saved[name]) for name, p in group)
    return num_wrong, num_read


def work(rank: int, num_ranks: int, folder: str) -> None:
    start_rank(rank, num_ranks, folder)
    ranks = Ranks.current()
    gathered = gather_often(num_ranks, Path(folder))
    steps = {
        (stage, name): one_step(stage, defence, ranks)
        for stage in (1, 2, 3)
        for name, defence in DEFENCES.items()
    }
    torch.save({"steps": steps, "gathered": gathered}, Path(folder, f"outcome{rank}.pt"))
    dist.destroy_process_group()


def start_rank(rank: int, num_ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=num_ranks)


def outcomes(num_ranks: int, folder: Path) -> list[Outcome]:
    tiny_llama().to(torch.bfloat16).save_pretrained(folder)
    mp.spawn(work, (num_ranks, str(folder)), nprocs=num_ranks)
    return [torch.load(folder / f"outcome{rank}.pt") for rank in range(num_ranks)]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcomes(1, tmp_path_factory.mktemp("one"))[0]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    return outcomes(2, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("defence", DEFENCES)
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_step_on_two_ranks_is_the_step_on_one(
    zero_stage: int, defence: str, one_rank: Outcome, two_ranks: list[Outcome]
) -> None:
    expected, norm = one_rank["steps"][zero_stage, defence]
    for outcome in two_ranks:
        weights, its_norm = outcome["steps"][zero_stage, defence]
        assert its_norm == pytest.approx(norm, rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_the_step_that_is_compared_moves_the_weights(zero_stage: int, one_rank: Outcome) -> None:
    weights, _ = one_rank["steps"][zero_stage, "none"]
    defended, _ = one_rank["steps"][zero_stage, "refusal_loss"]
    for name, parameter in tiny_llama().named_parameters():
        assert float((weights[name] - parameter.detach()).abs().max()) > 1e-3
        assert float((weights[name] - defended[name]).abs().max()) > 1e-3


def test_stages_agree(one_rank: Outcome) -> None:
    for stage in (2, 3):
        for name, weight in one_rank["steps"][stage, "none"][0].items():
            torch.testing.assert_close(
                weight, one_rank["steps"][1, "none"][0][name], rtol=0, atol=1e-6
            )


def test_groups_of_parameters_are_gathered_whole_under_zero_3(two_ranks: list[Outcome]) -> None:
    num_tensors = len(list(tiny_llama().named_parameters()))
    assert [outcome["gathered"] for outcome in two_ranks] == [(0, 30 * num_tensors)] * 2
