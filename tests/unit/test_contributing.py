"""The walk of CONTRIBUTING.md works as it is written."""

import re
import shutil
import subprocess
import sys
from bisect import insort
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WALK = "### A defence from start to end"
NEW = "gradient_noise"
CODE = f"rpa_ray/defences/online/{NEW}.py"
TABLE = "rpa_ray/defences/__init__.py"
PART = f"configs/defence/{NEW}.yaml"
TEST = f"tests/unit/defences/online/test_{NEW}.py"
CHANGELOG = "CHANGELOG.md"


def steps() -> list[str]:
    """Return the fenced blocks of the walk in order: file, import, row, YAML, test, line."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(WALK)[2].partition("\n## ")[0]
    return re.findall(r"^```\w+\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


def insert(lines: list[str], new: str, *, start: str, among: str) -> list[str]:
    """Return the lines with a new one at its place in the alphabet, among one run of them.

    The run begins after ``start`` and holds the lines that begin with ``among``.
    """
    first = next(i for i, line in enumerate(lines) if line.startswith(start)) + 1
    last = first
    while lines[last].startswith(among):
        last += 1
    run = lines[first:last]
    insort(run, new)
    return [*lines[:first], *run, *lines[last:]]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository in which every step of the walk was taken."""
    folder = tmp_path_factory.mktemp("copy")
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("rpa_ray", "configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=junk)
    for name in ("pyproject.toml", CHANGELOG):
        shutil.copy(ROOT / name, folder / name)
    code, imported, row, part, test, line = steps()
    for path, text in ((CODE, code), (PART, part), (TEST, test)):
        assert not (folder / path).exists(), f"{path} is taken: the walk needs another example"
        (folder / path).write_text(text, encoding="utf-8")
    table = (folder / TABLE).read_text(encoding="utf-8").splitlines(keepends=True)
    importing = "from rpa_ray.defences.online."
    table = insert(table, imported, start="from rpa_ray.defences.composed", among=importing)
    table = insert(table, row, start='    "none"', among='    "')
    (folder / TABLE).write_text("".join(table), encoding="utf-8")
    notes = (folder / CHANGELOG).read_text(encoding="utf-8")
    notes = notes.replace("## Unreleased\n\n", f"## Unreleased\n\n{line}", 1)
    (folder / CHANGELOG).write_text(notes, encoding="utf-8")
    return folder


def run(copy: Path, *arguments: str) -> str:
    """Return what Python prints in the copy, whose package is the one that is imported."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_is_no_defence_of_ours() -> None:
    assert not (ROOT / CODE).exists()


def test_its_test_and_the_rules_for_plugins_pass(copy: Path) -> None:
    rules = "plugin or bounded or ascii or gradient_noise"
    out = run(copy, "-m", "pytest", "-q", "-k", rules, TEST, "tests/unit/test_repository.py")
    num_passed = int(re.findall(r"(\d+) passed", out)[0])
    num_claims = len(re.findall(r"^def test_", (copy / TEST).read_text(), flags=re.MULTILINE))
    assert num_claims >= 5
    # the new config, the new plug-in, the table's kinds and the other rules
    assert num_passed > num_claims + 6


def test_ruff_has_nothing_to_say(copy: Path) -> None:
    files = (CODE, TABLE, TEST)
    run(copy, "-m", "ruff", "check", "--no-cache", *files)
    run(copy, "-m", "ruff", "format", "--check", "--no-cache", *files)


def test_a_config_can_name_it(copy: Path) -> None:
    code = (
        "import rpa_ray; from rpa_ray.plan import load_config\n"
        f"cells = load_config({PART!r}, ['attack=ppo']).campaign.cells\n"
        "print(rpa_ray.__file__, [cell.defence for cell in cells])"
    )
    out = run(copy, "-c", code)
    assert out.startswith(str(copy))
    assert "name='gradient_noise', relative_std=1.0, seed=0" in out


def test_the_changelog_gets_one_line_of_one_sentence(copy: Path) -> None:
    ours = (ROOT / CHANGELOG).read_text(encoding="utf-8").splitlines()
    added = [
        x for x in (copy / CHANGELOG).read_text(encoding="utf-8").splitlines() if x not in ours
    ]
    assert len(added) == 1
    assert re.fullmatch(r"- [^.]*`gradient_noise`[^.]*\.", added[0])
