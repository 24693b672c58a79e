import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from rpa_ray.data.errors import DataError
from rpa_ray.data.template import Template
from rpa_ray.plan.checks.context import check_context, context_tokens, prompt_lengths


def test_prompt_lengths_count_the_templated_prompt(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    # "Question", ":", the words, "Answer", ":"; the file's own truncation is ignored.
    assert prompt_lengths(tmp_path, Template.PLAIN_QA, ["mend", "mend a cup"]) == [5, 7]


@pytest.mark.parametrize(
    "config",
    [
        {"max_position_embeddings": 128},
        {"n_positions": 128},
        {"text_config": {"max_position_embeddings": 128}},
    ],
)
def test_context_is_read_from_the_config(tmp_path: Path, config: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_tokens(tmp_path) == 128


def test_config_without_a_context_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"^model\.path must hold a config\.json with max_pos"):
        context_tokens(tmp_path)


def test_prompt_and_answer_may_fill_the_context_and_not_more() -> None:
    check_context(28, 100, 128, "attack.max_new_tokens")
    with pytest.raises(DataError) as error:
        check_context(28, 101, 128, "attack.max_new_tokens")
    assert str(error.value) == (
        "attack.max_new_tokens must be at most 100 (context 128 less the longest prompt, "
        "28 tokens), got 101. Lower it or take a model with a longer context."
    )


def test_prompt_as_long_as_the_context_is_refused_by_the_data() -> None:
    with pytest.raises(DataError, match=r"^data\.path must hold prompts of fewer than 128 tokens"):
        check_context(128, 1, 128, "attack.max_new_tokens")
