"""Rules of the repository: who may import what, sizes, texts, and what every plug-in comes with."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from structure import (
    MODULES,
    PACKAGE,
    ROOT,
    imported_names,
    longest_chain,
    part_of,
    upward_imports,
)

from rpa_ray.attacks import ATTACKS
from rpa_ray.config import ConfigError
from rpa_ray.defences import DEFENCES, OFFLINE_DEFENCES
from rpa_ray.plan import load_config

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
TEXT_SUFFIXES = {".py", ".sh", ".yaml", ".yml", ".toml", ".md", ".lock", ".html", ".css"}
PRODUCT_FOLDERS = ("rpa_ray", "tests", "configs", "launch", "benchmarks", ".ci")

MAX_FUNCTION_LINES, MAX_TEST_LINES = 60, 80
MAX_FILE_LINES = 350

# Which parts of the package may import a library at all. A part is a path below rpa_ray/ that
# the module's own path starts with.
MAY_IMPORT = {
    "ray": ("actors/", "campaign/", "cluster/", "ray_job", "weight_sync/"),
    "optuna": ("campaign/",),
    "vllm": ("actors/engine", "actors/rollout", "weight_sync/"),
    "deepspeed": ("learner/",),
    "openrlhf": ("ops/",),
}
PLUGIN_LIBRARIES = {"torch", "pydantic", "jaxtyping"}
PLUGIN_PARTS = {"ops", "types", "plugin"}
# The only libraries, and the only parts of rpa_ray, that these parts may import.
MAY_ONLY_IMPORT = {
    "ops/": ({"torch", "jaxtyping"}, {"ops"}),
    "attacks/": (PLUGIN_LIBRARIES, {*PLUGIN_PARTS, "attacks"}),
    "defences/": (PLUGIN_LIBRARIES, {*PLUGIN_PARTS, "defences"}),
    "config/": ({"pydantic"}, {"config"}),
}
# The rows of the plug-in tables that are the absence of a plug-in: nothing of their own to test.
ABSENT = {"none"}


def product_files(suffixes: set[str]) -> list[Path]:
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in PRODUCT_FOLDERS:
        files += (ROOT / folder).rglob("*")
    return sorted(path for path in files if path.is_file() and path.suffix in suffixes)


def lines_with(pattern: str, paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(pattern, line)
    ]


def modules_loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh Python process holds after running ``code``."""
    code += "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_a_heavy_library_is_imported_only_where_it_belongs(library: str) -> None:
    strangers = [
        part
        for path in MODULES
        if not (part := path.relative_to(PACKAGE).as_posix()).startswith(MAY_IMPORT[library])
        and any(name.partition(".")[0] == library for name in imported_names(path))
    ]
    assert strangers == []


@pytest.mark.parametrize("part", MAY_ONLY_IMPORT)
def test_a_bounded_part_imports_nothing_outside_its_bounds(part: str) -> None:
    libraries, parts = MAY_ONLY_IMPORT[part]
    allowed = libraries | sys.stdlib_module_names
    strangers = []
    for path in (PACKAGE / part).rglob("*.py"):
        for name in imported_names(path):
            top, _, rest = name.partition(".")
            inside = rest.partition(".")[0] in parts if top == "rpa_ray" else top in allowed
            if not inside:
                strangers.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert strangers == []


def test_imports_run_downwards() -> None:
    assert upward_imports() == []


def test_test_modules_have_names_of_their_own() -> None:
    # pytest imports them by these names, without the folders in which they lie.
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_models_are_read_without_their_code_and_weights_from_safetensors_alone() -> None:
    calls = [
        (path.relative_to(PACKAGE), node)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("from_pretrained")
    ]
    assert len(calls) >= 13
    for path, call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("trust_remote_code") == "False", f"{path}:{call.lineno}"
        if not ast.unparse(call.func).startswith(("AutoTokenizer.", "AutoConfig.")):
            assert given.get("use_safetensors") == "True", f"{path}:{call.lineno}"


