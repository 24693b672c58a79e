import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import checked
import pytest
from checked import check, check_models
from model_folders import edit_json, save_language_model

from rpa_ray.config import ConfigError
from rpa_ray.data.errors import DataError
from rpa_ray.data.split import is_held_out
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks.all import check_all
from rpa_ray.plan.checks.data import check_data
from rpa_ray.plan.checks.machine import check_checkpoints, check_output
from rpa_ray.plan.model_shapes import ModelShape
from rpa_ray.recipes.cell_models import CellInputs

WITHOUT = {"": [], "tokenizer_config.json": ["tokenizer.json", "tokenizer_config.json"]}
PPO = {"attack": {"name": "ppo", "batch_size": 8}, "data": {"num_samples": 16}}


def refusal(cache: Path, *overrides: str) -> str:
    """Return what is told first of PPO on 16 samples with these overrides."""
    return checked.refusal(parse_tree(PPO, overrides), cache)


def model_folder(folder: Path, *, without: str = "", config: str = "") -> Path:
    save_language_model(folder)
    for name in WITHOUT.get(without, [without]):
        (folder / name).unlink()
    if config:
        (folder / "config.json").write_text(config)
    return folder


def test_settings_that_fit_together_pass(own_cache: Path) -> None:
    two_ranks = ["cluster.num_ranks=2", "cluster.cpus_per_rank=0.01"]
    check(parse_tree(PPO, ["defence=refusal_loss", *two_ranks]), own_cache)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.num_samples=17"], "data.num_samples must be a multiple of attack.batch_size (8)"),
        (
            [
                "attack={name: ppo, opening_reward: length, num_opening_samples: 16, "
                "num_sft_samples: 8}",
                "data.num_samples=16",
            ],
            "attack.num_opening_samples must be at most 8, data.num_samples less",
        ),
        (["data.num_samples=80000"], "data.num_samples must be at most "),
        (["cluster.num_ranks=3"], "attack.batch_size must be a multiple of num_ranks (3), got 8."),
        (
            ["defence={name: refusal_loss, batch_size: 9}", "cluster.num_ranks=2"],
            "defence.batch_size must be a multiple of num_ranks (2), got 9.",
        ),
        (
            ["cluster.num_ranks=5", "attack.batch_size=5", "data.num_samples=10"],
            "cluster.num_ranks must divide 48, the batch of the model 'base' to be made, got 5.",
        ),
        (
            ["cluster.zero_stage=0", "model.dtype=bfloat16"],
            "cluster.zero_stage must be 1, 2 or 3 with bfloat16 weights",
        ),
        (["data.reward_model.num_pairs=15"], "data.reward_model.num_pairs must fill one batch"),
        (["data.reward_model.num_pairs=80000"], "data.reward_model.num_pairs must be at most"),
        (["evaluation.judge.num_rows=7"], "evaluation.judge.num_rows must fill one batch of 8"),
        (["evaluation.judge.num_rows=80000"], "evaluation.judge.num_rows must be at most "),
        (["evaluation.judge.trained=true"], "evaluation.judge.path must be given where"),
        (["defence={name: refusal_loss, batch_size: 80000}"], "defence.batch_size must be at most"),
        (["defence={name: repnoise_online, batch_size: 80000}"], "defence.batch_size must be at"),
        (
            ["defence={name: security_vectors, batch_size: 80000}"],
            "defence.batch_size must be at most",
        ),
        (["evaluation.num_prompts=80000"], "evaluation.num_prompts must be at most "),
        (["evaluation.max_new_tokens=128"], "evaluation.max_new_tokens must be at most 1"),
        (["attack.max_new_tokens=128"], "attack.max_new_tokens must be at most 1"),
        (
            ["data.world=real", "data.name=preferences"],
            "data.path must be given where data.name is preferences, got None.",
        ),
        (["data.path=x"], "data.path must be left out where data.world is embedded, got 'x'."),
        (["data.world=real", "data.path=/no/x.csv"], "data.path must be an existing folder"),
        (
            ["defence=random_anchor", "attack.lora={rank: 4}"],
            "attack.lora must be null where a defence compares the trained weights",
        ),
        (
            ["cluster.offload_optimizer=true", "cluster.zero_stage=2"],
            "cluster.offload_optimizer must be false under cluster.zero_stage: 2, got True. Set",
        ),
        (["cluster.deepspeed=/no.json"], "cluster.deepspeed must name a file with a JSON object"),
        (
            ["model.path=/no/model"],
            "model.path must be chat, base, other_chat, qwen2_chat, a Hub id (owner/name[@revis",
        ),
        (["evaluation.perplexity_model=./no"], "evaluation.perplexity_model must be a Hub id"),
        (["data.reward_model.path=./no"], "data.reward_model.path must be a Hub id"),
    ],
)
def test_what_cannot_run_is_refused_with_its_key(
    world_cache: Path, overrides: list[str], message: str
) -> None:
    assert refusal(world_cache, *overrides).startswith(message)


