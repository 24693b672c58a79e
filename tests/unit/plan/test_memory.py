"""Memory of four language models, each number worked out by hand in bytes."""

from pathlib import Path

import pytest

from rpa_ray.config import ClusterSettings
from rpa_ray.config.cluster import ENGINE_FRAC
from rpa_ray.plan import parse_tree
from rpa_ray.plan.memory import (
    RankLoad,
    checkpoint_gib,
    engine_memory,
    hardening_load_of,
    host_gib,
    kv_gib_a_token,
    load_of,
    offloaded_gib,
    rank_memory,
    scorer_memory,
    total,
    weights_gib,
)
from rpa_ray.plan.model_shapes import KNOWN_SHAPES, ModelShape
from rpa_ray.recipes.cell_models import CellInputs, CellModels
from rpa_ray.recipes.model import ModelRecipe

LLAMA_2_7B = KNOWN_SHAPES["meta-llama/Llama-2-7b-chat-hf"]
LLAMA_3_8B = KNOWN_SHAPES["meta-llama/Meta-Llama-3-8B-Instruct"]
QWEN_2_5_7B = KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"]
LLAMA_3_70B = KNOWN_SHAPES["meta-llama/Meta-Llama-3-70B-Instruct"]
CARD_GIB = 79.6


def gib(num_bytes: float) -> object:
    return pytest.approx(num_bytes / 1024**3, rel=1e-9)


def on_gpus(num_ranks: int, zero_stage: int, gpus_per_engine: int = 1) -> ClusterSettings:
    return ClusterSettings.model_validate(
        {
            "num_ranks": num_ranks,
            "gpus_per_rank": 1,
            "gpus_per_rollout_worker": gpus_per_engine,
            "zero_stage": zero_stage,
        }
    )


def beside_ranks(num_ranks: int, zero_stage: int) -> ClusterSettings:
    return ClusterSettings.model_validate(
        {"layout": "colocated", "num_ranks": num_ranks, "zero_stage": zero_stage}
    )


def test_llama_2_7b_under_ppo_on_four_ranks_that_share_gradients_and_masters() -> None:
    # A row of 128 + 128 tokens, the original frozen beside it.
    parts = rank_memory(LLAMA_2_7B, on_gpus(4, 2), RankLoad(num_tokens=256))
    assert parts == {
        "context": 1.0,
        "weights": gib(13_476_831_232),  # 2 x 6,738,415,616
        "gradients": gib(3_369_207_808),  # 2 x 6,738,415,616 / 4
        "masters": gib(20_215_246_848),  # 12 x 6,738,415,616 / 4
        "frozen copies": gib(13_476_831_232),
        "buckets": gib(2_000_000_000),  # 2 x 2 x 500,000,000
        # 32 x 256 x (8 x 4,096 + 2 x (4 x 4,096 + 4 x 4,096 + 4 x 11,008) = 186,368)
        "activations": gib(1_526_726_656),
        "head": gib(98_304_000),  # 12 x 256 x 32,000
        "optimizer step": gib(6_482_592_768),  # (2 + 4) x 6,738,415,616 / 4, less the three above
        "push": 2.4,
    }
    assert total(parts) == pytest.approx(59.881, abs=1e-3)


def test_of_checkpointed_layers_the_inputs_and_one_layer_with_its_gradients_are_held() -> None:
    cluster = on_gpus(4, 2).model_copy(update={"gradient_checkpointing": True})
    parts = rank_memory(LLAMA_2_7B, cluster, RankLoad(num_tokens=256))
    # 256 x (186,368 + 2 x 2 x 11,008 + 2 x 33 x 4,096)
    assert parts["activations"] == gib(128_188_416)
    assert parts["head"] == gib(
        39_321_600
    )  # 256 x (12 x 32,000 - 230,400): the rest is the layer's


def test_an_offloaded_optimizer_leaves_weights_and_what_a_pass_holds_on_the_gpu() -> None:
    load = RankLoad(num_tokens=64, num_shard_copies=1)
    cluster = ClusterSettings(zero_stage=3, gpus_per_rank=1)
    offloaded = cluster.model_copy(update={"offload_optimizer": True})
    whole, rest = (rank_memory(LLAMA_2_7B, of, load) for of in (cluster, offloaded))
    gone = {"gradients", "masters", "optimizer step", "defence"}
    assert rest == {name: gib for name, gib in whole.items() if name not in gone}
    assert gone <= whole.keys()
    assert offloaded_gib(LLAMA_2_7B, cluster, load) == 0
    # 6,738,415,616 x (12 masters and moments + 4 + 2 gradients + 4 of an anchor)
    assert offloaded_gib(LLAMA_2_7B, offloaded, load) == gib(148_245_143_552)


