"""Mutations of the shipped configs, each of which has to run or to be refused in one sentence.

    RPA_RAY_CACHE=FOLDER python benchmarks/mutations.py [--num 2000] [--commands 50] [--seed 0]

Keys are deleted, renamed and retyped, values swapped for hostile ones, nodes doubled and moved,
bytes of the text flipped, includes broken. Each mutant goes through what ``rpa-ray plan`` calls, in
this process; some go through the command itself. Embedded data alone: a name of the Hub counts as
out of reach. Exit status 1 where one ended in a traceback or took more than 5 s of this process.
"""

import argparse
import contextlib
import copy
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rpa_ray import cli
from rpa_ray.config import ConfigError
from rpa_ray.data.errors import DataError
from rpa_ray.plan import load_config
from rpa_ray.plan.checks.problems import Refused
from rpa_ray.plan.files import read_with_parts
from rpa_ray.plan.preflight import checked, planned
from rpa_ray.world.datasets import build_world

ROOT = Path(__file__).parents[1]
LIMIT_S = 5.0
REFUSED = 2
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.0, -0.5, 1e308, float("nan"), float("inf"),
    "", " ", ".", "..", "/", "\0", "\ud800", "a" * 5000, "../../etc/passwd", "/dev/null", "{scale}",
    "none", "ppo", "chat", "ppo+dpo", "owner/name", "owner/name@rev", "\u202e", "0", "1e5", "yes",
    [], {}, [[]], [{}], {"": 1}, {"name": "ppo"}, {"name": 3}, {"name": None}, ["none", "none"],
    [None], {"parts": []}, {"parts": [1]}, [1, "a", None], {"a": {"b": {"c": 1}}},
)  # fmt: skip
TEXTS = (
    'include: ["\\0"]', "\t", "? [a]\n: 1", "a: &a [*a]", "seed: 2026-13-01", "seed: 12:30", "\x00",
    "<<: 3", "---\nseed: 1", "!!python/object/apply:os.system [id]", "%YAML 9", "seed: !!binary x",
    "include: [.]", "include: [../configs]", "x: " + "[" * 900, "&" * 100, "*a", "{", "'", "| ",
)  # fmt: skip
Place = tuple[Any, Any]
"""A dict or list, and the key or index in it."""


def places(node: Any) -> list[Place]:
    """Return every place of a tree that holds a value."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    found: list[Place] = []
    for key in keys:
        found.append((node, key))
        if isinstance(node[key], dict | list):
            found += places(node[key])
    return found


def delete(tree: Any, random_: random.Random) -> None:
    """Take a key or an item away."""
    node, key = random_.choice(places(tree))
    del node[key]


def rename(tree: Any, random_: random.Random) -> None:
    """Misspell a key, or swap it for a hostile one."""
    node, key = random_.choice([p for p in places(tree) if isinstance(p[0], dict)])
    value, text = node.pop(key), str(key)
    cut = random_.randrange(len(text) + 1)
    names = [text[:cut] + text[cut + 1 :], text.upper(), text + ".x", "", "\0", "include", "name"]
    node[random_.choice(names)] = value


def retype(tree: Any, random_: random.Random) -> None:
    """Write a value as another type."""
    node, key = random_.choice(places(tree))
    value = node[key]
    node[key] = random_.choice([str(value), [value], {"name": value}, None, not value])


def swap(tree: Any, random_: random.Random) -> None:
    """Put a hostile value in place of one."""
    node, key = random_.choice(places(tree))
    node[key] = copy.deepcopy(random_.choice(HOSTILE))


def double(tree: Any, random_: random.Random) -> None:
    """Put a copy of one node into another."""
    node, key = random_.choice(places(tree))
    target, place = random_.choice(places(tree))
    value = copy.deepcopy(node[key])
    if isinstance(target, list):
        target.insert(place, value)
    else:
        target[key if isinstance(key, str) else place] = value


def move(tree: Any, random_: random.Random) -> None:
    """Put a node in place of another, and take it from where it was."""
    node, key = random_.choice(places(tree))
    value = copy.deepcopy(node[key])
    del node[key]
    if rest := places(tree):
        target, place = random_.choice(rest)
        target[place] = value


def break_include(tree: Any, random_: random.Random) -> None:
    """Include something that is no part."""
    parts = ["nowhere.yaml", ".", "\0", "", "/dev/null", "attack/ppo.yaml", "x" * 300, 3, None, []]
    included = tree.get("include")
    tree["include"] = [*(included if isinstance(included, list) else []), random_.choice(parts)]
    if random_.random() < 0.2:
        tree["include"] = random_.choice(parts)


OF_TREES: dict[str, Callable[[Any, random.Random], None]] = {
    "key deleted": delete,
    "key renamed": rename,
    "value retyped": retype,
    "hostile value": swap,
    "node doubled": double,
    "node moved": move,
    "include broken": break_include,
}


def flip(text: bytes, random_: random.Random) -> bytes:
    """Change some bytes of a text, or put a hostile line into it."""
    changed = bytearray(text)
    if random_.random() < 0.3:
        lines = text.split(b"\n")
        lines.insert(random_.randrange(len(lines) + 1), random_.choice(TEXTS).encode())
        return b"\n".join(lines)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(changed))
        changed[at] = random_.choice([random_.randrange(256), *b" :-{}[]\t\"'&*#\n"])
    return bytes(changed)


def mutant(path: Path, kind: str, random_: random.Random) -> bytes:
    """Return the text of a mutant of a config; its parts are named from where they are."""
    if kind == "bytes flipped":
        return flip(path.read_bytes(), random_)
    is_whole = kind != "include broken" and random_.random() < 0.5
    tree = read_with_parts(path) if is_whole else yaml.safe_load(path.read_text("utf-8")) or {}
    tree = copy.deepcopy(tree)
    for _ in range(random_.choice([1, 1, 1, 2, 3])):
        if places(tree) or kind == "include broken":
            OF_TREES[kind](tree, random_)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=False).encode()


def tried(path: Path, output: Path) -> str:
    """Do what ``rpa-ray plan`` does with a file; return how it ended."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            loaded = load_config(path)
            console = Console(file=io.StringIO())
            found, inputs = checked(loaded, output, cli.cache_folder(), console)
            planned(found, output, inputs, console)
    except (ConfigError, DataError, Refused):
        return "refused"
    except Exception:
        return f"traceback: {traceback.format_exc(limit=-3)}"
    return "accepted"


