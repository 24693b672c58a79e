import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rpa_ray.config import ConfigError, ExperimentSettings
from rpa_ray.data.errors import DataError
from rpa_ray.plan import load_config, parse_tree
from rpa_ray.plan.checks.all import Checked, check_all
from rpa_ray.plan.checks.following import departures, fitted, following
from rpa_ray.plan.checks.problems import Problems, Refused
from rpa_ray.plan.preflight import planned
from rpa_ray.plan.table import follow_notes, measuring_notes, reading_notes
from rpa_ray.recipes.cell_models import CampaignInputs, CellInputs

NUM_PAIRS = 600


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of one's own preferences."""
    rows = [
        {
            "prompt": f"How do I mend clock {i}?",
            "safe": f"Sorry, I cannot help with clock {i}.",
            "unsafe": f"Turn wheel {i} to the left.",
        }
        for i in range(NUM_PAIRS)
    ]
    path = tmp_path_factory.mktemp("data") / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def own(pairs: Path, *overrides: str, **groups: Any) -> Any:
    data = {"name": "preferences", "world": "real", "path": str(pairs)}
    return parse_tree({"attack": {"name": "ppo", "batch_size": 8}, "data": data}, overrides)


def checked(cache: Path, folder: Path, *settings: Any) -> Checked:
    cells = [(f"cells[{i}].", CellInputs(one, cache)) for i, one in enumerate(settings)]
    return check_all(cells, {"--output": folder})


def test_sizes_that_are_not_set_follow_the_data(
    pairs: Path, own_cache: Path, tmp_path: Path
) -> None:
    asked = own(pairs)
    (found,) = checked(own_cache, tmp_path, asked).settings
    told = departures(asked, found)
    assert set(told) >= {
        "data.num_samples",
        "data.reward_model.num_pairs",
        "evaluation.judge.num_rows",
        "data.helpful_path",
    }
    assert found.data.num_samples % 8 == 0
    assert 8 <= found.data.num_samples < NUM_PAIRS
    assert found.data.helpful_path is None
    # Both judges fit, since the second has the settings of the first.
    assert found.evaluation.second_judge is None
    assert "data.helpful_path: left out" in follow_notes([asked], [found])[0]
    assert checked(own_cache, tmp_path, found).settings == (found,)


def test_all_sizes_that_do_not_fit_are_told_at_once_with_those_that_do(
    pairs: Path, own_cache: Path, tmp_path: Path
) -> None:
    sizes = {
        "data.num_samples": 8000,
        "data.reward_model.num_pairs": 9000,
        "evaluation.judge.num_rows": 90_000,
        "evaluation.num_prompts": 500,
    }
    wrong = own(pairs, *(f"{key}={num}" for key, num in sizes.items()))
    with pytest.raises(Refused) as caught:
        checked(own_cache, tmp_path, wrong, wrong)
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 things must change first:"
    for line, (key, num) in zip(lines[1:5], sizes.items(), strict=True):
        assert f"cells[0].{key} must be at most " in line
        assert f"got {num}" in line and line.endswith("So in 1 more cells.")
    advised = lines[5].removeprefix("This fits the data: --set ").split(" --set ")
    assert [text.partition("=")[0] for text in advised] == list(sizes)
    checked(own_cache, tmp_path, own(pairs, *advised))


def test_a_file_of_another_format_is_told_with_all_that_would_fit_it(
    own_cache: Path, tmp_path: Path
) -> None:
    comparisons = [
        {
            "prompt": f"How do I mend clock {i}?",
            "response_0": f"Sorry, I cannot help with clock {i}.",
            "response_1": f"Turn wheel {i} to the left.",
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "better_response_id": 1,
            "safer_response_id": 0,
        }
        for i in range(NUM_PAIRS)
    ]
    path = tmp_path / "comparisons.jsonl"
    path.write_text("\n".join(map(json.dumps, comparisons)))
    asked = [f"data.path={path}", "data.num_samples=1000"]
    embedded: dict[str, Any] = {"attack": "ppo", "data": {"name": "beavertails"}}
    with pytest.raises(Refused) as caught:
        checked(own_cache, tmp_path, parse_tree(embedded, asked))
    *told, advice = str(caught.value).splitlines()
    assert told[0] == "3 things must change first:"
    assert told[2].endswith("These are the columns of safe_rlhf: set data.name to that.")
    advised = advice.removeprefix("This fits the data: --set ").split(" --set ")
    assert advised[:2] == ["data.world=real", "data.name=safe_rlhf"]
    checked(own_cache, tmp_path, parse_tree(embedded, [*asked, *advised]))


def test_settings_models_data_and_machine_are_told_in_this_order(
    own_cache: Path, tmp_path: Path
) -> None:
    tree = {"attack": {"name": "ppo", "batch_size": 8}, "data": {"num_samples": 17}}
    overrides = ["model.path=/no/model", "evaluation.judge.num_rows=80000"]
    with pytest.raises(Refused) as caught:
        checked(own_cache, tmp_path, parse_tree(tree, [*overrides, "cluster.num_ranks=1024"]))
    keys = [line.split()[1] for line in str(caught.value).splitlines()[1:-1]]
    assert keys[-1] == "cells[0].cluster"
    assert keys[-2] == "cells[0].evaluation.judge.num_rows"
    assert keys[-3] == "cells[0].model.path"
    assert "cells[0].attack.batch_size" in keys


