"""Pairs of which a model reads one row: refused by plan, and by every job that learns from them."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import ONE_RANK
from transformers import AutoTokenizer

from rpa_ray.data.errors import DataError
from rpa_ray.jobs.defence_batches import DefenceData
from rpa_ray.jobs.model import _source
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks.pairs import check_attack_tells_apart, check_models_tell_apart
from rpa_ray.plugin import Need
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.to_make import ModelJob
from rpa_ray.world.datasets import CONTEXT_TOKENS

NOTE = "read this note about clocks and rivers . "


def inputs_of(
    folder: Path, cache: Path, num_notes: int, *overrides: str, attack: str = "ppo"
) -> CellInputs:
    """Return a cell on pairs of one's own whose prompts end in so many notes of eight words."""
    rows = [
        {"prompt": f"ask {i} {NOTE * num_notes}", "safe": f"no {i}", "unsafe": f"yes {i}"}
        for i in range(300)
    ]
    path = folder / f"mine{num_notes}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"name": "preferences", "world": "real", "path": str(path), "num_samples": 16}
    tree = {
        "attack": {"name": attack, "batch_size": 8},
        "data": own | {"reward_model": {"num_pairs": 16, "max_tokens": 500}},
        "evaluation": {"judge": {"num_rows": 16, "max_tokens": 500}},
    }
    return CellInputs(parse_tree(tree, overrides), cache)


@pytest.mark.parametrize(
    ("key", "model", "defence"),
    [
        ("data.reward_model.max_tokens", "reward_model", "none"),
        ("data.reward_model.max_tokens", "cost_model", "{name: safe_rlhf, cost: model}"),
        ("evaluation.judge.max_tokens", "judge", "none"),
        ("defence.max_tokens", "security_vector", "{name: security_vectors, max_tokens: 500}"),
    ],
)
def test_plan_and_job_refuse_pairs_that_are_cut_to_one_row_and_the_advice_works(
    key: str, model: str, defence: str, tmp_path: Path, world_cache: Path
) -> None:
    def of(max_tokens: int) -> CellInputs:
        overrides = (f"defence={defence}", f"{key}={max_tokens}")
        return inputs_of(tmp_path, world_cache, 20, *overrides)

    def begin(inputs: CellInputs) -> None:
        (recipe,) = [r for r in inputs.models.recipes() if r.id.startswith(model)]
        tokenizer = AutoTokenizer.from_pretrained(recipe.tokenizer)
        process: Any = SimpleNamespace(cache=world_cache, ranks=ONE_RANK)
        _source(ModelJob(recipe=recipe, data=inputs.settings.data), tokenizer, process)

    inputs = of(128)
    with pytest.raises(DataError) as planned:
        check_models_tell_apart(inputs)
    with pytest.raises(DataError) as made:
        begin(inputs)
    message = str(planned.value)
    assert message == str(made.value)
    assert message.startswith(f"{key} must tell the two answers of every pair apart, got ")
    assert "with the same 128 tokens or fewer for both, first that of 'ask " in message
    numbers = re.findall(r" \(rows ([\d, ]+) of mine20\.jsonl\)", message)[0].split(", ")
    assert 0 < len(numbers) <= 10
    first = message.partition("first that of 'ask ")[2].split()[0]
    assert str(int(first) + 1) in numbers
    (enough,) = re.findall(r"Raise it to (\d+)\.$", message)
    for max_tokens in (int(enough), int(enough) - 1):
        inputs = of(max_tokens)
        if max_tokens == int(enough):
            check_models_tell_apart(inputs)
            begin(inputs)
            continue
        with pytest.raises(DataError, match=rf"Raise it to {enough}\."):
            check_models_tell_apart(inputs)


@pytest.mark.parametrize("attack", ["dpo", "sft", "ppo"])
def test_plan_refuses_pairs_of_one_row_to_a_policy_that_learns_from_them(
    attack: str, tmp_path: Path, world_cache: Path
) -> None:
    def check(num_notes: int) -> None:
        inputs = inputs_of(tmp_path, world_cache, num_notes, attack=attack)
        check_attack_tells_apart(inputs.data, inputs.settings, 16, "data.num_samples")

    check(2)
    if attack == "ppo":  # learns from rollouts alone
        check(CONTEXT_TOKENS)
        return
    with pytest.raises(DataError, match=r"^data\.path must hold pairs whose answers differ in wh"):
        check(CONTEXT_TOKENS)


def test_no_tokenizer_is_asked_about_answers_that_begin_in_two_ways(
    tmp_path: Path, world_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **others: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    # Four notes are more bytes than the context has tokens, and fewer tokens.
    for num_notes in (0, 4):
        inputs = inputs_of(tmp_path, world_cache, num_notes, attack="dpo")
        check_attack_tells_apart(inputs.data, inputs.settings, 16, "data.num_samples")
    with pytest.raises(AssertionError, match="loaded"):
        inputs = inputs_of(tmp_path, world_cache, CONTEXT_TOKENS, attack="dpo")
        check_attack_tells_apart(inputs.data, inputs.settings, 16, "data.num_samples")


def test_pairs_of_one_row_are_no_contrast(tmp_path: Path, world_cache: Path) -> None:
    data = inputs_of(tmp_path, world_cache, 20).data

    def begin(max_tokens: int) -> None:
        DefenceData(
            tokenizer=AutoTokenizer.from_pretrained(data.world_folder / "tokenizer"),
            data=data,
            max_tokens=max_tokens,
            cut_by="defence.max_tokens",
            batch_size=8,
            seed=0,
            ranks=ONE_RANK,
        ).batches({Need.CONTRAST_BATCH})

    begin(500)
    with pytest.raises(DataError, match=r"^defence\.max_tokens must tell .* Raise it to \d+\.$"):
        begin(128)
