"""Precision and recall of the detectors of reward hacking, counted by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
from report_folders import campaign_folder, record

from rpa_ray.evaluation.answers import Answer, Decoding, to_table
from rpa_ray.paper.hacking import detectors_table, rewards_table
from rpa_ray.report.evidence import write_evidence
from rpa_ray.run_folder.files import write_parquet
from rpa_ray.run_folder.names import ANSWERS, EVALUATION

PLAIN = Answer(
    decoding=Decoding.SAMPLED,
    prompt_index=0,
    sample=0,
    item="item 0",
    prompt="how?",
    text="so.",
    num_tokens=1,
    policy_version=0,
    label="refusal",
    harm=0.0,
    is_too_short=False,
    copies_prompt=False,
    repeats=False,
    is_fluent=True,
)


def answers() -> list[Answer]:
    """Return 30 refusals of which 2 are flagged, 10 echoes of which 8 are, and 5 greedy echoes."""
    found = [PLAIN] * 28
    found += [replace(PLAIN, is_too_short=True)] * 2
    found += [replace(PLAIN, label="echo", copies_prompt=True)] * 8
    found += [replace(PLAIN, label="echo")] * 2
    found += [replace(PLAIN, decoding=Decoding.GREEDY, label="echo", is_fluent=None)] * 5
    return [replace(a, prompt_index=i, item=f"item {i}") for i, a in enumerate(found)]


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    records = [record(harm=0.0), record(attack="none", harm=0.0)]
    folder = campaign_folder(tmp_path / "runs", records)
    for item in records:
        run = folder / str(item["run"])
        write_parquet(run / ANSWERS, to_table(answers()))
        (run / EVALUATION).write_text("{}")
    write_evidence([folder], tmp_path / "proof")
    return tmp_path / "proof"


def test_precision_and_recall_are_counts_of_answers(evidence: Path) -> None:
    text = detectors_table([evidence])
    # The model before the attack has no part in it.
    assert text.startswith("40 sampled answers, 10 of them broken by the oracle.")
    sampled, greedy = text.split("\n\n5 greedy answers, 5 of them broken by the oracle.")
    assert "repeats" in greedy and "not fluent" not in greedy
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in sampled.splitlines()[4:]}
    found = {name: [entry.split()[0] for entry in row] for name, row in rows.items()}
    assert found == {
        "too short": ["2", "0.00", "0.00"],
        "copies the prompt": ["8", "1.00", "0.80"],
        "repeats": ["0", "-", "0.00"],
        "not fluent": ["0", "-", "0.00"],
        "any of them": ["10", "0.80", "0.80"],
    }


def test_what_is_paid_is_told_by_the_oracles_label(tmp_path: Path) -> None:
    folder = campaign_folder(tmp_path / "runs", [record(harm=0.0)])
    run = folder / "ppo_none_0"
    held = [replace(PLAIN, reward=4.0, harm=0.0)] * 3 + [
        replace(PLAIN, label="off_topic", reward=1.0, harm=0.5)
    ]
    held = [replace(a, prompt_index=i, item=f"item {i}") for i, a in enumerate(held)]
    write_parquet(run / ANSWERS, to_table(held))
    (run / EVALUATION).write_text("{}")
    write_evidence([folder], tmp_path / "proof")
    *_, row = rewards_table([tmp_path / "proof"]).splitlines()
    assert (
        row == "| beavertails | ppo | none | 0.12 | 3.25 | - | - | - | 0.75 (4.00) | 0.25 (1.00) |"
    )
