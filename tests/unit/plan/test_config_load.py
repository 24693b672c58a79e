from pathlib import Path

import pytest
import yaml

from rpa_ray.attacks import ATTACKS
from rpa_ray.config import ConfigError, with_absolute_paths
from rpa_ray.defences import DEFENCES
from rpa_ray.plan import load_config, parse_experiment, parse_tree
from rpa_ray.plugin import Need, OnlineDefence, PluginConfig


def load(folder: Path, text: str, *overrides: str) -> list[dict[str, object]]:
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return [cell.to_yaml_dict() for cell in load_config(path, overrides).campaign.cells]


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ("opening_reward: length", "num_opening_samples must be above 0 where opening_reward is"),
        ("num_opening_samples: 8", "num_opening_samples must be above 0 where opening_reward is"),
        (
            "opening_reward: warmth, num_opening_samples: 8, stop_at_reward: 1.0",
            "stop_at_reward must be null beside opening_reward, got 1.0",
        ),
    ],
)
def test_an_opening_reward_comes_with_its_samples_and_without_a_stop(
    settings: str, rule: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rule):
        load(tmp_path, f"attack: {{name: ppo, {settings}}}")


def test_a_file_holds_departures_and_the_rest_are_defaults(tmp_path: Path) -> None:
    (cell,) = load(tmp_path, "attack: {name: ppo, kl_coef: 0.1}\n", "data.rho=0.5", "seed=3")
    assert cell["seed"] == 3
    assert parse_experiment({}).data.rho == 1.0
    assert parse_tree(cell).data.rho == 0.5
    assert parse_tree(cell).attack == ATTACKS["ppo"].Config(name="ppo", kl_coef=0.1)


def test_the_resolved_settings_as_yaml_give_the_same_settings() -> None:
    settings = parse_experiment(
        {"attack": "ppo", "defence": "refusal_loss", "cluster": {"deepspeed": "ds.json"}}
    )
    assert parse_experiment(yaml.safe_load(yaml.safe_dump(settings.to_yaml_dict()))) == settings


def test_the_name_of_a_config_is_that_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    assert load_config(tmp_path / "mine.yaml").name == "mine"


def test_every_cell_is_run_with_every_seed(tmp_path: Path) -> None:
    text = "kind: campaign\nattack: ppo\nseeds: [4, 5]\ncells: [{}, {defence: freeze}]\n"
    cells = load(tmp_path, text)
    assert [(cell["seed"], cell["defence"]["name"]) for cell in cells] == [
        (4, "none"),
        (5, "none"),
        (4, "freeze"),
        (5, "freeze"),
    ]


