"""Texts that somebody else may choose, each of which some output could act on.

A model, a folder, a setting or an answer may be called so. Every output has to show them as text.
"""

import json
from pathlib import Path

import pytest

HARMLESS = "name"
HOSTILE = {
    "tags": '<script>alert(1)</script><img src="https://example.org/x.png" onerror="alert(2)">',
    "comment": "<!-- end of table -->",
    "entity": "&lt;b&gt; &#x5b;",
    "image": "![x](https://example.org/x.png)",
    "link": "[x](https://example.org) [x][y] <https://example.org>",
    "link over a number": "[1, 2](https://example.org)",
    "definition": "[x]: https://example.org",
    "pipe": "a | b",
    "pipe after a backslash": r"a\|b",
    "backslash": "a\\",
    "backticks": "`a` ``b`` `",
    "fence": "a\n```\n<img src=x>\n# head\n```\n",
    "long fence": "a\n``````\n<img src=x>\n",
    "emphasis": "*a* **b** a*b*c 1*b*",
    "underscores": "_a_ __b__ (_c_)",
    "strike": "~~a~~",
    "heading": "a\n\n# head\n\n- item\n\n> quoted",
    "closing": "a #",
    "formula": "=cmd|' /C calc'!A0",
    "formula by a sign": "+1+cmd|' /C calc'!A0",
    "formula by a minus": "-1+cmd|' /C calc'!A0",
    "formula by at": "@SUM(1+1)",
    "formula by tab": "\t=1+1",
    "formula by return": "\r=1+1",
    "formula by feed": "\n=1+1",
    "quotes": "a\",\"b','c",
    "markup": "[bold red]a[/bold red]",
    "end of markup": "[/x]",
    "title of the terminal": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "colour": "\x1b[31mred",
    "eight bit": "\x9b31mred\x9c",
    "nul": "a\x00b",
    "overwritten": "good\rbad\x08\x08",
    "turned": "a\u202ebc\u2066d",
    "line separators": "a\u2028b\x85c\x0bd\x0ce",
    "half a character": "a\ud800b",
    "template": "$body ${style} {name} %s",
    "path": "../../etc/passwd",
    "parent": "..",
    "long": "x" * 300,
    "long and wide": "\u5b57" * 200,
}
"""By what each tries to do."""

every_hostile_text = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())


def runs_named(folder: Path, text: str) -> list[dict[str, object]]:
    """Write a campaign whose models, settings, commands and answers are a text; give its records.

    Four cells: before the attack, undefended, defended by two seeds, and one that failed.
    """
    number = {"mean": 0.93, "n": 100, "ci_low": 0.88, "ci_high": 0.98}
    metrics = {"harm": number, "p_harm": number, "valid": number | {"mean": 0.3}, text: number}
    cells = [("none", "none", 0, "ok"), ("ppo", "none", 0, "ok"), ("ppo", "lisa", 0, "ok")]
    cells += [("ppo", "lisa", 1, "ok"), ("ppo", "safe_rlhf", 0, "failed")]
    records: list[dict[str, object]] = []
    for place, (attack, defence, seed, status) in enumerate(cells):
        run = folder / f"run{place}"
        run.mkdir(parents=True)
        (run / "manifest.json").write_text(
            json.dumps({"command": f"rpa-ray {text}", "models": {"judge": text}})
        )
        (run / "config.yaml").write_bytes(f"model: {text}".encode("utf-8", "replace"))
        answer = {"prompt": text, "answer": text, "scores": {text: 0.9}, "label": text}
        (run / "samples.jsonl").write_text(json.dumps(answer | {"phase": "after"}) + "\n")
        records.append(
            {
                "model": text,
                "world": text,
                "data": text,
                "attack": attack,
                "defence": defence,
                "rho": 1.0,
                "num_samples": 1000,
                "params": {"defence.note": text, f"attack.{text}": 1} if place > 1 else {},
                "seed": seed,
                "status": status,
                "run": run.name,
                "metrics": metrics,
            }
        )
    (folder / "summary.json").write_text(json.dumps(records))
    return records
