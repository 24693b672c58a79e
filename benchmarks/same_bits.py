"""Compare two folders of one campaign: everything but times must be equal to the last byte.

RPA_RAY_CACHE=/tmp/one rpa-ray campaign configs/quickstart.yaml --output /tmp/one/out
RPA_RAY_CACHE=/tmp/two rpa-ray campaign configs/quickstart.yaml --output /tmp/two/out
python benchmarks/same_bits.py /tmp/one/out /tmp/two/out

Exit status 1 where something differs.
"""

import json
import sys
from pathlib import Path
from typing import Any

COMPARED = ("metrics.jsonl", "samples.jsonl", "evaluation.json", "config.yaml")
TIMES = ("time/", "times", "seconds", "throughput")


def main() -> int:
    one, two = map(Path, sys.argv[1:])
    runs = sorted(path.parent.name for path in one.glob("*/config.yaml"))
    differing = [] if runs == sorted(p.parent.name for p in two.glob("*/config.yaml")) else ["runs"]
    num_lines = 0
    for run in runs:
        for name in COMPARED:
            first, second = lines_of(one / run / name), lines_of(two / run / name)
            num_lines += len(first)
            if first != second:
                differing.append(f"{run}/{name}")
    print(f"{len(runs)} runs, {num_lines} lines compared without their times")
    print("\n".join(f"differs: {name}" for name in differing) or "all equal")
    return 1 if differing else 0


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file as they stand, but for JSON without the fields that are times."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.dumps(without_times(json.loads(line))) for line in text.splitlines()]
    if path.suffix == ".json":
        return json.dumps(without_times(json.loads(text)), indent=1).splitlines()
    return text.splitlines()


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if not key.startswith(TIMES)}


if __name__ == "__main__":
    sys.exit(main())