def test_an_override_of_an_attacks_setting_holds_wherever_an_attack_has_it(tmp_path: Path) -> None:
    text = "kind: campaign\nattack: ppo\ncells: [{}, {attack: none}, {attack: {name: grpo}}]\n"
    ppo, none, grpo = load(tmp_path, text, "attack.kl_coef=0.1", "attack.group_size=8")
    assert (ppo["attack"]["kl_coef"], grpo["attack"]["kl_coef"]) == (0.1, 0.1)
    assert "group_size" not in ppo["attack"]
    assert grpo["attack"]["group_size"] == 8
    assert none["attack"] == {"name": "none"}
    found = refusal(tmp_path, text, "attack.nonsense=1")
    assert found.startswith("cells[0].attack.nonsense must be a known key")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dat.rho=1", "dat must be a known key, got"),
        ("data.roh=1", "data.roh must be a known key, got"),
        ("evaluation.judge.num_row=1", "evaluation.judge.num_row must be a known key, got"),
        ("data.rho=1.5", "data.rho must be less than or equal to 1, got 1.5."),
        ("data.rho=-0.1", "data.rho must be greater than or equal to 0, got -0.1."),
        ("data.rho=half", "data.rho must be a valid number, got 'half'."),
        ("data.rho='0.5'", "data.rho must be a valid number, got '0.5'."),
        ("data.rho=true", "data.rho must be a valid number, got True."),
        ("data.rho=.nan", "data.rho must be a finite number, got nan."),
        ("data=5", "data must be a mapping of keys, got 5."),
        ("seed=1.5", "seed must be a valid integer"),
        ("cluster.zero_stage=4", "cluster.zero_stage must be 0, 1, 2 or 3, got 4."),
        (
            "attack=pppo",
            "attack must name one of ['best_of_n', 'dpo', 'grpo', 'none', 'ppo', 'sft'], got ",
        ),
        ("attack=null", "attack must name one of ["),
        ("attack={name: [ppo]}", "attack must name one of ["),
        ("defence=[]", "defence must name a defence, got []."),
        ("defence=[lisa,freez]", "defence[1] must name one of ["),
        ("attack.clip=1", "attack.clip must be a known key, got"),
        ("attack.kl_coef=low", "attack.kl_coef must be a valid number, got 'low'."),
        ("attack.gamma=2", "attack.gamma must be less than or equal to 1, got 2."),
        ("attack=none", "defence must be none where attack is none, got 'refusal_loss'."),
        ("defence.alpa=1", "defence.alpa must be a known key, got"),
        ("kind=campaign", "kind must be a known key, got"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(tmp_path: Path, override: str, message: str) -> None:
    found = refusal(tmp_path, "attack: ppo\ndefence: refusal_loss\n", override)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("attack=pppo", "ppo"), ("defence=refusal-loss", "refusal_loss"), ("data.rh=1", "rho")],
)
def test_the_nearest_known_word_is_named(tmp_path: Path, wrong: str, right: str) -> None:
    assert f". Did you mean {right!r}?" in refusal(tmp_path, "attack: ppo\n", wrong)


CAMPAIGN = "kind: campaign\nattack: ppo\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: campain\n", "kind must be one of ['run', 'campaign', 'sweep'], got 'campain'. Did"),
        ("kind: [run]\n", "kind must be one of"),
        ("cells: [{}]\n", "cells must stand in a campaign, got [{}]."),
        ("seeds: [1]\n", "seeds must stand in a campaign, got [1]."),
        (CAMPAIGN, "cells must be a list with at least one cell, got None."),
        (CAMPAIGN + "cells: []\n", "cells must be a list with at least one cell, got []."),
        (CAMPAIGN + "cells: {}\n", "cells must be a list with at least one cell, got {}."),
        (CAMPAIGN + "cells: [none]\n", "cells[0] must be a mapping of departures, got 'none'."),
        (CAMPAIGN + "cells: [{}]\nseeds: 3\n", "seeds must be a list with at least one seed"),
        (CAMPAIGN + "cells: [{}]\nseeds: []\n", "seeds must be a list with at least one seed"),
        (CAMPAIGN + "cells: [{}]\nseeds: [a]\n", "cells[0].seed must be a valid integer"),
        (CAMPAIGN + "cells: [{seed: 1}]\nseeds: [2]\n", "cells[0].seed must be left out"),
        (CAMPAIGN + "cells: [{}, {data: {rho: 2}}]\n", "cells[1].data.rho must be less than"),
        (CAMPAIGN + "cells: [{}, {attack: dpoo}]\n", "cells[1].attack must name one of"),
        (CAMPAIGN + "cells: [{attack: {gama: 1}}]\n", "cells[0].attack.gama must be a known key"),
        (
            CAMPAIGN + "cells: [{}, {defence: freeze, attack: none}]\n",
            "cells[1].defence must be none where attack is none",
        ),
        (
            CAMPAIGN + "cells: [{}, {seed: 0}]\n",
            "cells[1] must differ from every other cell, got 'the settings and the seed of cells",
        ),
        (CAMPAIGN + "cells: [{}]\nseeds: [1, 1]\n", "cells[0] must differ from every other cell"),
        (
            CAMPAIGN + "cells: [{}, {cluster: {num_ranks: 2}}]\n",
            "cells[1].cluster must be that of every cell of the campaign, got {'num_ranks': 2}.",
        ),
    ],
)
def test_a_file_that_cannot_be_run_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
    ("text", "override", "held"),
    [
        ("cells: [{data: {rho: 0.5}}]\n", "data.rho=1", "cells[0].data.rho is 0.5"),
        ("cells: [{defence: freeze}]\n", "defence=none", "cells[0].defence is {'name': 'freeze'}"),
        ("cells: [{}]\nseeds: [0, 1]\n", "seed=7", "cells[0].seed is 0"),
    ],
)
def test_an_override_that_a_cell_would_hide_is_refused(
    tmp_path: Path, text: str, override: str, held: str
) -> None:
    found = refusal(tmp_path, f"{CAMPAIGN}{text}", override)
    assert found.startswith(f"--set must name a key that no cell sets ({held}")


