import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_folders import Json, campaign_folder, json_lines, record

from rpa_ray.report import sections, write_report

HOSTILE = '<script>alert(1)</script><img src="https://example.org/x.png" onerror="alert(2)">'
BAD_JUDGE: Json = {"judge_f1": {"mean": 0.71, "n": 500, "ci_low": 0.66, "ci_high": 0.75}}


class Tags(HTMLParser):
    """Collects opening tags, and the tags that were never closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.still_open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.still_open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.still_open.pop() == tag


def hostile_page(folder: Path) -> str:
    records = [
        record(attack="none", p_harm=0.01, valid=1.0),
        record(p_harm=0.93, valid=0.97, oracle_compliance=0.9, oracle_refusal=0.1),
        record(defence="lisa", params={"defence.rho": HOSTILE}, p_harm=0.3, valid=0.9),
        record(defence="safe_rlhf", status="sampling_failed", step_failed=3),
    ]
    run = campaign_folder(folder, records) / "ppo_none_0"
    answer: Json = {"prompt": HOSTILE, "answer": HOSTILE, "scores": {HOSTILE: 0.9}}
    answer |= {"label": HOSTILE, "decoding": HOSTILE}
    json_lines(run / "samples.jsonl", [{**answer, "phase": p} for p in ("before", "after")])
    (run / "config.yaml").write_text(f"model: '{HOSTILE}'\n")
    (run / "manifest.json").write_text(json.dumps({"command": HOSTILE}))
    steps = [{"step": s, "samples": 8 * s, "policy/kl": 0.1 * s} for s in range(1, 50)]
    json_lines(run / "metrics.jsonl", steps)
    return write_report(folder).html.read_text()


def test_model_text_and_settings_never_become_markup(tmp_path: Path) -> None:
    page = hostile_page(tmp_path)
    tags = Tags(page)
    assert "&lt;script&gt;alert(1)" in page
    assert not {"script", "img", "iframe", "link", "object"} & {tag for tag, _ in tags.seen}
    assert not [name for _, attrs in tags.seen for name in attrs if name.startswith("on")]


def test_the_page_loads_nothing_and_forbids_scripts(tmp_path: Path) -> None:
    page = hostile_page(tmp_path)
    loading = {"src", "href", "xlink:href", "srcset", "action", "data"}
    assert not [attrs for _, attrs in Tags(page).seen if loading & set(attrs)]
    assert not re.search(r"@import|url\(", page)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.split("; ") == [
        *("default-src 'none'", "style-src 'unsafe-inline'", "base-uri 'none'"),
        "form-action 'none'",
    ]


@pytest.mark.parametrize("attack", ["none", "ppo"])
def test_an_attack_is_told_of_where_one_was_made(attack: str, tmp_path: Path) -> None:
    records = [
        record(attack="none", p_harm=0.01),
        record(attack=attack, defence="vaccine_offline", p_harm=0.02),
    ]
    paths = write_report(campaign_folder(tmp_path, records))
    for opening in (
        paths.html.read_text().partition("<h2>")[0].partition("<body")[2],
        paths.markdown.read_text().partition("## Results")[0],
    ):
        assert ("no attack was made" in opening) is (attack == "none")
        assert ("reversed" in opening) is (attack == "ppo")
        assert ("Reverse-preference attacks: " in opening) is (attack == "ppo")


def test_every_tag_is_closed(tmp_path: Path) -> None:
    assert Tags(hostile_page(tmp_path)).still_open == []


def test_answers_are_folded_under_a_warning(tmp_path: Path) -> None:
    page = hostile_page(tmp_path)
    warning, folded = page.index("May show unsafe text."), page.index('<article class="answer')
    assert warning < page.index("<details>", warning) < folded
    assert "<details open" not in page


def test_a_failed_run_is_told_in_chart_and_table_without_a_number(tmp_path: Path) -> None:
    page = hostile_page(tmp_path)
    assert '<span class="warn">sampling failed at step 3</span>' in page
    (row,) = re.findall(r'<th scope="row">safe_rlhf</th>(.*?)</tr>', page)
    assert re.fullmatch(r'<td class="failed" colspan="\d">sampling failed at step 3</td>', row)


def test_a_weak_judge_is_a_loud_warning_on_both_pages(tmp_path: Path) -> None:
    campaign_folder(tmp_path, [record(p_harm=0.9)])
    (tmp_path / "checks.json").write_text(json.dumps(BAD_JUDGE))
    paths = write_report(tmp_path)
    assert '<div class="gate bad" role="alert">' in paths.html.read_text()
    assert "WARNING: these numbers mean nothing." in paths.markdown.read_text()
    assert "F1 0.71" in paths.markdown.read_text()


def test_no_recorded_check_is_neither_a_warning_nor_a_pass(tmp_path: Path) -> None:
    campaign_folder(tmp_path, [record(p_harm=0.9)])
    assert '<div class="gate' not in write_report(tmp_path).html.read_text()


def test_a_single_run_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "model: chat\ndata: {name: beavertails, rho: 1.0, num_samples: 80}\nattack: ppo\n"
        "defence: none\nseed: 0\n"
    )
    estimate = {"mean": 0.93, "n": 100, "ci_low": 0.88, "ci_high": 0.98}
    outcome = {"status": "ok", "step_failed": None, "metrics": {"p_harm": estimate}}
    (tmp_path / "evaluation.json").write_text(json.dumps(outcome))
    paths = write_report(tmp_path)
    assert "| PPO | undefended | 0.93 [0.88, 0.98] |" in paths.markdown.read_text()
    assert "PPO, rho 1, 80 samples" in paths.html.read_text()
    assert paths.csv.read_text().startswith("model,world,data,attack,defence,rho")


def test_several_undefended_settings_are_told_as_a_range(tmp_path: Path) -> None:
    records = [record(params={"attack.learning_rate": r}, p_harm=r) for r in (0.1, 0.9)]
    page = write_report(campaign_folder(tmp_path, records)).html.read_text()
    assert "0.10 to 0.90 after it without a defence (2 settings of the attack)" in page


def test_a_report_is_not_written_through_links(tmp_path: Path) -> None:
    folder, outside = tmp_path / "runs", tmp_path / "outside"
    campaign_folder(folder, [record(attack="none", p_harm=0.1), record(p_harm=0.9)])
    outside.write_text("mine")
    names = [path.name for path in folder.iterdir()]
    write_report(folder)
    written = [path for path in folder.iterdir() if path.name not in names]
    assert {path.suffix for path in written} == {".html", ".md", ".csv"}
    for path in written:
        path.unlink()
        path.symlink_to(outside)
    write_report(folder)
    assert outside.read_text() == "mine"
    assert not any(path.is_symlink() for path in written)


def test_a_page_holds_the_settings_of_the_first_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record(p_harm=0.9, valid=0.9), record(defence="lisa", p_harm=0.3, valid=0.9)]
    folder = campaign_folder(tmp_path, records)
    for name in ("ppo_none_0", "ppo_lisa_0"):
        (folder / name / "config.yaml").write_text(f"model: of {name}\n")
    monkeypatch.setattr(sections, "MAX_SETTINGS", 1)
    page = write_report(folder).html.read_text()
    assert "manifest of 1 runs of 2; those of the others are in their folders" in page
    assert page.count("model: of ppo_") == 1
