from pathlib import Path

import pytest
from checked import check_models
from model_folders import edit_json, save_language_model

from rpa_ray.config import ConfigError
from rpa_ray.plan import parse_tree


def check(folder: Path, key: str = "model.path") -> None:
    check_models(parse_tree({"attack": "ppo"}, [f"{key}={folder}"]))


@pytest.mark.parametrize("ends", [2, [2], [2, 10], None])
def test_ends_of_answers_are_ids_of_the_model(tmp_path: Path, ends: object) -> None:
    folder = save_language_model(tmp_path / "model")
    edit_json(folder / "generation_config.json", eos_token_id=ends)
    check(folder)


@pytest.mark.parametrize(
    ("ends", "strange"),
    [
        ("</s>", "'</s>'"),
        (11, "11"),  # the model has 11 ids
        ([2, -1], "-1"),
        (2.0, "2.0"),
        ([2, [2]], "[2]"),
        (True, "True"),
        ({"id": 2}, "{'id': 2}"),
    ],
)
def test_an_end_that_is_no_id_of_the_model_is_refused(
    tmp_path: Path, ends: object, strange: str
) -> None:
    folder = save_language_model(tmp_path / "model")
    edit_json(folder / "generation_config.json", eos_token_id=ends)
    with pytest.raises(ConfigError) as caught:
        check(folder)
    assert str(caught.value) == (
        "model.path must declare as eos_token_id ids from 0 to below its vocab_size (11), got "
        f"{strange}. Mend {folder}/generation_config.json."
    )


def test_a_generation_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "model")
    edit_json(folder / "generation_config.json", compile_config="fast")
    for key in ("model.path", "evaluation.perplexity_model"):
        with pytest.raises(ConfigError, match=f"^{key} must have a generation_config.json that "):
            check(folder, key)