def test_one_thing_alone_is_told_in_one_line() -> None:
    problems = Problems()
    problems.refuse()
    problems.note(ConfigError("seed", "be 1", 2, "Lower it."), "cells[1].")
    with pytest.raises(ConfigError, match=r"^cells\[1\]\.seed must be 1, got 2\. Lower it\.$"):
        problems.refuse()
    sized = Problems()
    sized.note_fitting(DataError("x must be at most 3 (rows), got 4."), "", "x", 3)
    with pytest.raises(DataError, match=r"got 4\. What fits the data: --set x=3$"):
        sized.refuse()


def chat_folder(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_ones_own_chat_model_is_asked_in_its_template_unless_another_is_set(
    tmp_path: Path,
) -> None:
    chat = chat_folder(tmp_path / "chat", {"chat_template": "{{ messages }}"})
    plain = chat_folder(tmp_path / "plain", {})
    asked = parse_tree({"model": {"path": str(chat)}})
    assert following(asked).data.template == "model_chat"
    as_plain = parse_tree({"model": {"path": str(chat)}, "data": {"template": "plain_qa"}})
    assert following(as_plain) == as_plain
    without = parse_tree({"model": {"path": str(plain)}})
    assert following(without) == without
    (plain / "chat_template.jinja").write_text("{{ messages }}")
    assert following(without).data.template == "model_chat"


def test_real_text_is_measured_by_the_model_under_attack_and_none_of_the_fictional_world(
    pairs: Path, world_cache: Path, tmp_path: Path
) -> None:
    model = str(chat_folder(tmp_path / "own", {}))
    settings = following(own(pairs, f"model.path={model}"))
    assert settings.evaluation.judge.path == model
    assert settings.evaluation.perplexity_model == model
    assert settings.data.reward_model.path == model
    (line, *_) = measuring_notes([CellInputs(settings, world_cache)])
    assert line == (
        f"measured by: judge (on {model}), second judge (on {model}), perplexity {model}, "
        "helpfulness left out"
    )
    (line, *_) = measuring_notes([CellInputs(following(own(pairs)), world_cache)])
    assert line == (
        "measured by: judge (on the embedded other_base), second judge (on the embedded base), "
        "perplexity the embedded language model, helpfulness left out"
    )
    named = following(own(pairs, f"model.path={model}", "evaluation.perplexity_model=/other"))
    assert named.evaluation.perplexity_model == "/other"


def test_a_plan_and_the_begin_of_a_run_say_what_of_the_embedded_world_measures_real_text(
    pairs: Path, world_cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        f"attack: none\ndata: {{name: preferences, world: real, path: {pairs},\n"
        "  helpful_path: null}\nevaluation: {judge: {num_rows: 100}}\n"
    )
    console = Console(file=io.StringIO(), width=200)
    planned(load_config(file), tmp_path / "out", CampaignInputs(world_cache), console)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "measured by: judge (on the embedded other_base), second judge (on the emb" in written


def test_a_plan_says_which_splits_of_a_folder_are_read_and_which_are_not(
    pairs: Path, world_cache: Path, tmp_path: Path
) -> None:
    for split in ("train", "validation"):
        shutil.copy(pairs, tmp_path / f"{split}.jsonl")

    def notes(data: dict[str, Any]) -> list[str]:
        tree = {"data": {"name": "preferences", "world": "real", "helpful_path": None, **data}}
        return reading_notes([CellInputs(parse_tree(tree), world_cache)])

    (told,) = notes({"path": str(tmp_path), "safety_path": str(pairs)})
    assert told == (
        f"data.path: train of {tmp_path}, of which a part of the prompts is held out; "
        "validation not read"
    )
    shutil.copy(pairs, tmp_path / "test.jsonl")
    told, helpful = notes({"path": str(tmp_path), "helpful_path": str(tmp_path)})
    assert told == f"data.path: train and test of {tmp_path}; validation not read"
    assert helpful.startswith("data.helpful_path: train and test of ")
    (tmp_path / "validation.jsonl").unlink()
    assert notes({"path": str(tmp_path)}) == []
    assert reading_notes([CellInputs(parse_tree({}), world_cache)]) == []


def test_the_embedded_world_stays_as_it_is() -> None:
    for tree in ({}, {"attack": "ppo"}, {"data": {"name": "tldr"}, "attack": "dpo"}):
        settings = parse_tree(tree)
        assert following(settings) is settings


def test_a_judge_that_learns_in_a_few_steps_is_told(world_cache: Path) -> None:
    few = parse_tree({}, ["evaluation.judge.num_rows=48"])
    told = measuring_notes([CellInputs(few, world_cache)])
    assert told[0].startswith("the judge learns in 6 steps from 48 rows: below 200")
    assert measuring_notes([CellInputs(parse_tree({}), world_cache)]) == []


def test_what_would_fit_is_read_off_an_error_whatever_its_words() -> None:
    key = "evaluation.num_prompts"

    def check(settings: ExperimentSettings) -> None:
        if settings.evaluation.num_prompts != 7:
            raise DataError.broken_rule(key, "suit", "this", "Think.", fitting={key: 7})

    problems = Problems()
    settings, fits = fitted(parse_tree({}), check, problems, "")
    assert fits and settings.evaluation.num_prompts == 7
    problems.refuse()

    def check_in_words(settings: ExperimentSettings) -> None:
        raise DataError.broken_rule(key, "be at most 7 (rows)", 9, "Lower it.")

    assert fitted(parse_tree({}), check_in_words, problems, "") == (parse_tree({}), False)
    with pytest.raises(DataError, match=r"must be at most 7 \(rows\), got 9\. Lower it\.$"):
        problems.refuse()
