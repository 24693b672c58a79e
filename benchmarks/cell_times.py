"""Print where the time of every attacked cell of a campaign went, from its run folders.

python benchmarks/cell_times.py runs/quickstart
"""

import json
import sys
from pathlib import Path

PARTS = {
    "rollout": "time/rollout_s",
    "experience": "time/experience_s",
    "waiting for scores": "time/score_s",
    "learner": "time/learner_s",
    "sync": "time/sync_s",
}


def main(folder: Path) -> None:
    header = ["run", "steps", "loop s", *PARTS, "other", "cell s"]
    print("| " + " | ".join(header) + " |")
    print("|" + " --- |" * len(header))
    for record in json.loads((folder / "summary.json").read_text()):
        metrics = folder / record["run"] / "metrics.jsonl"
        if record["status"] == "failed" or not metrics.is_file():
            continue
        steps = [json.loads(line) for line in metrics.read_text().splitlines()]
        total = sum(step["time/step_s"] for step in steps)
        parts = [sum(step[key] for step in steps) for key in PARTS.values()]
        cell = json.loads((folder / record["run"] / "evaluation.json").read_text())["seconds"]
        seconds = [total, *parts, total - sum(parts), cell]
        columns = [record["run"], str(len(steps)), *(f"{value:.1f}" for value in seconds)]
        print("| " + " | ".join(columns) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
