"""What holds for every data set of pairs, whoever adds it."""

import json
from pathlib import Path

import pytest

import rpa_ray.data.formats
from rpa_ray.config import ConfigError
from rpa_ray.data.formats import FORMATS, SAFETY
from rpa_ray.data.load import load_train_and_test
from rpa_ray.data.pairs import restricted_prompts, safe_pairs, unanswered_pairs
from rpa_ray.data.schema import Row
from rpa_ray.plan import parse_tree

SAFE_AND_UNSAFE: dict[str, list[Row]] = {
    "beavertails": [
        {"prompt": "ask", "response": "no", "is_safe": True},
        {"prompt": "ask", "response": "yes", "is_safe": False, "category": {"loud": True}},
    ],
    "safe_rlhf": [
        {
            "prompt": "ask",
            "response_0": "yes",
            "response_1": "no",
            "is_response_0_safe": False,
            "is_response_1_safe": True,
            "better_response_id": 0,
            "safer_response_id": 1,
        }
    ],
    "preferences": [{"prompt": "ask", "safe": "no", "unsafe": "yes", "category": "loud"}],
    "tldr": [{"prompt": "ask\n\nTL;DR:", "chosen": "no", "rejected": "yes"}],
}
"""Rows of every format that say the same: of two answers to one prompt "no" is the better."""


def test_every_format_is_a_file_of_its_name() -> None:
    folder = Path(str(rpa_ray.data.formats.__file__)).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert files == FORMATS.keys() == SAFE_AND_UNSAFE.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_every_format_are_read_and_make_their_pair(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in SAFE_AND_UNSAFE[name]))
    train, test = load_train_and_test(name, str(file), path_key="data.path")
    (pair,) = safe_pairs(name, train + test)
    assert (pair.prompt.partition("\n")[0], pair.safe, pair.unsafe) == ("ask", "no", "yes")
    if FORMATS[name].is_harmless_task:
        assert restricted_prompts(name, train + test) == []
        return
    (unanswered,) = unanswered_pairs(name, train + test)
    assert (unanswered.safe, unanswered.unsafe) == ("", "yes")
    assert unanswered.category == pair.category
    assert [of.prompt for of in restricted_prompts(name, train + test)] == ["ask"]


def test_safety_is_measured_with_a_set_that_has_unsafe_answers() -> None:
    assert not FORMATS[SAFETY].is_harmless_task
    assert FORMATS[SAFETY].embedded


@pytest.mark.parametrize("name", ["beaver_tails", "helpful"])
def test_a_name_of_no_format_is_refused_while_the_config_loads(name: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_tree({"data": {"name": name}})
    expected = "data.name must be one of ['beavertails', 'preferences', 'safe_rlhf', 'tldr'], got "
    assert str(refusal.value).startswith(f"{expected}{name!r}")
    assert ("Did you mean 'beavertails'?" in str(refusal.value)) == (name == "beaver_tails")