def commanded(path: Path, output: Path) -> str:
    """Call ``rpa-ray plan`` itself; return how it ended."""
    command = [sys.executable, "-m", "rpa_ray", "plan", str(path), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if "Traceback" in done.stderr or done.returncode not in (0, REFUSED):
        return f"traceback: {done.stderr}"
    return "refused" if done.returncode else "accepted"


def main() -> int:
    """Try the mutants; print a table and what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--commands", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    random_ = random.Random(asked.seed)
    build_world(0, cli.cache_folder())
    kinds = [*OF_TREES, "bytes flipped"]
    counts: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        output, configs = Path(folder, "runs"), Path(folder, "configs")
        shutil.copytree(ROOT / "configs", configs)
        paths = sorted(configs.rglob("*.yaml"))
        tried(configs / "quickstart.yaml", output)  # what is imported and built once
        for i in range(asked.num + asked.commands):
            path, kind = random_.choice(paths), kinds[i % len(kinds)]
            content = mutant(path, kind, random_)
            file = path.with_name("mutant.yaml")  # beside the original, where its parts are found
            file.write_bytes(content)
            began = time.process_time()
            outcome = (tried if i < asked.num else commanded)(file, output)
            took_s = time.process_time() - began
            file.unlink()
            row = kind if i < asked.num else "by the command"
            counts[row, outcome.partition(":")[0]] += 1
            slowest = max(slowest, took_s) if i < asked.num else slowest
            is_slow = took_s > LIMIT_S and i < asked.num
            counts[row, "slow"] += is_slow
            if outcome.startswith("traceback") or is_slow:
                what = f"{path.relative_to(folder)}, {kind}, {took_s:.1f} s: {outcome}"
                wrong.append(f"{what}\n{content[:3000].decode('utf-8', 'replace')}")
    print("| mutation | tried | accepted | refused | tracebacks | over 5 s |")
    print("| --- | --: | --: | --: | --: | --: |")
    for row in [*kinds, "by the command"]:
        ended = [counts[row, how] for how in ("accepted", "refused", "traceback")]
        print(f"| {row} | {sum(ended)} | {' | '.join(map(str, ended))} | {counts[row, 'slow']} |")
    print(f"\nThe slowest of those in one process took {slowest:.1f} s of CPU time.")
    for one in wrong:
        print(f"\n{one}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