def test_settings_of_an_attack_that_cells_share_hold_whichever_each_names(tmp_path: Path) -> None:
    text = "kind: campaign\nattack: {batch_size: 16}\n"
    text += "cells: [{attack: sft}, {attack: {name: dpo, beta: 0.2}}, {attack: none}]\n"
    sft, dpo, none = (cell["attack"] for cell in load(tmp_path, text))
    assert (sft["name"], sft["batch_size"]) == ("sft", 16)
    assert (dpo["name"], dpo["batch_size"], dpo["beta"]) == ("dpo", 16, 0.2)
    assert none == {"name": "none"}


def test_the_seeds_of_a_campaign_may_be_replaced(tmp_path: Path) -> None:
    text = f"{CAMPAIGN}cells: [{{}}]\nseeds: [0, 1]\n"
    assert [cell["seed"] for cell in load(tmp_path, text, "seeds=[7, 8, 9]")] == [7, 8, 9]
    assert refusal(tmp_path, "kind: run\n", "seeds=[1]").startswith("seeds must stand in a camp")


def test_a_defence_that_needs_more_than_the_attack_has_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class CostDefence(OnlineDefence):
        needs_attack = frozenset({Need.COSTS})

        class Config(PluginConfig):
            name: str = "cost_defence"

    monkeypatch.setitem(DEFENCES, "cost_defence", CostDefence)
    with pytest.raises(ConfigError) as caught:
        parse_experiment({"attack": "ppo", "defence": "cost_defence"}, "cells[2].")
    assert str(caught.value) == (
        "cells[2].defence must work with an attack that has ['costs'], got 'cost_defence with ppo'."
        " Choose one of the attacks [], or another defence."
    )
    CostDefence.needs_attack = frozenset({Need.VALUES})
    settings = parse_experiment({"attack": "ppo", "defence": "cost_defence"})
    assert settings.defence.name == "cost_defence"


def test_local_paths_become_absolute_and_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    local = with_absolute_paths(parse_tree({"model": {"path": "models/mine"}}))
    assert local.model.path == str(tmp_path / "models" / "mine")
    hub = with_absolute_paths(parse_tree({"model": {"path": "owner/name"}}))
    assert hub.model.path == "owner/name"
    assert with_absolute_paths(parse_tree({})).model.path == "chat"


