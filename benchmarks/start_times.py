"""Print how long the first experiment of a campaign takes to start, and how long the next.

python benchmarks/start_times.py --output runs/start_times

The first waits for the command line, Ray, the ranks and the workers; the next finds them warm.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "start_times")
    output = parser.parse_args().output
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    config = Path(__file__).with_suffix(".yaml")
    command = [str(Path(sys.executable).with_name("rpa-ray")), "campaign", str(config)]
    begun = time.time()
    with (output / "log.txt").open("w") as log:
        status = subprocess.call([*command, "--output", str(output)], stdout=log, stderr=log)
    if status:
        print(f"the campaign must end with status 0, got {status}, see {output / 'log.txt'}")
        return 1
    first, second = sorted(
        (json.loads(path.read_text())["times"] for path in output.glob("*/evaluation.json")),
        key=lambda times: times["started"],
    )
    first_s = first["ready"] - begun
    second_s = second["ready"] - first["finished"]
    print(f"first experiment ready after {first_s:.1f} s (command line, cluster, workers, parts)")
    print(f"second ready {second_s:.2f} s after the end of the first")
    print(f"ratio {first_s / second_s:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
