import json
import re
from pathlib import Path

from report_folders import Json, campaign_folder, json_lines, record

from rpa_ray.report import write_report
from rpa_ray.report.read.runs import read_run


def look(samples: float, harm: float | None, half: float = 0.1) -> Json:
    ends = (
        {}
        if harm is None
        else {"held_out/harm_low": harm - half, "held_out/harm_high": harm + half}
    )
    return {"samples": samples, "held_out/harm": harm, "held_out/n": 48.0, **ends}


def page_of(folder: Path, seeds: list[list[Json]], **evaluation: object) -> str:
    campaign_folder(folder, [record(seed=seed, harm=0.9) for seed in range(len(seeds))])
    for seed, looks in enumerate(seeds):
        path = folder / f"ppo_none_{seed}" / "evaluation.json"
        path.write_text(json.dumps({"looks": looks, **evaluation}))
    return write_report(folder).html.read_text()


def chart(page: str) -> str:
    (found,) = re.findall(r'aria-label="Harm over attack samples">(.*?)</svg>', page)
    return str(found)


def test_harm_is_drawn_over_attack_samples_from_before_the_attack_with_its_band(
    tmp_path: Path,
) -> None:
    drawn = chart(page_of(tmp_path, [[look(0.0, 0.1), look(500.0, 0.5), look(1000.0, 0.9)]]))
    # From pixel 12 (harm 1) to 184 (harm 0), and from 44 (no samples) to 348 (all).
    assert re.findall(r'<circle class="end undefended dash0" cx="([\d.]+)"', drawn) == [
        "44.0",
        "196.0",
        "348.0",
    ]
    assert (
        '<polygon class="band undefended dash0" points="44.0,149.6 196.0,80.8 348.0,12.0 '
        '348.0,46.4 196.0,115.2 44.0,184.0"' in drawn
    )


def test_seeds_are_one_line_whose_band_is_over_items_and_holds_them_all(tmp_path: Path) -> None:
    seeds = [[look(0.0, 0.1), look(100.0, harm)] for harm in (0.4, 0.8)]
    drawn = chart(page_of(tmp_path, seeds))
    assert len(re.findall("<polyline", drawn)) == 1
    # Harm 0.8 and 0.4 at the end of the attack: the seeds; over items alone it is 0.7 and 0.5.
    assert "348.0,46.4 348.0,115.2" in drawn


def test_harm_on_held_out_prompts_is_drawn_once(tmp_path: Path) -> None:
    campaign_folder(tmp_path, [record(harm=0.9)])
    rows: list[Json] = [
        {"step": i, **look(8.0 * i + 8, 0.5), "held_out/p_harm": 0.7} for i in (0, 1)
    ]
    run = tmp_path / "ppo_none_0"
    json_lines(run / "metrics.jsonl", rows)
    (run / "evaluation.json").write_text(json.dumps({"looks": [look(0.0, 0.1), *rows]}))
    page = write_report(tmp_path).html.read_text()
    assert 'aria-label="Harm"' not in page
    assert page.count('aria-label="Harm over attack samples"') == 1
    assert page.count('aria-label="Judge"') == 1


def test_a_run_without_a_list_of_looks_has_those_of_its_log(tmp_path: Path) -> None:
    rows: list[Json] = [
        {"step": 0, "samples": 8, "held_out/p_harm": 0.7},
        {"step": 1, "samples": 16},
    ]
    json_lines(tmp_path / "metrics.jsonl", rows)
    assert [seen["samples"] for seen in read_run(tmp_path).looks()] == [8.0]


def test_a_look_without_a_number_is_no_point(tmp_path: Path) -> None:
    drawn = chart(page_of(tmp_path, [[look(0.0, 0.1), look(100.0, None), look(200.0, 0.5)]]))
    assert drawn.count("<circle") == 2


def test_nobody_looked_and_nothing_is_drawn(tmp_path: Path) -> None:
    assert "over attack samples" not in page_of(tmp_path, [[]])
