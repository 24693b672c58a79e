from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rpa_ray.report.html import ReportPaths
from rpa_ray.report.outcome import print_outcome
from rpa_ray.run_folder.files import write_json
from rpa_ray.run_folder.outcome import cause_of, why_failed

TRACEBACK = (
    "Traceback (most recent call last):\n  File x, line 1\n    f()\nKeyError: 'head_dim'\n\n"
)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", ""),
        ("  \n", ""),
        (
            "ValueError: x must be y, got z\nLast lines of its log:\nfine",
            "ValueError: x must be y, got z",
        ),
        (TRACEBACK, "KeyError: 'head_dim'"),
        (f"ray::f()\n{TRACEBACK}", "KeyError: 'head_dim'"),
        (
            "A worker health check failed.\nWorker info: 1\nThe process has died.",
            "The process has died.",
        ),
        ("x" * 300, "x" * 200 + "..."),
    ],
)
def test_the_cause_of_an_error_is_one_line(text: str, cause: str) -> None:
    assert cause_of(text) == cause


def test_a_failed_cell_stands_under_the_table_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "cell" / "evaluation.json", {"reason": TRACEBACK, "status": "failed"})
    write_json(tmp_path / "well" / "evaluation.json", {"reason": None, "status": "ok"})
    assert why_failed(tmp_path / "well") == why_failed(tmp_path / "nowhere") == ""
    record: dict[str, Any] = {
        "model": "chat",
        "world": "real",
        "data": "tldr",
        "attack": "ppo",
        "defence": "none",
    }
    record |= {"rho": 1.0, "num_samples": 8, "params": {}, "seed": 0, "metrics": {}}
    page = tmp_path / "report.html"
    print_outcome(
        Console(width=80),
        tmp_path,
        [record | {"status": "failed", "run": "cell"}],
        sweep=None,
        paths=ReportPaths(html=page, markdown=page, csv=page),
    )
    assert "\ncell: failed: KeyError: 'head_dim', see " in capsys.readouterr().out
