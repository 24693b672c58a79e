"""Small campaign folders for the tests of the report."""

import json
from collections.abc import Sequence
from pathlib import Path

Json = dict[str, object]


def estimate(mean: float | None) -> Json:
    """Return an estimate over 100 prompts whose interval is 0.05 to both sides."""
    ends = (None, None) if mean is None else (round(mean - 0.05, 4), round(mean + 0.05, 4))
    return {"mean": mean, "n": 100, "ci_low": ends[0], "ci_high": ends[1]}


def record(
    *,
    attack: str = "ppo",
    defence: str = "none",
    seed: int = 0,
    status: str = "ok",
    step_failed: int | None = None,
    params: Json | None = None,
    rho: float = 1.0,
    **metrics: float | None,
) -> Json:
    """Return one record as a summary holds it, by default an undefended PPO attack."""
    return {
        "model": "chat",
        "world": "embedded",
        "data": "beavertails",
        "attack": attack,
        "defence": defence,
        "rho": rho,
        "num_samples": 1000,
        "params": params or {},
        "seed": seed,
        "status": status,
        "step_failed": step_failed,
        "run": f"{attack}_{defence}_{seed}",
        "weights_sha256": None,
        "metrics": {name: estimate(mean) for name, mean in metrics.items()},
    }


def campaign_folder(folder: Path, records: Sequence[Json]) -> Path:
    """Write the summary and an empty folder for each run."""
    for item in records:
        (folder / str(item["run"])).mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(records))
    return folder


def json_lines(path: Path, rows: Sequence[Json]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
