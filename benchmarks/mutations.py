"""Mutated configs, data files and model folders: each has to run or to be refused in one sentence.

    RPA_RAY_CACHE=FOLDER python benchmarks/mutations.py [--configs 2000] [--commands 50]
        [--data 200] [--models 100] [--seed 0]

Each mutant goes through what ``rpa-ray plan`` calls, in this process; what that accepts of data and
models goes on to what the jobs of a cell do first: rows are paired, split, templated and tokenised,
models loaded. Some configs go through the command itself. A name of the Hub counts as out of reach.
Exit status 1 where one ended in a traceback, was refused in another form, or took more than 5 s of
this process, and where a folder or file that nobody mutated was refused.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import yaml
from mutated import configs, data, models
from mutated.trial import Tally, Watch, tried

from rpa_ray import cli
from rpa_ray.world.datasets import build_world

ROOT = Path(__file__).parents[1]
REFUSED = 2
COMMAND = "by the command"


def commanded(path: Path, output: Path) -> str:
    """Call ``rpa-ray plan`` itself; return how it ended."""
    command = [sys.executable, "-m", "rpa_ray", "plan", str(path), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if "Traceback" in done.stderr or done.returncode not in (0, REFUSED):
        return f"traceback: {done.stderr}"
    return "refused" if done.returncode else "accepted"


def try_configs(num: int, num_commands: int, random_: random.Random, folder: Path) -> Tally:
    """Try mutants of the shipped configs."""
    output, originals = folder / "runs", folder / "configs"
    shutil.copytree(ROOT / "configs", originals)
    paths = sorted(originals.rglob("*.yaml"))
    tally = Tally()
    tried(originals / "quickstart.yaml", output)  # what is imported and built once
    for i in range(num + num_commands):
        path, kind = random_.choice(paths), configs.KINDS[i % len(configs.KINDS)]
        content = configs.mutant(path, kind, random_)
        file = path.with_name("mutant.yaml")  # beside the original, where its parts are found
        file.write_bytes(content)
        watch = Watch()
        outcome = tried(file, output) if i < num else commanded(file, output)
        took_s = watch.seconds() if i < num else None
        file.unlink()
        what = f"{path.relative_to(folder)}\n{content[:3000].decode('utf-8', 'replace')}"
        tally.add(kind if i < num else COMMAND, outcome, what, took_s)
    return tally


def try_tree(tree: dict[str, Any], kind: str, what: str, tally: Tally, folder: Path) -> None:
    """Try a config that names a mutant."""
    file = folder / "mutant.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    watch = Watch()
    outcome = tried(file, folder / "runs")
    if kind == data.UNCHANGED and outcome == "refused":
        outcome = "traceback: refused without a mutation"
    tally.add(kind, outcome, what, watch.seconds())


def try_data(num: int, seed: int, folder: Path) -> Tally:
    """Try mutants of data files, after a valid one of every form and format."""
    tally = Tally()
    model, valid, place = folder / "model", folder / "valid", folder / "mutant"
    models.save(model, "llama")
    data.write_valid(valid)
    for i in range(-len(data.UNCHANGED_PLACES), num):
        random_ = random.Random(f"data/{seed}/{i}")
        kind = data.UNCHANGED if i < 0 else data.KINDS[i % len(data.KINDS)]
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        fixed = data.UNCHANGED_PLACES[i] if i < 0 else None
        name, there = data.mutant(place, kind, random_, fixed)
        tree = data.config(name, there, model, valid)
        try_tree(tree, kind, f"data {i}: {name}, {there.name}", tally, folder)
    return tally


def try_models(num: int, seed: int, folder: Path) -> Tally:
    """Try mutants of model folders, after one of every architecture as it is."""
    tally = Tally()
    for i in range(-10, num):
        random_ = random.Random(f"models/{seed}/{i}")
        kind = models.UNCHANGED if i < 0 else models.KINDS[i % len(models.KINDS)]
        place = folder / f"model{i}"
        place.mkdir()
        tree = models.mutant(place, kind, random_)
        try_tree(tree, kind, f"models {i}: {tree}", tally, folder)
        shutil.rmtree(place)
    return tally


def main() -> int:
    """Try the mutants; print tables, and what went wrong to stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=int, default=2000)
    parser.add_argument("--commands", type=int, default=50)
    parser.add_argument("--data", type=int, default=200)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    build_world(0, cli.cache_folder())
    tallies: list[Tally] = []
    with tempfile.TemporaryDirectory() as name:
        folder, seed = Path(name), asked.seed
        if asked.configs:
            tallies.append(try_configs(asked.configs, asked.commands, random.Random(seed), folder))
            tallies[-1].print("config", [*configs.KINDS, COMMAND])
        if asked.data:
            tallies.append(try_data(asked.data, seed, folder))
            tallies[-1].print("data file", [data.UNCHANGED, *data.KINDS])
        if asked.models:
            tallies.append(try_models(asked.models, seed, folder))
            tallies[-1].print("model folder", [models.UNCHANGED, *models.KINDS])
    return 1 if any(tally.num_wrong for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