def test_a_file_named_without_a_folder_is_found_from_elsewhere_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").touch()
    (tmp_path / "chat").mkdir()
    (tmp_path / "beavertails").mkdir()
    tree = {"data": {"world": "real", "path": "mine.jsonl"}, "attack": "dpo"}
    resolved = with_absolute_paths(parse_tree(tree))
    assert resolved.data.path == str(tmp_path / "mine.jsonl")
    assert (resolved.model.path, resolved.data.name) == ("chat", "beavertails")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"kind: sweep\nsweep: {{{', '.join(f'a{i}: [1, 2, 3]' for i in range(20))}}}\n", "sweep"),
        (f"kind: campaign\ngrid: [{', '.join(['[{}, {}, {}]'] * 20)}]\n", "grid"),
        (f"kind: campaign\ncells: [{{}}, {{}}, {{}}]\nseeds: {list(range(7000))}\n", "cells"),
    ],
)
def test_a_file_of_too_many_cells_is_refused_at_once(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "top.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"^{message} must make at most 20,000 cells, got"):
        load_config(tmp_path / "top.yaml")


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_a_scale_that_no_part_names_is_refused(tmp_path: Path, scale: str) -> None:
    (tmp_path / "tiny.yaml").write_text("seed: 1\n")
    (tmp_path / "top.yaml").write_text("attack: none\n")
    with pytest.raises(ConfigError, match=r"^--scale must be left out where no part .* got"):
        load_config(tmp_path / "top.yaml", scale=scale)
    (tmp_path / "top.yaml").write_text('include: ["{scale}.yaml"]\n')
    assert load_config(tmp_path / "top.yaml").campaign.cells[0].seed == 1
    with pytest.raises(ConfigError, match=r"^include must name a YAML file that can be"):
        load_config(tmp_path / "top.yaml", scale=scale)


def test_a_model_may_be_named_by_its_name_alone(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("model: {dtype: float32}\n")
    (tmp_path / "top.yaml").write_text("include: [part.yaml]\nmodel: base\nattack: none\n")
    (cell,) = load_config(tmp_path / "top.yaml").campaign.cells
    assert (cell.model.path, cell.model.dtype) == ("base", "float32")
    (cell,) = load_config(tmp_path / "top.yaml", ["model=chat"]).campaign.cells
    assert (cell.model.path, cell.model.dtype) == ("chat", "float32")
    assert parse_tree({"model": "base"}).model.path == "base"
    (tmp_path / "part.yaml").write_text("model: base\n")
    (tmp_path / "top.yaml").write_text("include: [part.yaml]\nmodel: {dtype: float32}\n")
    (cell,) = load_config(tmp_path / "top.yaml").campaign.cells
    assert (cell.model.path, cell.model.dtype) == ("base", "float32")


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("rho=0.5", "Did you mean 'data.rho'? Known: ["),
        ("num_rows=8", "Did you mean 'evaluation.judge.num_rows' or 'evaluation.second_judge.num"),
        ("attack=PPO", "Did you mean 'ppo'?"),
        ("data.roh=1", "must be a known key, got 'roh'. Did you mean 'rho'? Known: ["),
    ],
)
def test_a_name_that_is_nearly_right_is_advised_first(override: str, advice: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_tree({}, [override])
    assert advice in str(refused.value)


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("kl_coef=1", "Did you mean 'attack.kl_coef'?"),
        ("alpha=1", "Did you mean 'attack.lora.alpha' or 'defence.alpha'?"),
        ("kl_cof=1", "Did you mean 'attack.kl_coef'?"),
        ("attack.alpha=1", "Did you mean 'attack.lora.alpha'?"),
        ("attack.kl_cof=1", "Did you mean 'kl_coef'?"),
        ("gamma=1", "Did you mean 'attack.gamma'?"),
        ("modle=1", "Did you mean 'model'?"),
        ("mu=1", "Choose one of those."),  # of a defence that the cell does not name
    ],
)
def test_a_setting_of_a_plugin_is_advised_with_its_whole_key(override: str, advice: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_tree({"attack": "ppo", "defence": "refusal_loss"}, [override])
    assert f". {advice} Known: [" in str(refused.value)


def test_a_setting_of_one_of_several_defences_is_advised_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"'attack\.beta' or 'defence\[0\]\.beta'\? Known"):
        parse_tree({"attack": "dpo", "defence": ["dpo_beta", "lisa"], "beta": 1})


def test_a_file_beside_the_config_is_found_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for place in (
        "own/mine.jsonl",
        "elsewhere/here.jsonl",
        "own/both.jsonl",
        "elsewhere/both.jsonl",
    ):
        (tmp_path / place).write_text("")
    for name, found in (
        ("mine.jsonl", str(tmp_path / "own/mine.jsonl")),
        ("both.jsonl", str(tmp_path / "own/both.jsonl")),
        ("here.jsonl", "here.jsonl"),
        ("owner/name", "owner/name"),
    ):
        (tmp_path / "own/top.yaml").write_text(f"data: {{world: real, path: {name}}}\n")
        (cell,) = load_config(tmp_path / "own/top.yaml").campaign.cells
        assert cell.data.path == found
    (tmp_path / "own/chat").mkdir()
    (tmp_path / "own/top.yaml").write_text("model: chat\n")
    assert load_config(tmp_path / "own/top.yaml").campaign.cells[0].model.path == "chat"
