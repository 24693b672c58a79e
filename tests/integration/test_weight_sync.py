"""The engines serve the pushed weights: by their bytes, and by what is computed from them."""

import copy
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import torch
import torch.distributed as dist
from served import OutputGap, checkpoint_digests, output_gap
from torch import Tensor
from torch.nn import Parameter
from transformers import LlamaForCausalLM

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.actors.errors import StaleWeightsError
from rpa_ray.actors.pools import RolloutPool
from rpa_ray.actors.rollout import Generated, Sampling
from rpa_ray.weight_sync.source import ShardedSource
from rpa_ray.weight_sync.sync import WeightSync
from rpa_ray.weight_sync.verify import ServedWeightsError, verify_served

GREEDY = Sampling(max_new_tokens=40, seed=0, eos_token_id=2, greedy=True)
SAMPLED = Sampling(max_new_tokens=40, seed=3, eos_token_id=2)

pytestmark = [pytest.mark.timeout(1500), pytest.mark.computes]


class SourceWithZeros(ShardedSource):
    """Sends zeros in place of one matrix."""

    def _read(self, group: list[str]) -> list[Tensor]:
        weights = super()._read(group)
        zeroed = "model.layers.2.mlp.down_proj.weight"
        return [w * 0 if n == zeroed else w for n, w in zip(group, weights, strict=True)]


class SourceWithoutALayer(ShardedSource):
    """Forgets one layer."""

    def iter_groups(self) -> Iterator[tuple[list[str], list[Tensor]]]:
        for names, weights in super().iter_groups():
            if not names[0].startswith("model.layers.2."):
                yield names, weights


def source_of(model: LlamaForCausalLM, kind: type[ShardedSource] = ShardedSource) -> ShardedSource:
    return kind(model.named_parameters(), dtype=model.dtype)


def sync_of(pool: RolloutPool, source: ShardedSource, config: EngineConfig) -> WeightSync:
    return WeightSync(pool=pool, source=source, engine=config, rank=0)


def gap_to(
    model: LlamaForCausalLM, prompts: list[list[int]], generated: list[Generated]
) -> OutputGap:
    reference = copy.deepcopy(model).float()
    return output_gap(
        logits_of=lambda ids: reference(ids).logits, prompts=prompts, generated=generated
    )


def test_every_weight_arrives_with_the_bytes_of_the_checkpoint(
    rollout_pool: RolloutPool,
    model_a: LlamaForCausalLM,
    engine_config: EngineConfig,
) -> None:
    pushed = sync_of(rollout_pool, source_of(model_a), engine_config).push(1, record_digests=True)
    expected = checkpoint_digests(Path(engine_config.model_path), model_a.dtype)
    verify_served(pool=rollout_pool, expected=expected)
    assert pushed.digests == expected
    # embedding and 4 layers of 9 weights and the last norm; the head is tied
    assert len(expected) == 38
    assert pushed.num_bytes == model_a.dtype.itemsize * sum(p.numel() for p in model_a.parameters())


def test_answers_are_those_of_the_pushed_weights_and_not_of_the_ones_before(
    rollout_pool: RolloutPool,
    model_a: LlamaForCausalLM,
    model_b: LlamaForCausalLM,
    engine_config: EngineConfig,
    prompts: list[list[int]],
) -> None:
    for version, model in enumerate([model_a, model_b]):
        sync_of(rollout_pool, source_of(model), engine_config).push(version)
        greedy = gap_to(model, prompts, rollout_pool.generate(prompts, GREEDY, version))
        assert greedy.num_decided > 100
        assert greedy.num_greedy_differences == 0
        sampled = gap_to(model, prompts, rollout_pool.generate(prompts, SAMPLED, version))
        assert sampled.mean_logprob_gap <= 0.02


def test_pushing_weights_again_gives_their_answers_again(
    rollout_pool: RolloutPool,
    model_a: LlamaForCausalLM,
    model_b: LlamaForCausalLM,
    engine_config: EngineConfig,
    prompts: list[list[int]],
) -> None:
    answers = []
    for version, model in enumerate([model_a, model_b, model_a]):
        sync_of(rollout_pool, source_of(model), engine_config).push(version)
        answers.append(
            [rollout_pool.generate(prompts, sampling, version) for sampling in (GREEDY, SAMPLED)]
        )
    assert answers[0] == answers[2]
    assert answers[0] != answers[1]


def test_a_wrong_push_is_caught_by_its_bytes_and_by_its_answers(
    rollout_pool: RolloutPool,
    model_a: LlamaForCausalLM,
    model_b: LlamaForCausalLM,
    engine_config: EngineConfig,
    prompts: list[list[int]],
) -> None:
    sync_of(rollout_pool, source_of(model_b), engine_config).push(1)
    wrong = source_of(model_a, SourceWithZeros)
    sync_of(rollout_pool, wrong, engine_config).push(2, record_digests=True)
    with pytest.raises(ServedWeightsError, match=r"model\.layers\.2\.mlp\.down_proj"):
        verify_served(
            pool=rollout_pool,
            expected=checkpoint_digests(Path(engine_config.model_path), model_a.dtype),
        )
    gap = gap_to(model_a, prompts, rollout_pool.generate(prompts, GREEDY, 2))
    assert gap.num_greedy_differences > 0
    assert gap.mean_logprob_gap > 0.25