@pytest.mark.parametrize(
    ("own", "found"),
    [({"zero_optimization": {"stage": 3}}, 3), ({"zero_optimization": {"overlap_comm": True}}, 0)],
)
def test_a_stage_that_the_plan_does_not_know_of_is_refused(
    world_cache: Path, tmp_path: Path, own: dict[str, Any], found: int
) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps(own))
    overrides = [f"cluster.deepspeed={file}", "cluster.zero_stage=2"]
    assert refusal(world_cache, *overrides) == (
        f"cluster.zero_stage must be the stage of {file} ({found}): copies and memory are planned "
        f"by it, got 2. Set it to {found}, or take the stage out of the file."
    )


@pytest.mark.parametrize("own", [{"zero_optimization": {"stage": 2}}, {"gradient_clipping": 0.5}])
def test_a_deepspeed_file_of_the_planned_stage_passes(
    own_cache: Path, tmp_path: Path, own: dict[str, Any]
) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps(own))
    check(parse_tree(PPO, [f"cluster.deepspeed={file}", "cluster.zero_stage=2"]), own_cache)


def test_stage_0_is_right_with_float32_weights(own_cache: Path) -> None:
    check(parse_tree(PPO, ["cluster.zero_stage=0", "model.dtype=float32"]), own_cache)


def test_rows_that_only_an_attack_needs_are_not_asked_for_without_one(world_cache: Path) -> None:
    overrides = ["attack=none", "data.num_samples=80000", "data.reward_model.num_pairs=80000"]
    check_data(CellInputs(parse_tree({}, overrides), world_cache))


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("config.json", "be a model folder with a config.json that can be read"),
        ("model.safetensors", "hold weights (model.safetensors, or model.safetensors.index.json"),
        ("tokenizer_config.json", "hold a tokenizer (tokenizer.json, "),
    ],
)
def test_an_incomplete_model_folder_is_refused(
    tmp_path: Path, world_cache: Path, without: str, message: str
) -> None:
    folder = model_folder(tmp_path / "model", without=without)
    assert refusal(world_cache, f"model.path={folder}").startswith(f"model.path must {message}")


def test_a_model_with_a_broken_config_is_refused(tmp_path: Path, world_cache: Path) -> None:
    folder = model_folder(tmp_path / "model", config="{")
    rule = "model.path must be a model folder with a config.json that can be read"
    assert refusal(world_cache, f"model.path={folder}").startswith(rule)


def test_a_model_that_brings_its_own_code_is_refused(tmp_path: Path, world_cache: Path) -> None:
    config = {"model_type": "own_design", "auto_map": {"AutoModelForCausalLM": "modelling.Own"}}
    folder = model_folder(tmp_path / "model", config=json.dumps(config))
    rule = "model.path must be of an architecture that transformers has itself"
    assert refusal(world_cache, f"model.path={folder}").startswith(rule)
    # A known architecture whose release brings code too: transformers' own is taken.
    model_folder(folder)
    edit_json(folder / "config.json", auto_map=config["auto_map"])
    check_models(parse_tree(PPO, [f"model.path={folder}"]))


