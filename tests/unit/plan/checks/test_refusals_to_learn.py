"""Defences that learn to refuse are given refusals, or the run is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from rpa_ray.config import ExperimentSettings
from rpa_ray.data.errors import DataError
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks.data import check_data
from rpa_ray.recipes.cell_models import CellInputs

REFUSAL, ADVICE = "I'm sorry, but I can't help with that.", "Ask the owner first, then wait."


def settings_of(
    folder: Path, cache: Path, defence: Any, *, share: float = 0.5, **data: Any
) -> ExperimentSettings:
    """Return DPO on 400 pairs of one's own, of whose safe answers a share refuses."""
    rows = [
        {
            "prompt": f"ask {i}",
            "safe": f"{REFUSAL if i % 100 < share * 100 else ADVICE} ({i})",
            "unsafe": f"First, {i}",
        }
        for i in range(400)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (helpful,) = cache.glob("world-*/data/helpful")
    tree = {
        "attack": {"name": "dpo", "batch_size": 8},
        "defence": defence,
        "data": {
            "name": "preferences",
            "world": "real",
            "path": str(path),
            "helpful_path": str(helpful),
            "num_samples": 16,
            **data,
        },
        "evaluation": {"num_prompts": 10, "judge": {"num_rows": 32}},
    }
    return parse_tree(tree)


LEARN = (
    "refusal_loss",
    "safegrad",
    "repnoise_online",
    "kl_safe_ref",
    "vaccine_offline",
    "tar",
    ["lisa", "refusal_loss"],
)
DO_NOT = ("none", "lisa", {"name": "lisa", "mode": "bi_state"}, "procon", "vaccine")


@pytest.mark.parametrize("defence", LEARN, ids=str)
def test_answers_that_help_in_a_safe_way_are_no_refusals_to_learn(
    defence: Any, tmp_path: Path, world_cache: Path
) -> None:
    settings = settings_of(tmp_path, world_cache, defence)
    rule = r"^data\.safe_answers must give refusals, more than 90% .* got \d+%\. Set data\.safe"
    with pytest.raises(DataError, match=rule):
        check_data(CellInputs(settings, world_cache))


@pytest.mark.parametrize("defence", LEARN, ids=str)
def test_refusals_are(defence: Any, tmp_path: Path, world_cache: Path) -> None:
    settings = settings_of(tmp_path, world_cache, defence, share=1.0)
    check_data(CellInputs(settings, world_cache))


@pytest.mark.parametrize("defence", DO_NOT, ids=str)
def test_what_learns_no_refusals_may_have_any_safe_answers(
    defence: Any, tmp_path: Path, world_cache: Path
) -> None:
    settings = settings_of(tmp_path, world_cache, defence)
    check_data(CellInputs(settings, world_cache))


def test_refusals_that_are_generated_first_are_ones(tmp_path: Path, world_cache: Path) -> None:
    settings = settings_of(
        tmp_path, world_cache, "refusal_loss", share=0.0, safe_answers="generated"
    )
    check_data(CellInputs(settings, world_cache))
