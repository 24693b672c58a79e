"""The walks of CONTRIBUTING.md work as they are written."""

import re
import shutil
import subprocess
import sys
from bisect import insort
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = "rpa_ray/defences/__init__.py"
CHANGELOG = "CHANGELOG.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """A section that adds a defence, and where its steps lead."""

    title: str
    name: str
    kind: str
    """Folder of the defence; online or offline."""
    table: str
    """Line after which the rows of its table stand in the order of the alphabet."""
    claims: int
    settings: str
    """Part of what a config that names it becomes."""

    @property
    def code(self) -> str:
        return f"rpa_ray/defences/{self.kind}/{self.name}.py"

    @property
    def part(self) -> str:
        return f"configs/defence/{self.name}.yaml"

    @property
    def test(self) -> str:
        return f"tests/unit/defences/{self.kind}/test_{self.name}.py"

    def steps(self) -> list[str]:
        """Return the fenced blocks of the walk in order: file, import, row, YAML, test, line."""
        text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        section = text.partition(f"### {self.title}\n")[2].partition("\n## ")[0]
        return re.findall(r"^```\w+\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


WALKS = [
    Walk(
        title="A defence from start to end",
        name="gradient_noise",
        kind="online",
        table='    "none"',
        claims=5,
        settings="name='gradient_noise', relative_std=1.0, seed=0",
    ),
    Walk(
        title="An offline defence from start to end",
        name="more_refusals",
        kind="offline",
        table="OFFLINE_DEFENCES",
        claims=1,
        settings="name='more_refusals', learning_rate=0.0001, num_steps=100",
    ),
]


def insert(lines: list[str], new: str, *, start: str, among: str) -> list[str]:
    """Return the lines with a new one at its place in the alphabet, among one run of them.

    The run begins after ``start`` and holds the lines that begin with ``among``.
    """
    begin = next(i for i, line in enumerate(lines) if line.startswith(start)) + 1
    first = next(i for i in range(begin, len(lines)) if lines[i].startswith(among))
    last = first
    while lines[last].startswith(among):
        last += 1
    run = lines[first:last]
    insort(run, new)
    return [*lines[:first], *run, *lines[last:]]


@pytest.fixture(scope="module", params=WALKS, ids=lambda walk: walk.name)
def walk(request: pytest.FixtureRequest) -> Walk:
    taken: Walk = request.param
    return taken


@pytest.fixture(scope="module")
def copy(walk: Walk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository in which every step of the walk was taken."""
    folder = tmp_path_factory.mktemp("copy")
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("rpa_ray", "configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=junk)
    for name in ("pyproject.toml", CHANGELOG):
        shutil.copy(ROOT / name, folder / name)
    code, imported, row, part, test, line = walk.steps()
    for path, text in ((walk.code, code), (walk.part, part), (walk.test, test)):
        assert not (folder / path).exists(), f"{path} is taken: the walk needs another example"
        (folder / path).write_text(text, encoding="utf-8")
    table = (folder / TABLE).read_text(encoding="utf-8").splitlines(keepends=True)
    importing = f"from rpa_ray.defences.{walk.kind}."
    table = insert(table, imported, start="from rpa_ray.defences.composed", among=importing)
    table = insert(table, row, start=walk.table, among='    "')
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


def test_its_test_and_the_rules_for_plugins_pass(walk: Walk, copy: Path) -> None:
    rules = f"plugin or bounded or ascii or {walk.name} or test_{walk.name}"
    out = run(copy, "-m", "pytest", "-q", "-k", rules, walk.test, "tests/unit/test_repository.py")
    num_passed = int(re.findall(r"(\d+) passed", out)[0])
    num_claims = len(re.findall(r"^def test_", (copy / walk.test).read_text(), flags=re.MULTILINE))
    assert num_claims >= walk.claims
    # the new config, the new plug-in, the table's kinds and the other rules
    assert num_passed > num_claims + 6


def test_ruff_has_nothing_to_say(walk: Walk, copy: Path) -> None:
    files = (walk.code, TABLE, walk.test)
    run(copy, "-m", "ruff", "check", "--no-cache", *files)
    run(copy, "-m", "ruff", "format", "--check", "--no-cache", *files)


def test_a_config_can_name_it(walk: Walk, copy: Path) -> None:
    code = (
        "import rpa_ray; from rpa_ray.plan import load_config\n"
        f"cells = load_config({walk.part!r}, ['attack=ppo']).campaign.cells\n"
        "print(rpa_ray.__file__, [cell.defence for cell in cells])"
    )
    out = run(copy, "-c", code)
    assert out.startswith(str(copy))
    assert walk.settings in out


def test_the_changelog_gets_one_line_of_one_sentence(walk: Walk, copy: Path) -> None:
    ours = (ROOT / CHANGELOG).read_text(encoding="utf-8").splitlines()
    added = [
        x for x in (copy / CHANGELOG).read_text(encoding="utf-8").splitlines() if x not in ours
    ]
    assert len(added) == 1
    assert re.fullmatch(rf"- [^.]*`{walk.name}`[^.]*\.", added[0])