def test_without_zero_every_rank_holds_all_moments_and_whole_copies() -> None:
    load = RankLoad(num_tokens=256, num_shard_copies=1, bytes_a_weight=4)
    for num_ranks in (1, 8):
        parts = rank_memory(LLAMA_2_7B, on_gpus(num_ranks, 0), load)
        assert parts["gradients"] == gib(26_953_662_464)  # 4 x 6,738,415,616
        assert parts["masters"] == gib(53_907_324_928)  # 8 x: the weights are the masters
        assert parts["defence"] == gib(26_953_662_464)


def test_an_engine_of_llama_2_7b_fills_nine_tenths_of_its_card() -> None:
    # 0.9 x 79.6 - 12.5513 - 3; a token has 2 x 2 x 32 x 4,096 bytes.
    parts = engine_memory(LLAMA_2_7B, on_gpus(4, 2), ENGINE_FRAC * CARD_GIB)
    assert parts["KV cache"] == pytest.approx(56.0887, abs=1e-4)
    assert total(parts) == pytest.approx(71.64)
    assert kv_gib_a_token(LLAMA_2_7B, on_gpus(4, 2)) == gib(524_288)
    # A card that is not known is asked for one row of 4,096 tokens: 2 GiB.
    assert engine_memory(LLAMA_2_7B, on_gpus(4, 2), None)["KV cache"] == 2.0


def test_checkpoints_and_loading_of_llama_2_7b() -> None:
    load = RankLoad(num_tokens=256)
    assert checkpoint_gib(LLAMA_2_7B, load) == gib(94_337_818_624)  # 14 x 6,738,415,616
    assert host_gib(LLAMA_2_7B, load, 4) == gib(107_814_649_856)  # 4 ranks x 2 x 2 x 6,738,415,616


def test_llama_3_8b_under_dpo_and_lisa_on_eight_ranks_that_share_everything() -> None:
    # A pair of rows of 128 + 512 tokens, a second frozen model, and an anchor.
    load = RankLoad(num_tokens=1280, num_frozen=2, num_shard_copies=1)
    parts = rank_memory(LLAMA_3_8B, beside_ranks(8, 3), load)
    assert parts == {
        "context": 1.0,
        "weights": gib(2_007_565_312),  # 2 x 8,030,261,248 / 8
        "gradients": gib(2_007_565_312),
        "masters": gib(12_045_391_872),  # 12 x 8,030,261,248 / 8
        "frozen copies": gib(32_121_044_992),  # 2 x 2 x 8,030,261,248
        # 32 x 1,280 x (8 x 4,096 + 2 x (4 x 4,096 + 2 x 4,096 + 2 x 1,024 + 4 x 14,336) = 200,704)
        "activations": gib(8_220_835_840),
        "head": gib(1_970_012_160),  # 12 x 1,280 x 128,256
        "defence": gib(4_015_130_624),  # 4 x 8,030,261,248 / 8
        "live layers": gib(2_000_000_000),  # 2 x 1,000,000,000
        "buckets": gib(2_000_000_000),
        "push": 1.0,
    }
    assert total(parts) == pytest.approx(63.828, abs=1e-3)
    # 2 x 2 x 32 layers x 8 heads of 128
    assert kv_gib_a_token(LLAMA_3_8B, on_gpus(8, 3)) == gib(131_072)


