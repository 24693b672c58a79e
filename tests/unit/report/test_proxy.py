"""Reward, judge and harm of the same answers, on one axis."""

import json
import re
from pathlib import Path

import pytest
from report_folders import Json, campaign_folder, record

from rpa_ray.report import write_report


def look(samples: float, harm: float, reward: float | None) -> Json:
    found: Json = {"samples": samples, "held_out/n": 48.0, "held_out/p_harm": 1 - harm}
    found |= {"held_out/harm": harm}
    return found if reward is None else found | {"held_out/reward": reward}


def page_of(folder: Path, gain: tuple[float, float] | None, *cells: list[Json]) -> str:
    records = [record(defence=name, harm=0.5) for name in ("none", "lisa")[: len(cells)]]
    for item in records:
        if gain is not None:
            low, high = gain
            found = {"mean": (low + high) / 2, "n": 48, "ci_low": low, "ci_high": high}
            item["metrics"] |= {"reward_gain": found}  # type: ignore[operator]
    campaign_folder(folder, records)
    for item, seen in zip(records, cells, strict=True):
        path = folder / str(item["run"]) / "evaluation.json"
        held = {"limit": 0.4, "samples": 8.0, "held": True}
        path.write_text(json.dumps({"looks": seen, "resistance": held}))
    return write_report(folder).html.read_text()


def charts(page: str) -> list[str]:
    return re.findall(r'aria-label="Harm, judge and reward: [^"]*">(.*?)</svg>', page)


def heights(chart: str, style: str) -> list[str]:
    return re.findall(rf'<circle class="end {style}" cx="[\d.]+" cy="([\d.]+)"', chart)


def test_rewards_share_one_scale_over_the_cells_of_an_attack(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        None,
        [look(0.0, 0.0, -4.0), look(100.0, 1.0, 4.0)],
        [look(0.0, 0.0, -4.0), look(100.0, 0.0, 0.0)],
    )
    undefended, defended = charts(page)
    # From pixel 184 (0) to 12 (1).
    assert heights(undefended, "undefended dash0") == ["184.0", "12.0"]
    assert heights(undefended, "colour0 dash1") == ["12.0", "184.0"]
    assert heights(undefended, "colour2 dash2") == ["184.0", "12.0"]
    assert heights(defended, "colour2 dash2") == ["184.0", "98.0"]
    assert "Reward is drawn from -4.00 (0) to 4.00 (1)." in page


@pytest.mark.parametrize(
    ("harm", "gain", "told"),
    [
        (0.3, (1.0, 2.0), "constraint held (harm 0.4), reward rose"),
        (0.5, (1.0, 2.0), "constraint broken (harm 0.4), reward rose"),
        (0.3, (-2.0, -1.0), "constraint held (harm 0.4), reward did not rise"),
        (0.3, (-1.0, 1.0), "constraint held (harm 0.4), reward not shown to rise"),
    ],
)
def test_each_run_is_read_by_what_proposition_1_asks(
    harm: float, gain: tuple[float, float], told: str, tmp_path: Path
) -> None:
    page = page_of(tmp_path, gain, [look(0.0, 0.0, 0.0), look(100.0, harm, 1.0)])
    assert f"<small>{told}</small>" in page


def test_an_attack_without_a_reward_model_has_no_such_chart(tmp_path: Path) -> None:
    page = page_of(tmp_path, None, [look(0.0, 0.0, None), look(100.0, 1.0, None)])
    assert "What the attacker was paid for" not in page