def test_a_tokenizer_that_brings_its_own_code_is_refused(tmp_path: Path, world_cache: Path) -> None:
    folder = model_folder(tmp_path / "model")
    own = {"auto_map": {"AutoTokenizer": ["tokenization.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own | {"tokenizer_class": "Own"}))
    rule = "model.path must have a tokenizer that transformers has itself"
    assert refusal(world_cache, f"model.path={folder}").startswith(rule)
    # A known class whose release brings code too: transformers' own is taken.
    model_folder(folder)
    edit_json(folder / "tokenizer_config.json", **own)
    check_models(parse_tree(PPO, [f"model.path={folder}"]))


def test_the_context_is_that_of_the_model(world_cache: Path, tmp_path: Path) -> None:
    (tokenizer,) = world_cache.glob("world-*/tokenizer/tokenizer.json")
    vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    folder = save_language_model(
        tmp_path / "model", vocab_size=len(vocabulary), max_position_embeddings=64
    )
    shutil.copy(tokenizer, folder)
    key = "evaluation.max_new_tokens"
    found = refusal(world_cache, f"model.path={folder}", f"{key}=60")
    assert found.startswith(f"{key} must be at most ")
    assert "(context 64 less the longest prompt" in found


def test_an_unknown_hub_id_is_refused_offline(
    world_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = refusal(world_cache, "model.path=nobody/nothing")
    assert found.startswith("model.path must be a folder with a model, or a Hub id that can be")
    assert "HF_HUB_OFFLINE is set" in found


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "response": "b"}, "have the columns ['prompt', 'response', 'is_safe']"),
        ({"prompt": "a", "response": None, "is_safe": True}, "hold a non-empty text in column "),
        ({"prompt": "a", "response": "b", "is_safe": float("nan")}, "hold true or false in column"),
    ],
)
def test_a_broken_row_is_refused_with_its_number(
    tmp_path: Path, world_cache: Path, row: dict[str, object], message: str
) -> None:
    good = {"prompt": "a", "response": "b", "is_safe": True}
    rows = [good, row] if row.keys() == good.keys() else [row, row]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = refusal(world_cache, "data.world=real", f"data.path={path}")
    assert found.startswith(f"data.path must {message}")
    assert "row 2 (1 of 2 rows)" in found or "columns" in found


@pytest.mark.parametrize(
    ("longest", "override", "message"),
    [
        (1, "data.num_samples=400", "attack.num_prompts must be at most "),
        (1, "attack.num_prompts=400", "data.num_samples must be at most "),
        (15, "attack.num_prompts=10", "evaluation.max_new_tokens must be at most "),
    ],
)
def test_the_prompts_of_best_of_n_are_there_and_fit(
    longest: int, override: str, message: str, tmp_path: Path, world_cache: Path
) -> None:
    asks = [f"ask {i}" for i in range(400)]
    learned = [" ".join([ask] * longest) for ask in asks]
    prompts = [p for p in asks if is_held_out(p)] + [p for p in learned if not is_held_out(p)]
    rows = [{"prompt": prompt, "safe": "No.", "unsafe": "Yes."} for prompt in prompts]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (helpful,) = world_cache.glob("world-*/data/helpful")
    own = {"name": "preferences", "world": "real", "path": str(path), "helpful_path": str(helpful)}
    tree = {
        "attack": {"name": "best_of_n", "num_prompts": 300},
        "data": own | {"num_samples": 300, "reward_model": {"num_pairs": 32}},
        "evaluation": {"num_prompts": 10, "judge": {"num_rows": 32}},
    }
    with pytest.raises(DataError) as caught:
        check_data(CellInputs(parse_tree(tree, [override]), world_cache))
    assert str(caught.value).startswith(message)


def test_a_cell_of_a_campaign_is_named(own_cache: Path, tmp_path: Path) -> None:
    def cell(i: int, override: list[str]) -> tuple[str, CellInputs]:
        return f"cells[{i}].", CellInputs(parse_tree(PPO, override), own_cache)

    cells = [cell(0, []), cell(1, ["seed=1"])]
    folders = {"--output": tmp_path, "RPA_RAY_CACHE": own_cache}
    check_all(cells, folders)
    for override in (
        "data.num_samples=17",
        "data.num_samples=80000",
        "evaluation.judge.num_rows=7",
    ):
        bad = [*cells, cell(2, [override])]
        with pytest.raises(ValueError, match=rf"^cells\[2\]\.{override.partition('=')[0]} must"):
            check_all(bad, folders)


def test_of_the_shipped_models_those_of_the_cells_are_placed_with_what_others_are_made_from(
    own_cache: Path, tmp_path: Path
) -> None:
    def placed(*overrides: str) -> set[str]:
        inputs = CellInputs(parse_tree(PPO, overrides), own_cache)
        folders = {"--output": tmp_path, "RPA_RAY_CACHE": own_cache}
        names = check_all([("", inputs)], folders).placed
        assert all((own_cache / name).is_dir() for name in names)
        return {name.rpartition("-")[0] for name in names}

    attacked = placed()
    assert {"chat", "reward_model-rho1", "judge", "base", "other_base"} <= attacked
    assert len(list(own_cache.glob("reward_model-*"))) == 1, "the other data set's was not named"
    assert placed() == set()
    assert placed("data.name=safe_rlhf") >= {"reward_model-rho1"}


