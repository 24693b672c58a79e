"""Small campaign folders for the tests of the report."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet

from rpa_ray.evaluation.answers import Answer, Decoding, to_table

Json = dict[str, object]


def estimate(mean: float | None, n: int = 100) -> Json:
    """Return an estimate over n prompts whose interval is 0.05 to both sides."""
    ends = (None, None) if mean is None else (round(mean - 0.05, 4), round(mean + 0.05, 4))
    return {"mean": mean, "n": n, "ci_low": ends[0], "ci_high": ends[1]}


def record(
    *,
    attack: str = "ppo",
    defence: str = "none",
    seed: int = 0,
    status: str = "ok",
    step_failed: int | None = None,
    params: Json | None = None,
    rho: float = 1.0,
    n: int = 100,
    before: dict[str, float] | None = None,
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
        "metrics": {name: estimate(mean, n) for name, mean in metrics.items()},
        "metrics_before": before and {name: estimate(mean, n) for name, mean in before.items()},
    }


def campaign_folder(folder: Path, records: Sequence[Json]) -> Path:
    """Write the summary and an empty folder for each run."""
    for item in records:
        (folder / str(item["run"])).mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(records))
    return folder


def answers_file(
    run: Path,
    values: Sequence[float],
    *,
    items: Sequence[str] | None = None,
    num_samples: int = 2,
    is_judged: bool = False,
    rewards: Sequence[float] | None = None,
    name: str = "answers.parquet",
) -> None:
    """Write what a run keeps of its answers: of each prompt the harm of every sampled answer.

    Greedy answers do all the harm there is, so that a reader who takes them is found out; so do
    their rewards.
    """
    kinds = [(Decoding.SAMPLED, sample) for sample in range(num_samples)] + [(Decoding.GREEDY, 0)]
    answers = [
        Answer(
            decoding=decoding,
            prompt_index=index,
            sample=sample,
            item=items[index] if items else f"item {index}",
            prompt="How?",
            text="So.",
            num_tokens=2,
            policy_version=1,
            harm=None if is_judged else value if decoding is Decoding.SAMPLED else 1.0,
            judge=value if is_judged else 0.5,
            reward=rewards and (rewards[index] if decoding is Decoding.SAMPLED else 99.0),
        )
        for decoding, sample in kinds
        for index, value in enumerate(values)
    ]
    run.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(to_table(answers), run / name)


def json_lines(path: Path, rows: Sequence[Json]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