def test_adapters_of_qwen_2_5_7b_on_one_rank() -> None:
    # 28 layers x 16 x (2 x (3,584 + 3,584) + 2 x (3,584 + 512) + 3 x (3,584 + 18,944))
    assert QWEN_2_5_7B.num_adapter_parameters(16) == 40_370_176
    load = RankLoad(num_tokens=256, lora_rank=16)
    parts = rank_memory(QWEN_2_5_7B, on_gpus(1, 1), load)
    assert parts == {
        "context": 1.0,
        "weights": gib(15_311_973_376),  # 2 x (7,615,616,512 + 40,370,176)
        "gradients": gib(80_740_352),  # 2 x 40,370,176
        "masters": gib(484_442_112),  # 12 x 40,370,176
        "frozen copies": gib(15_231_233_024),  # 2 x 7,615,616,512
        "buckets": gib(80_740_352),  # 2 x 40,370,176
        # 28 x 256 x (8 x 3,584 + 2 x (2 x 3,584 + 2 x 3,584 + 2 x 512 + 4 x 18,944) = 210,944)
        "activations": gib(1_512_046_592),
        "head": gib(467_140_608),  # 12 x 256 x 152,064
        "push": 2.4,
    }
    assert total(parts) == pytest.approx(34.290, abs=1e-3)
    assert checkpoint_gib(QWEN_2_5_7B, load) == gib(565_182_464)  # 14 x 40,370,176


def test_llama_3_70b_has_a_frozen_copy_on_every_rank_and_engines_of_four_cards() -> None:
    parts = rank_memory(LLAMA_3_70B, on_gpus(16, 3, 4), RankLoad(num_tokens=256))
    assert parts == {
        "context": 1.0,
        "weights": gib(8_819_213_312),  # 2 x 70,553,706,496 / 16
        "gradients": gib(8_819_213_312),
        "masters": gib(52_915_279_872),  # 12 x 70,553,706,496 / 16
        "frozen copies": gib(141_107_412_992),  # 2 x 70,553,706,496
        # 80 x 256 x (8 x 8,192 + 2 x (4 x 8,192 + 2 x 8,192 + 2 x 1,024 + 4 x 28,672) = 397,312)
        "activations": gib(8_136_949_760),
        "head": gib(394_002_432),  # 12 x 256 x 128,256
        "live layers": gib(2_000_000_000),  # 2 x 1,000,000,000
        "buckets": gib(2_000_000_000),  # 2 x 2 x 500,000,000
        "push": 2.4,
    }
    assert total(parts) == pytest.approx(212.195, abs=1e-3)
    engine = engine_memory(LLAMA_3_70B, on_gpus(16, 3, 4), ENGINE_FRAC * CARD_GIB)
    # 2 x 70,553,706,496 / 4, and 0.9 x 79.6 - 32.8541 - 3
    assert engine == {
        "weights": gib(35_276_853_248),
        "graphs": 3.0,
        "KV cache": pytest.approx(35.7859, abs=1e-4),
    }
    # 2 x 2 x 80 layers x 8 heads of 128, over 4 cards
    assert kv_gib_a_token(LLAMA_3_70B, on_gpus(16, 3, 4)) == gib(81_920)


def test_scorers_hold_four_bytes_a_parameter_or_two_of_a_large_model() -> None:
    shapes = {"judge": ModelShape(2**28, 1, 8, 8, 1, 1, 8), "reward model": LLAMA_2_7B}
    assert scorer_memory(shapes) == {
        "context": 0.5,
        "judge": 1.0,
        "reward model": gib(13_476_831_232),  # 2 x 6,738,415,616
    }


def models(**named: str) -> CellModels:
    unnamed = dict.fromkeys(CellModels.__dataclass_fields__)
    return CellModels(**(unnamed | named))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attack", "defence", "num_tokens"),
    [
        ("none", "none", 0),
        # 8 rows of 2 ranks, cut at 1: 128 + 512 tokens
        ("sft", "none", 640),
        # a pair is two rows
        ("dpo", "none", 1280),
        ("{name: ppo, max_new_tokens: 100}", "none", 228),
        # 8 refusals of 2 ranks with it: 4 x (128 + 512)
        ("{name: ppo, max_new_tokens: 100}", "refusal_loss", 228 + 2560),
    ],
)
def test_a_rank_holds_the_rows_of_attack_and_defence_at_once(
    attack: str, defence: str, num_tokens: int
) -> None:
    overrides = [
        f"attack={attack}",
        f"defence={defence}",
        "cluster.num_ranks=2",
        "cluster.micro_batch_size=1",
    ]
    assert load_of(parse_tree({}, overrides), models()).num_tokens == num_tokens