def test_the_house_has_few_rooms_and_no_circle() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8
    assert len({part_of(path) for path in MODULES}) <= 30
    assert len(longest_chain()) <= 19


def test_loading_the_config_package_loads_no_heavy_library() -> None:
    heavy = {"torch", "ray", "vllm", "deepspeed", "transformers", "openrlhf"}
    assert modules_loaded_by("import rpa_ray.config") & heavy == set()


def test_loading_a_config_file_starts_no_engine() -> None:
    heavy = {"ray", "vllm", "deepspeed", "transformers", "openrlhf"}
    code = "import rpa_ray.plan as p\np.load_config('configs/quickstart.yaml')"
    assert modules_loaded_by(code) & heavy == set()


def test_a_driver_leaves_the_large_imports_to_its_workers() -> None:
    heavy = {"vllm", "deepspeed", "transformers", "openrlhf"}
    assert modules_loaded_by("import rpa_ray.campaign.sweep, ray.train.torch") & heavy == set()


def test_no_function_is_longer_than_a_screen_or_two() -> None:
    long = []
    for path in [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                num_lines = node.end_lineno - node.lineno + 1
                limit = MAX_FUNCTION_LINES if path in MODULES else MAX_TEST_LINES
                if num_lines > limit:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {num_lines} lines")
    assert long == []


def test_no_module_is_too_long_to_read_in_one_go() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path: n for path, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_every_module_has_a_name_that_says_what_is_in_it() -> None:
    nameless = {"utils", "util", "helpers", "helper", "common", "manager", "handler", "misc"}
    assert [path for path in MODULES if nameless & {path.stem, path.parent.name}] == []


def test_text_files_are_ascii() -> None:
    assert lines_with(r"[^\x00-\x7f]", product_files(TEXT_SUFFIXES)) == []


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    files = product_files(TEXT_SUFFIXES | {".json"})
    assert lines_with(r"(?<![\w.$}-])/(work|root|home|Users)/\w", files) == []


def test_only_the_pytorch_package_index_is_named() -> None:
    hosts = r"(pypi|pythonhosted|anaconda|npmjs|debian|ubuntu)\.(org|com)\b"
    other_index = (
        r"--(extra-|default-)?index(-url)?[ =](?!https://download\.pytorch\.org/whl/cpu\b)"
    )
    assert lines_with(f"{hosts}|{other_index}", product_files(TEXT_SUFFIXES)) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_config_loads(path: Path) -> None:
    if path.stem not in DEFENCES:
        load_config(path)
        return
    # A part that names a defence loads next to the attacks that have what the defence needs.
    refusals = []
    for attack in ATTACKS:
        try:
            load_config(path, [f"attack={attack}"])
        except ConfigError as error:
            refusals.append(str(error))
    assert len(refusals) < len(ATTACKS), refusals


@pytest.mark.parametrize("kind", ["attack", "defence"])
def test_every_plugin_has_a_config_of_its_name(kind: str) -> None:
    configured = {}
    for path in (ROOT / "configs" / kind).glob("*.yaml"):
        part = yaml.safe_load(path.read_text(encoding="utf-8"))[kind]
        configured[part if isinstance(part, str) else part["name"]] = path.stem
    plugins = {"attack": ATTACKS, "defence": DEFENCES | OFFLINE_DEFENCES}[kind].keys() - ABSENT
    unlike = {name for name in plugins if configured.get(name) != file_stem(name)}
    assert unlike == set()


@pytest.mark.parametrize("name", [*ATTACKS, *DEFENCES, *OFFLINE_DEFENCES])
def test_every_plugin_has_a_test_of_its_name(name: str) -> None:
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert name in ABSENT or f"test_{file_stem(name)}.py" in tests


def file_stem(plugin_id: str) -> str:
    return plugin_id.replace("->", "_").replace("+", "_")
