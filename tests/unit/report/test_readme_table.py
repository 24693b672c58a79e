"""README's table of the quickstart, held to the records it was read from."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
COLUMNS = ("p_harm", "valid", "p_harm_sampled", "p_harm_oracle", "harmless_answered", "kl_seq_rb")
NAMED = ("p_harm_oracle", "p_harm_sampled", "valid", "kl_seq_rb")
UNDEFENDED = 2


def records(dtype: str) -> list[dict[str, Any]]:
    path = ROOT / "benchmarks" / "quickstart" / f"{dtype}.json"
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def row(record: dict[str, Any]) -> list[str]:
    metrics = record["metrics"]
    harm = metrics["p_harm"]
    texts = [f"{harm['mean']:.2f} [{harm['ci_low']:.2f}, {harm['ci_high']:.2f}]"]
    texts += [f"{metrics[name]['mean']:.2f}" for name in COLUMNS[1:-1]]
    return [*texts, f"{metrics[COLUMNS[-1]]['mean']:.1f}"]


def test_the_table_is_what_bfloat16_gave() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| | p_harm | valid |"))
    table = [line.strip("| ").split(" | ")[1:] for line in lines[head + 2 : head + 7]]
    assert table == [row(record) for record in records("bfloat16")]


def test_float32_differs_by_what_is_said() -> None:
    ours, others = records("bfloat16"), records("float32")
    for i, (one, other) in enumerate(zip(ours, others, strict=True)):
        for name in COLUMNS:
            difference = abs(one["metrics"][name]["mean"] - other["metrics"][name]["mean"])
            assert i == UNDEFENDED or round(difference, 2) <= 0.01, (i, name, difference)
    texts = row(others[UNDEFENDED])
    assert [texts[COLUMNS.index(name)] for name in NAMED] == ["0.83", "0.96", "0.98", "5.3"]