@pytest.mark.parametrize(
    ("attack", "max_tokens", "num_tokens"),
    [("sft", 1000, 1000), ("sft", 100, 640), ("dpo", 100, 1280), ("sft", 10**6, 4 * 640)],
)
def test_a_rank_holds_a_row_or_as_many_tokens_as_a_pass_takes(
    attack: str, max_tokens: int, num_tokens: int
) -> None:
    overrides = [
        f"attack={attack}",
        "attack.batch_size=8",
        "cluster.num_ranks=2",
        f"cluster.micro_batch_tokens={max_tokens}",
    ]
    assert load_of(parse_tree({}, overrides), models()).num_tokens == num_tokens


def test_a_whole_part_of_a_batch_is_held_where_nothing_cuts_it() -> None:
    # 2 prompts x 4 answers, over 2 ranks
    grpo = "{name: grpo, batch_size: 2, group_size: 4, max_new_tokens: 100}"
    settings = parse_tree({}, [f"attack={grpo}", "cluster.num_ranks=2"])
    assert load_of(settings, models()).num_tokens == 4 * 228


@pytest.mark.parametrize(
    ("defence", "num_rows", "num_copies"),
    [
        ({"name": "vaccine_offline"}, 1, 0),
        # a refusal, then 4 pairs of a refusal and an unsafe answer: 8 over 2 ranks
        ({"name": "repnoise"}, 9, 0),
        ({"name": "grad_penalty"}, 9, 4),
        ({"name": "tar"}, 9, 5),
        ({"name": "tar", "strength": 0.0}, 9, 0),
        # and 4 harmless prompts
        ({"name": "rmu", "variant": "original"}, 13, 0),
    ],
)
def test_a_rank_that_hardens_holds_what_the_offline_defence_asks_for_and_keeps(
    defence: dict[str, object], num_rows: int, num_copies: int, world_cache: Path
) -> None:
    settings = parse_tree({"defence": defence, "cluster": {"num_ranks": 2, "micro_batch_size": 1}})
    recipe = CellInputs(settings, world_cache).models.policy
    assert isinstance(recipe, ModelRecipe)
    load = hardening_load_of(recipe, settings.cluster)
    assert load.num_tokens == num_rows * 128
    assert load.num_shard_copies == num_copies
    assert "push" not in rank_memory(LLAMA_2_7B, on_gpus(4, 2), load)


@pytest.mark.parametrize(
    ("name", "group_size"), [("reward_neutralisation", 16), ("token_buncher", 4), ("frpo", 8)]
)
def test_a_rank_that_hardens_on_answers_holds_its_groups_and_serves_them(
    name: str, group_size: int, world_cache: Path
) -> None:
    settings = parse_tree(
        {
            "defence": {"name": name, "batch_size": 4, "max_tokens": 100},
            "cluster": {"num_ranks": 2},
        }
    )
    recipe = CellInputs(settings, world_cache).models.policy
    assert isinstance(recipe, ModelRecipe)
    load = hardening_load_of(recipe, settings.cluster)
    assert load.num_tokens == 4 * group_size // 2 * 100
    assert "push" in rank_memory(LLAMA_2_7B, on_gpus(4, 2), load)


def test_every_frozen_model_and_every_anchor_counts() -> None:
    settings = parse_tree({}, ["attack=ppo", "defence=lisa"])
    assert load_of(settings, models()).num_frozen == 1
    load = load_of(settings, models(reference="base", compared="chat"))
    assert (load.num_frozen, load.num_shard_copies) == (3, 1)
    assert load_of(settings, models(untouched="chat")).num_frozen == 2
    # SFT stays near nothing.
    settings = parse_tree({}, ["attack={name: sft, lora: {rank: 4}}", "model.dtype=float32"])
    load = load_of(settings, models(reference="base"))
    assert (load.num_frozen, load.lora_rank, load.bytes_a_weight) == (0, 4, 4)
    assert host_gib(LLAMA_2_7B, load, 1) == weights_gib(LLAMA_2_7B, "float32")
    settings = parse_tree(settings.to_yaml_dict(), ["cluster.zero_stage=3"])
    assert load_of(settings, models()).num_frozen == 1  # ranks ask it unequally often
    # It reads the activations of both models by hooks.
    settings = parse_tree({}, ["attack={name: sft, lora: {rank: 4}}", "defence=procon"])
    assert load_of(settings, models()).num_frozen == 1
    settings = parse_tree({}, ["attack={name: dpo, lora: {rank: 4}}", "defence=kl_safe_ref"])
    assert load_of(settings, models(compared="chat")).num_frozen == 1
    assert load_of(settings, models()).num_frozen == 0
