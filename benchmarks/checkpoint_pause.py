"""Print how long a training waits for a checkpoint that is written at once, and for one aside.

python benchmarks/checkpoint_pause.py FOLDER [--million 50] [--times 5]

One rank, bfloat16 weights under ZeRO 1: 14 bytes a parameter. The two ways take turns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from rpa_ray.learner.checkpoint_cost import state_bytes
from rpa_ray.learner.checkpoints import Checkpoints
from rpa_ray.learner.engine import Engine, EngineSettings, OptimizerSettings
from rpa_ray.learner.ranks import Ranks

WIDTH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="on the disk that is meant")
    parser.add_argument("--million", type=int, default=50, help="parameters")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rendezvous = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
        measure(Path(folder), options.million, options.times)
        dist.destroy_process_group()


def measure(folder: Path, million: int, times: int) -> None:
    """Save in both ways, and print a table."""
    engine = Engine(
        torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(million))),
        EngineSettings(
            optimizer=OptimizerSettings(learning_rate=1e-5, num_steps=1),
            micro_batch_size=1,
            num_ranks=1,
            zero_stage=1,
            bf16=True,
        ),
    )
    checkpoints = Checkpoints(
        folder / "checkpoints", ranks=Ranks.current(), engine=engine, parts={}, interval_s=0.0
    )
    waits: dict[bool, list[float]] = {False: [], True: []}
    named: dict[bool, list[float]] = {False: [], True: []}
    for i in range(2 * times):
        aside = i % 2 == 1
        started = time.monotonic()
        checkpoints.save(i + 1, aside=aside)
        waits[aside].append(time.monotonic() - started)
        while not checkpoints.is_due():
            time.sleep(0.01)
        named[aside].append(time.monotonic() - started)
    print(f"{state_bytes(engine.module) / 2**30:.2f} GiB, {times} times each\n")
    print("| written | the training waits, s | until it has its name, s |")
    print("| --- | --: | --: |")
    for aside, way in ((False, "at once"), (True, "aside")):
        print(f"| {way} | {_spread(waits[aside])} | {_spread(named[aside])} |")
    checkpoints.delete()


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
