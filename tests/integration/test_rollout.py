"""The rollout engine answers with seeds, limits and versions as promised."""

import os
import pickle
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.actors.errors import StaleWeightsError, WorkerError
from rpa_ray.actors.pools import RolloutPool, create_rollout_pool
from rpa_ray.actors.rollout import Sampling
from rpa_ray.cluster.hardware import native_dtype
from rpa_ray.weight_sync.source import ShardedSource
from rpa_ray.weight_sync.sync import WeightSync

SAMPLED = Sampling(max_new_tokens=32, seed=3, eos_token_id=2)
ROUNDS_BY_SHAPE = (
    torch.cpu._is_amx_tile_supported() and native_dtype(on_gpu=False).dtype == "bfloat16"
)
"""AMX kernels take bfloat16 matrices in tiles: last bits hang on how many rows there are."""
GREEDY = replace(SAMPLED, greedy=True)

pytestmark = [pytest.mark.timeout(1500), pytest.mark.computes]


@pytest.fixture(scope="module")
def pool(
    rollout_pool: RolloutPool, model_a: LlamaForCausalLM, engine_config: EngineConfig
) -> RolloutPool:
    source = ShardedSource(model_a.named_parameters(), dtype=model_a.dtype)
    WeightSync(pool=rollout_pool, source=source, engine=engine_config, rank=0).push(5)
    return rollout_pool


def test_another_version_than_the_served_one_is_refused(
    pool: RolloutPool, prompts: list[list[int]]
) -> None:
    with pytest.raises(StaleWeightsError, match=r"rollout worker 0: .* got 4 while 5 is"):
        pool.generate(prompts, SAMPLED, 4)


def test_the_same_seed_gives_the_same_answers_whatever_ran_before(
    pool: RolloutPool, prompts: list[list[int]]
) -> None:
    first = pool.generate(prompts, SAMPLED, 5)
    pool.generate(prompts[::-1], replace(SAMPLED, seed=9, max_new_tokens=7), 5)
    assert pool.generate(prompts, SAMPLED, 5) == first
    assert pool.generate(prompts, replace(SAMPLED, seed=4), 5) != first


def test_an_answer_does_not_depend_on_how_the_batch_is_split(
    pool: RolloutPool, prompts: list[list[int]]
) -> None:
    whole = pool.generate(prompts, SAMPLED, 5)
    # the second worker of a pool of two would get this call
    second = pool.call_each("generate", [(prompts[4:], SAMPLED, 5, 4)])[0]
    if not ROUNDS_BY_SHAPE:
        assert [a.token_ids for a in second] == [a.token_ids for a in whole[4:]]
    for one, other in zip(second, whole[4:], strict=True):
        pairs = list(zip(one.token_ids, other.token_ids, strict=True))
        num_alike = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        assert num_alike > 0
        assert one.logprobs[:num_alike] == pytest.approx(other.logprobs[:num_alike], abs=0.08)


def test_equal_prompts_of_one_batch_get_different_samples_and_one_greedy_answer(
    pool: RolloutPool, prompts: list[list[int]]
) -> None:
    same = [prompts[0]] * 6
    assert len({tuple(a.token_ids) for a in pool.generate(same, SAMPLED, 5)}) == 6
    assert len({tuple(a.token_ids) for a in pool.generate(same, GREEDY, 5)}) == 1


def test_an_answer_ends_with_the_end_token_or_is_cut_at_the_limit(
    pool: RolloutPool, prompts: list[list[int]]
) -> None:
    greedy = pool.generate(prompts, GREEDY, 5)[0]
    assert not greedy.finished
    assert len(greedy.token_ids) == len(greedy.logprobs) == 32
    end = greedy.token_ids[5]
    stopped = pool.generate(prompts, replace(GREEDY, eos_token_id=end), 5)[0]
    assert stopped.finished
    assert stopped.token_ids == greedy.token_ids[: greedy.token_ids.index(end) + 1]


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused(
    pool: RolloutPool, prompts: list[list[int]]
) -> None:
    with pytest.raises(ValueError, match="prompt plus max_new_tokens must be at most 96 tokens"):
        pool.generate([list(range(3, 68))], SAMPLED, 5)


def test_no_prompts_give_no_answers(pool: RolloutPool) -> None:
    assert pool.generate([], SAMPLED, 5) == []


def test_a_pickled_pool_reaches_the_same_workers(
    pool: RolloutPool, prompts: list[list[int]]
) -> None:
    again = pickle.loads(pickle.dumps(pool))
    assert again.generate(prompts, GREEDY, 5) == pool.generate(prompts, GREEDY, 5)


def test_a_worker_that_does_not_answer_in_time_is_named(
    pool: RolloutPool, prompts: list[list[int]]
) -> None:
    hasty = RolloutPool(pool._members, time_limit_s=0.001)
    with pytest.raises(WorkerError, match=r"rollout worker 0 must answer generate, got no answer"):
        hasty.generate(prompts, SAMPLED, 5)


def test_an_engine_for_another_architecture_replaces_the_first(
    pool: RolloutPool,
    model_a: LlamaForCausalLM,
    engine_config: EngineConfig,
    prompts: list[list[int]],
    tmp_path: Path,
) -> None:
    wanted = pool.generate(prompts, GREEDY, 5)
    small = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    ).to(model_a.dtype)
    small.save_pretrained(tmp_path)
    first, second = (
        WeightSync(
            pool=pool,
            source=ShardedSource(model.named_parameters(), dtype=model.dtype),
            engine=replace(engine_config, model_path=folder),
            rank=0,
        )
        for model, folder in ((small, str(tmp_path)), (model_a, engine_config.model_path))
    )
    first.push(6)
    assert all(max(a.token_ids) < 512 for a in pool.generate(prompts, SAMPLED, 6))
    second.push(5)
    assert pool.generate(prompts, GREEDY, 5) == wanted


def test_a_killed_worker_is_named_and_serves_nothing_until_the_next_push(
    pool: RolloutPool,
    model_a: LlamaForCausalLM,
    engine_config: EngineConfig,
    prompts: list[list[int]],
) -> None:
    wanted = pool.generate(prompts, SAMPLED, 5)
    source = ShardedSource(model_a.named_parameters(), dtype=model_a.dtype)
    sync = WeightSync(pool=pool, source=source, engine=engine_config, rank=0)
    sync.push(5)
    (status,) = pool.call_all("status")
    os.kill(status.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"(?s)rollout worker 0 must answer.*its log"):
        pool.generate(prompts, SAMPLED, 5)
    pool.wait_until_up()
    with pytest.raises(StaleWeightsError):
        pool.generate(prompts, SAMPLED, 5)
    sync.push(5)
    assert pool.generate(prompts, SAMPLED, 5) == wanted


def test_a_dead_worker_is_an_error_and_not_a_wait(ray_cluster: None) -> None:
    pool = create_rollout_pool(1, num_cpus=0, time_limit_s=600.0)
    for member in pool._members:
        ray.kill(member.handle, no_restart=True)
    # A killed actor may still answer for a moment.
    deadline = time.monotonic() + 300
    with pytest.raises(WorkerError, match="rollout worker 0"):
        while time.monotonic() < deadline:
            pool.wait_until_up()
            time.sleep(0.05)
