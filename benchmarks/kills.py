"""Kill processes of a run at random moments, and compare what it records with an undisturbed run.

python benchmarks/kills.py --output runs/kills

An outside observer: it reads /proc and the run folder, sends SIGKILL, and after the death of the
driver gives the same command again. Exit status 1 where anything differs from the undisturbed run.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from observed_run import KINDS, ObservedRun, command_line, compare  # noqa: E402

KILLS_A_RUN = 5
SPACING = 4
"""Steps between two kills of a run: the two after a kill are timed."""
RECOVERY_S = 900.0
MAX_MISSED = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """One kill that happened."""

    kind: str
    run: int
    step: int
    """Steps that were done."""
    next_s: float
    """Seconds until one more step was done than ever before."""
    lost_s: float
    """Seconds until two more were, less what two take undisturbed."""


def main() -> int:
    options = parse()
    shutil.rmtree(options.output, ignore_errors=True)
    rng = random.Random(options.seed)
    num_steps = options.num_samples // 8
    print(f"files: {options.output}", flush=True)
    undisturbed = start(options, "undisturbed")
    if finish(undisturbed):
        return 1
    step_s = step_seconds(undisturbed.output)
    print(f"undisturbed: {num_steps} steps, median {step_s:.2f} s", flush=True)
    waiting = kinds_of(options.kinds, options.kills, rng)
    kills: list[Kill] = []
    missed: list[str] = []
    problems: list[str] = []
    run = 0
    while waiting and len(missed) <= MAX_MISSED and not problems:
        run += 1
        mine, waiting = waiting[:KILLS_A_RUN], waiting[KILLS_A_RUN:]
        plan = list(zip(steps_of(len(mine), num_steps, rng), mine, strict=True))
        print(f"run {run}: " + ", ".join(f"{kind} at {step}" for step, kind in plan), flush=True)
        disturbed = start(options, f"disturbed_{run}")
        try:
            done, lacking = disturb(disturbed, plan, run, step_s, rng)
            kills += done
            missed += lacking
            waiting += lacking
            problems += verdict(undisturbed, disturbed)
        finally:
            disturbed.end()
    if waiting:
        problems.append(f"{len(waiting)} kills of {options.kills} were not done")
    report(kills, missed, problems)
    return 1 if problems else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=str(ROOT / "configs" / "attack_and_defence.yaml"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-samples", type=int, default=320)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--checkpoint-interval-s", type=float, default=2.0)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "kills")
    return parser.parse_args()


def kinds_of(kinds: Sequence[str], num_kills: int, rng: random.Random) -> list[str]:
    """Return the kinds in random order, each about equally often."""
    drawn = [kinds[i % len(kinds)] for i in range(num_kills)]
    rng.shuffle(drawn)
    return drawn


def steps_of(num_kills: int, num_steps: int, rng: random.Random) -> list[int]:
    """Return random steps in order, at least ``SPACING`` apart and as far from the end."""
    free = num_steps - SPACING * num_kills - 1
    if free < num_kills:
        raise SystemExit(f"--num-samples must be at least {8 * (SPACING + 2) * num_kills}")
    chosen = sorted(rng.sample(range(1, free + num_kills), num_kills))
    return [step + (SPACING - 1) * i for i, step in enumerate(chosen)]


def start(options: argparse.Namespace, name: str) -> ObservedRun:
    settings = {
        "model.dtype": "float32",
        "data.num_samples": options.num_samples,
        "evaluation.num_prompts": 20,
        "cluster.num_ranks": options.ranks,
        "cluster.cpus_per_rank": 0.5,
        "cluster.zero_stage": options.zero_stage,
        "cluster.checkpoint_interval_s": options.checkpoint_interval_s,
    }
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    output = options.output / name
    command = command_line("run", options.config, *pairs, "--output", str(output))
    return ObservedRun(command, output=output, environment=os.environ)


def finish(run: ObservedRun) -> list[str]:
    """Wait for the end; return what is wrong with it."""
    try:
        status = run.wait()
    finally:
        run.end()
    if status == 0:
        return []
    problem = f"the command must end with status 0, got {status}, see {run.log}"
    print(problem, flush=True)
    return [problem]


def step_seconds(output: Path) -> float:
    (path,) = output.glob("*/metrics.jsonl")
    return statistics.median(
        json.loads(line)["time/step_s"] for line in path.read_text().splitlines()
    )


def disturb(
    run: ObservedRun,
    plan: Sequence[tuple[int, str]],
    number: int,
    step_s: float,
    rng: random.Random,
) -> tuple[list[Kill], list[str]]:
    """Carry out the kills of one run; return those that happened and the kinds of the others."""
    kills, missed = [], []
    for step, kind in plan:
        killed = run.kill(kind, rng, within_s=step_s) if run.wait_for_steps(step) else None
        if killed is None:
            print(f"  {kind} at {step}: missed", flush=True)
            missed.append(kind)
            continue
        done = run.num_steps()
        times = []
        for more in (1, 2):
            if not run.wait_for_steps(done + more, RECOVERY_S):
                raise SystemExit(f"{kind} at {done}: no step {done + more}, see {run.log}")
            times.append(time.monotonic() - killed)
        lost_s = times[1] - 2 * step_s
        kills.append(Kill(kind=kind, run=number, step=done, next_s=times[0], lost_s=lost_s))
        print(f"  {kind} at {done}: {times[0]:.1f} s, lost {lost_s:.1f} s", flush=True)
    return kills, missed


def verdict(undisturbed: ObservedRun, disturbed: ObservedRun) -> list[str]:
    """Wait for the end of a disturbed run and return what is not as it should be."""
    problems = finish(disturbed)
    if problems:
        return problems
    problems = [f"still running: {p}" for p in disturbed.left_over()]
    found = compare(undisturbed.output, disturbed.output)
    print(
        f"  {found.num_values} values, {found.num_not_equal} not equal, "
        f"largest difference {found.largest:g}",
        flush=True,
    )
    return problems + found.differences


def report(kills: Sequence[Kill], missed: Sequence[str], problems: Sequence[str]) -> None:
    print("\n| run | step | killed | next step after, s | lost, s |")
    print("| --: | --: | --- | --: | --: |")
    for k in kills:
        print(f"| {k.run} | {k.step} | {k.kind} | {k.next_s:.1f} | {k.lost_s:.1f} |")
    print("\n| killed | kills | mean lost, s | least | most |")
    print("| --- | --: | --: | --: | --: |")
    for kind in [*KINDS, "all"]:
        lost = [k.lost_s for k in kills if kind in (k.kind, "all")]
        if lost:
            print(
                f"| {kind} | {len(lost)} | {statistics.mean(lost):.1f} "
                f"| {min(lost):.1f} | {max(lost):.1f} |"
            )
    print(f"\nwindows missed and tried again in another run: {len(missed)} {sorted(set(missed))}")
    for problem in problems[:40]:
        print(f"DIFFERS {problem}")
    print("something differs" if problems else "nothing differs from the undisturbed run")


if __name__ == "__main__":
    sys.exit(main())