def test_a_push_that_leaves_weights_as_they_were_is_refused_and_serves_nothing(
    rollout_pool: RolloutPool,
    model_a: LlamaForCausalLM,
    model_b: LlamaForCausalLM,
    engine_config: EngineConfig,
    prompts: list[list[int]],
) -> None:
    sync_of(rollout_pool, source_of(model_b), engine_config).push(1)
    lacking = sync_of(rollout_pool, source_of(model_a, SourceWithoutALayer), engine_config)
    with pytest.raises(ValueError, match=r"every parameter .* 'model\.layers\.2\..*\(\d+ in all\)"):
        lacking.push(2)
    with pytest.raises(StaleWeightsError):
        rollout_pool.generate(prompts, GREEDY, 2)


def test_a_push_without_digests_does_not_pass_as_verified(
    rollout_pool: RolloutPool, model_a: LlamaForCausalLM, engine_config: EngineConfig
) -> None:
    sync_of(rollout_pool, source_of(model_a), engine_config).push(1)
    with pytest.raises(ServedWeightsError, match="38 missing"):
        verify_served(
            pool=rollout_pool,
            expected=checkpoint_digests(Path(engine_config.model_path), model_a.dtype),
        )


def test_nothing_is_served_after_half_a_push_and_the_next_push_is_whole(
    rollout_pool: RolloutPool,
    model_a: LlamaForCausalLM,
    model_b: LlamaForCausalLM,
    engine_config: EngineConfig,
    prompts: list[list[int]],
) -> None:
    sync_of(rollout_pool, source_of(model_b), engine_config).push(1)
    query = model_b.model.layers[0].self_attn.q_proj.weight.detach()
    rollout_pool.call_all("start_weight_update", False)
    rollout_pool.call_all(
        "update_weights",
        {
            "update_info": {
                "names": ["model.layers.0.self_attn.q_proj.weight"],
                "dtype_names": [str(model_b.dtype).removeprefix("torch.")],
                "shapes": [[128, 128]],
                "buffer": [ray.put(query.contiguous().view(torch.uint8).view(-1).numpy())],
            }
        },
    )
    with pytest.raises(StaleWeightsError):
        rollout_pool.generate(prompts, GREEDY, 1)
    sync_of(rollout_pool, source_of(model_a), engine_config).push(2)
    gap = gap_to(model_a, prompts, rollout_pool.generate(prompts, GREEDY, 2))
    assert gap.num_greedy_differences == 0
    assert gap.mean_logprob_gap <= 0.02


def test_a_weight_filter_changes_what_is_served_and_not_the_policy(
    rollout_pool: RolloutPool, model_a: LlamaForCausalLM, engine_config: EngineConfig
) -> None:
    before = model_a.model.norm.weight.detach().clone()
    source = ShardedSource(
        model_a.named_parameters(),
        dtype=model_a.dtype,
        weight_filter=lambda name, weight: (
            weight.mul_(2) if name == "model.norm.weight" else weight
        ),
    )
    sync_of(rollout_pool, source, engine_config).push(1, record_digests=True)
    with pytest.raises(ServedWeightsError, match=r"1 different \(model\.norm\.weight\)"):
        verify_served(
            pool=rollout_pool,
            expected=checkpoint_digests(Path(engine_config.model_path), model_a.dtype),
        )
    assert torch.equal(model_a.model.norm.weight, before)


class Rank:
    """A learner rank that gathers by a collective and can kill the engine in the middle."""

    def __init__(self, rank: int, rendezvous: str) -> None:
        self.rank = rank
        self.num_gathers = 0
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)

    def push(
        self, model: LlamaForCausalLM, pool: RolloutPool, config: EngineConfig, victim: int
    ) -> tuple[int, int]:
        def gather(parameters: Sequence[Parameter]) -> object:
            return self._gather(victim)

        source = ShardedSource(model.named_parameters(), dtype=model.dtype, gather=gather)
        sync = WeightSync(pool=pool, source=source, engine=config, rank=self.rank)
        return sync.push(7).num_attempts, self.num_gathers

    @contextmanager
    def _gather(self, victim: int) -> Iterator[None]:
        self.num_gathers += 1
        if self.rank == 0 and self.num_gathers == 3:
            os.kill(victim, signal.SIGKILL)
        dist.barrier()
        yield


def test_an_engine_killed_in_the_middle_of_a_push_is_rebuilt_and_no_rank_hangs(
    rollout_pool: RolloutPool,
    model_a: LlamaForCausalLM,
    engine_config: EngineConfig,
    prompts: list[list[int]],
    tmp_path: Path,
) -> None:
    victim = rollout_pool.load(engine_config)[0].process.pid
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    ranks = [
        ray.remote(Rank).options(num_cpus=0.5).remote(rank, f"file://{tmp_path}/rendezvous")
        for rank in range(2)
    ]
    pushed = ray.get(
        [rank.push.remote(model_a, rollout_pool, engine_config, victim) for rank in ranks],
        timeout=600,
    )
    # 3 of 6 layer groups in the push that broke, and all in the one that did not
    assert pushed == [(2, 9), (2, 9)]
    gap = gap_to(model_a, prompts, rollout_pool.generate(prompts, GREEDY, 7))
    assert gap.num_greedy_differences == 0
