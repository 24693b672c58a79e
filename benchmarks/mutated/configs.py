"""Mutants of the shipped configs: keys, values, nodes, includes and bytes of the text.

Keys are deleted, renamed and retyped, values swapped for hostile ones, nodes doubled and moved,
bytes of the text flipped, includes broken.
"""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from rpa_ray.plan.files import read_with_parts

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


KINDS = (*OF_TREES, "bytes flipped")


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
