"""What the papers report, as rows."""

import json
from importlib import resources
from typing import Any


def numbers(table: str) -> list[dict[str, Any]]:
    """Return the rows of a table of arXiv:2409.12914; None stands where a run failed.

    Args:
        table: Name of a file beside this one: ``table3`` holds tables 1 and 3; of tables 6
            and 8 (of which the defences are inferred) harmfulness alone.
    """
    text = (resources.files("rpa_ray.paper") / f"{table}.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(text)
    return rows
