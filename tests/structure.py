"""Figures of the package's structure, read from its source: python tests/structure.py."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rpa_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = (
    {"types", "deadline", "terminal", "ops", "config", "scoring", "run_folder"},
    {"plugin", "data", "cluster"},
    {"actors"},
    {"attacks", "defences", "learner", "weight_sync", "world"},
    {"loop", "evaluation", "recipes"},
    {"sources", "plan", "report"},
    {"jobs", "ray_job", "paper"},
    {"campaign"},
    {"cli"},
    {"__main__", "__init__"},
)
"""A module imports from its own part (a folder, or a file at the root) and from lower layers."""


def part_of(path: Path) -> str:
    """Return the folder at the root, or the file there, that a module belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(path: Path) -> Iterator[str]:
    """Yield the dotted name of every import in a module, wherever in the file it stands."""
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            # `from rpa_ray import learner` names a module in what is imported.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def upward_imports() -> list[str]:
    """Return what a module imports from a neighbour of its layer or from a higher one."""
    layer_of = {part: i for i, parts in enumerate(LAYERS) for part in parts}
    upward = []
    for path in MODULES:
        own = part_of(path)
        for name in imported_names(path):
            top, _, rest = name.partition(".")
            other = rest.partition(".")[0] if top == "rpa_ray" else own
            if other != own and layer_of[other] >= layer_of[own]:
                upward.append(f"{path.relative_to(PACKAGE)} imports {name}")
    return upward


def _definers(name: str) -> set[Path]:
    """Return the files in which an imported name stands; those behind a face, not the face."""
    parts = name.split(".")
    if parts[0] != "rpa_ray":
        return set()
    for length in (len(parts), len(parts) - 1):
        file = ROOT.joinpath(*parts[:length])
        for found in (file.with_suffix(".py"), file / "__init__.py"):
            if not found.is_file():
                continue
            if not _is_face(found):
                return {found}
            named = [n for n in imported_names(found) if n.rpartition(".")[2] == parts[-1]]
            return set().union(*(_definers(n) for n in named))
    return set()


@cache
def _is_face(path: Path) -> bool:
    """Return whether a package's file only hands names on."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    own = [node for node in body if not isinstance(node, ast.ImportFrom | ast.Expr)]
    return path.name == "__init__.py" and all(
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" for node in own
    )


def longest_chain() -> list[Path]:
    """Return the longest chain of files of which each imports the next; faces are no step.

    Raises:
        ValueError: files import each other in a circle.
    """
    imports = {
        path: set().union(*(_definers(name) for name in imported_names(path))) - {path}
        for path in MODULES
    }
    above: list[Path] = []

    @cache
    def chain(path: Path) -> tuple[Path, ...]:
        if path in above:
            raise ValueError(f"circle: {[p.name for p in above[above.index(path) :]]}")
        above.append(path)
        longest = max((chain(other) for other in imports[path]), key=len, default=())
        above.remove(path)
        return (path, *longest)

    return list(max((chain(path) for path in MODULES), key=len))


def function_lines() -> dict[str, int]:
    """Return the lines of every function, by file and name."""
    lines = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                place = f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"
                lines[place] = node.end_lineno - node.lineno + 1
    return lines


def main() -> None:
    """Print them."""
    functions = function_lines()
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    longest_function = max(functions, key=lambda name: functions[name])
    longest_file = max(lengths, key=lambda path: lengths[path])
    chain = longest_chain()
    print(f"files at the root: {len(list(PACKAGE.glob('*.py')))}")
    print(f"folders and files at the root: {len({part_of(path) for path in MODULES})}")
    print(f"layers: {len(LAYERS)}, imports upwards: {len(upward_imports())}")
    print(f"longest chain of imports: {len(chain)} files")
    print("  " + " -> ".join(str(path.relative_to(PACKAGE)) for path in chain))
    print(f"lines: {sum(lengths.values())} in {len(MODULES)} files")
    print(f"functions: {len(functions)}, median {median(functions.values()):g} lines")
    print(f"  longest {functions[longest_function]}: {longest_function}")
    print(f"  longest file {lengths[longest_file]}: {longest_file.relative_to(PACKAGE)}")


if __name__ == "__main__":
    main()
