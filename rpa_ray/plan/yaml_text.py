"""YAML as configs hold it: what is ambiguous, endless or no value at all is refused by its line."""

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.reader import ReaderError

MAX_VALUES = 1_000_000
"""Of a file with all its aliases; ten thousand cells that depart in ten settings have a tenth."""
MAX_INT = 2**63 - 1
"""Larger integers are no number of anything, and no seed that a library takes."""


class _Loader(yaml.SafeLoader):
    """Reads 5e-5 as a number, and refuses a key that is no text or stands twice."""

    num_keys = 0
    """Of all mappings so far, those merged into them among them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                what = repr(key) if isinstance(key, str) else "before the colon"
                problem = f"the key {what} must be a text; quote it"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            if key in seen:
                problem = f"the key {key!r} stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        # Before a mapping is merged into another, so that merges of merges end in time.
        self.num_keys += len(node.value)
        if self.num_keys > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} keys, each merge counted"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
                raise ValueError("half of a character, which no file can hold")
            return value
        except (ValueError, OverflowError) as error:  # a thirteenth month, a number of 5,000 digits
            problem = str(error).partition(";")[0]
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Return an integer; one that YAML 1.1 reads in another way than people do is refused."""
    text = node.value.lstrip("+-")
    if ":" in text or re.match(r"0[0-9_]", text):
        raise ValueError(
            f"{node.value} is read to the base 60 or 8; write it without : and first 0"
        )
    value: int = loader.construct_yaml_int(node)
    if abs(value) > MAX_INT:
        raise ValueError("an integer of more than 64 bits")
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
# YAML 1.1 wants a dot and a signed exponent in a float and reads 5e-5 as a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parsed(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: aliases of it stand for more values than any experiment has.
        yaml.YAMLError: it is no YAML, or a value is none, such as a date of a thirteenth month.
    """
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: the character {chr(error.character)!r}") from None
    if _num_values(value, {}) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values, each alias counted")
    return value


def _num_values(value: Any, known: dict[int, int]) -> int:
    """Return how many values there are in a value; ``known`` holds those of each list or mapping.

    Raises:
        RecursionError: it holds itself.
    """
    if not isinstance(value, list | dict):
        return 1
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_num_values(one, known) for one in inner)
    return known[id(value)]


def reason(error: yaml.YAMLError | ValueError) -> str:
    """Return in one line where and why a text is no YAML."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    problem = getattr(error, "problem", None) or "something is wrong"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
