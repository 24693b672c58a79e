"""What SECURITY.md promises is held by tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISES = [
    line.strip("|").rsplit("|", 1)
    for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| promise", "| ---"))
]


@pytest.mark.parametrize(("promise", "tests"), PROMISES, ids=[p[:40] for p, _ in PROMISES])
def test_every_promise_names_tests_that_exist(promise: str, tests: str) -> None:
    named = re.findall(r"`([\w/.]*)(?:::(\w+))?`", tests)
    assert named, promise
    path = ""
    for file, function in named:
        path = file or path  # `::test_x` is of the file before
        text = (ROOT / "tests" / path).read_text(encoding="utf-8")
        assert f"def {function or 'test_'}" in text, f"{path}::{function}"