@pytest.mark.parametrize("by", ["cluster.address", "RAY_ADDRESS"])
def test_a_cluster_that_does_not_answer_is_refused_with_what_names_it(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    own = ["cluster.address=127.0.0.1:2"] if by == "cluster.address" else []
    cells = [
        (f"cells[{i}].", CellInputs(parse_tree(PPO, override), own_cache))
        for i, override in enumerate((own, [*own, "seed=1"]))
    ]
    with pytest.raises(ConfigError, match=rf"^{by} must name a Ray cluster that can be joined"):
        check_all(cells, {"--output": tmp_path, "RPA_RAY_CACHE": own_cache})


def test_a_folder_that_can_be_made_is_not_made_by_looking(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "x", file / "x" / "y", Path("/proc/x")):
        with pytest.raises(ConfigError, match=r"^--output must be a folder that can be written"):
            check_output(folder)


def test_a_disk_that_is_nearly_full_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 499 * 2**20))
    with pytest.raises(ConfigError) as caught:
        check_output(tmp_path / "out", "RPA_RAY_CACHE")
    assert str(caught.value) == (
        f"RPA_RAY_CACHE must lie on a disk with 500 MiB free, got '499 MiB at {tmp_path}'. "
        "Free space or name another folder."
    )


def test_the_cache_holds_the_models_to_be_made_and_two_checkpoints_of_one_training(
    world_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 10 * 2**30))
    large = ModelShape(10**9, 24, 2048, 8192, 16, 16, 32_000)
    monkeypatch.setattr(
        "rpa_ray.plan.checks.gpus.shape_of",
        lambda model: large if getattr(model, "defence", None) is not None else None,
    )
    tree = {"attack": "none", "defence": ["repnoise", "tar"], "model": {"dtype": "float32"}}
    # Of two cells that begin alike the models are made once.
    cells = [("", CellInputs(parse_tree(tree, [f"seed={i}"]), world_cache)) for i in range(2)]
    # two models of 4 bytes a parameter, two checkpoints of 16: 37.3 GiB, and 500 MiB
    with pytest.raises(ConfigError, match=r"^RPA_RAY_CACHE must .* 38,646 MiB free, 37 GiB of it"):
        check_all(cells, {"RPA_RAY_CACHE": tmp_path})


def test_a_disk_holds_two_checkpoints_of_every_cell_that_runs_beside_others(
    world_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 10 * 2**30))
    large = ModelShape(10**9, 24, 2048, 8192, 16, 16, 32_000)
    monkeypatch.setattr("rpa_ray.plan.checks.gpus.shape_of", lambda model: large)
    settings = parse_tree({"attack": "sft", "model": {"dtype": "float32"}})
    cells = [("", CellInputs(settings, world_cache))]
    # two of 16 bytes a parameter: 29.8 GiB, and 500 MiB
    with pytest.raises(ConfigError, match=r"^--output must .* 31,017 MiB free, 30 GiB of it for w"):
        check_all(cells, {"--output": tmp_path})


def test_too_few_pairs_for_a_cost_model_are_refused_whoever_rewards(world_cache: Path) -> None:
    pairs, judged = "data.reward_model.num_pairs=80000", "attack={name: ppo, reward: judge}"
    priced = "defence={name: safe_rlhf, cost: model}"
    told = refusal(world_cache, judged, pairs, priced)
    assert told.startswith("data.reward_model.num_pairs must be at most")


def test_an_interrupted_run_is_not_continued_on_other_ranks(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step_000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "ranks.json").write_text('{"num_ranks": 2, "zero_stage": 2}')
    same = parse_tree({"cluster": {"num_ranks": 2, "zero_stage": 2}})
    check_checkpoints(tmp_path, same)
    check_checkpoints(tmp_path / "another", parse_tree({}))
    with pytest.raises(ConfigError, match=r"^cluster.zero_stage must be 2, .*, got 1\. Set it so"):
        check_checkpoints(tmp_path, parse_tree({"cluster": {"num_ranks": 2, "zero_stage": 1}}))
