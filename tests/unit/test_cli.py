import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from rpa_ray import cli
from rpa_ray.actors.environment import LIBRARY_ENVIRONMENT
from rpa_ray.cluster import hardware
from rpa_ray.cluster.doctor import _dtype

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "attack_and_defence.yaml")
HEAVY = {"torch", "ray", "vllm", "deepspeed", "transformers", "openrlhf", "datasets"}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, own_cache: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("RPA_RAY_CACHE", str(own_cache))
    for name, value in LIBRARY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


def status_of(*arguments: str) -> int:
    """Run the command line in this process and return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rpa-ray", *arguments])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as caught:
            cli.main()
    return int(caught.value.code or 0)


def test_the_commands_are_these() -> None:
    group = typer.main.get_command(cli.app)
    options = {
        name: [parameter.opts[0] for parameter in command.params]
        for name, command in group.commands.items()
    }
    assert options == {
        "run": ["config", "--set", "--output", "--scale", "--cluster"],
        "campaign": ["config", "--set", "--output", "--scale", "--cluster"],
        "sweep": ["config", "--set", "--output", "--scale", "--cluster", "--resume"],
        "evaluate": ["checkpoint", "--set", "--output"],
        "harden": ["config", "--set", "--output", "--scale", "--cluster"],
        "evidence": ["folders", "--output"],
        "report": ["folder"],
        "plan": ["config", "--set", "--output", "--scale", "--cluster"],
        "doctor": [],
    }


@pytest.mark.parametrize(
    "command",
    ["run", "campaign", "sweep", "evaluate", "harden", "report", "evidence", "plan", "doctor"],
)
def test_help_says_what_a_command_writes_and_gives_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(command, "--help") == 0
    text = capsys.readouterr().out
    assert "Write" in text
    assert f"Example: rpa-ray {command}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "nowhere.yaml"], "config must name a YAML file that can be read, got"),
        (["run", CONFIG, "--set", "data.rho=2"], "data.rho must be less than or equal to 1"),
        (["campaign", CONFIG, "--set", "data.rho"], "--set must have the form key=value"),
        (["plan", CONFIG, "--set", "defence.alph=1"], "defence.alph must be a known key, got"),
        (["run", CONFIG, "--set", "attack=none"], "defence must be none where attack is none"),
        (["run", CONFIG, "--set", "data.num_samples=1001"], "data.num_samples must be a multiple"),
        (["run", CONFIG, "--set", "data.num_samples=80000"], "data.num_samples must be at most"),
        (["run", CONFIG, "--set", "attack.max_new_tokens=128"], "attack.max_new_tokens must be"),
        (["run", CONFIG, "--set", "cluster.cpus_per_rank=4096"], "cluster must ask for at most"),
        (["run", CONFIG, "--output", "/proc/x"], "--output must be a folder that can be written"),
        (["harden", CONFIG], "defence must hold an offline defence (circuit_breakers, "),
        (
            ["evaluate", "no/such/model"],
            "model.path must be chat, base, other_chat, qwen2_chat, a Hub id",
        ),
        (["evaluate", "chat", "--set", "sed=1"], "sed must be a known key"),
    ],
)
def test_bad_input_ends_with_one_message_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert status_of(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error {message}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "campaign", "sweep", "plan"])
def test_a_metric_that_no_sweep_can_be_judged_by_is_refused_by_every_command(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some.yaml").write_text("kind: sweep\nsweep: {seed: [0, 1]}\nmetric: damage\n")
    assert status_of(command, "some.yaml") == 2
    assert capsys.readouterr().err.startswith("error metric must name one of [")


def test_square_brackets_of_a_message_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("run", CONFIG, "--set", "attack=[bold]") == 2
    assert "got ['bold']" in capsys.readouterr().err


def test_a_broken_data_file_is_named_with_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response,is_safe\nHow?,So.,True\nWhy?,,False\n")
    real = ["--set", "data.world=real", "--set", f"data.path={path}"]
    assert status_of("plan", CONFIG, *real) == 2
    error = capsys.readouterr().err
    assert error.startswith("error data.path must hold a non-empty text in column 'response'")
    assert "row 2 (1 of 2 rows) of rows.csv" in error


def test_a_report_of_a_folder_without_results_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("report", str(tmp_path)) == 2
    assert " must " in capsys.readouterr().err


def test_a_plan_writes_no_results(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert status_of("plan", CONFIG) == 0
    assert "plan of attack_and_defence" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.dtype=float32", "weights: float32 (model.dtype)"),
        ("model.dtype=auto", "weights: bfloat16 (auto: it was asked)"),
        ("cluster.zero_stage=0", "weights: float32 (auto: ZeRO stage 0 keeps no float32 masters"),
    ],
)
def test_a_plan_says_the_type_of_weights_and_why(
    override: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_of_cpu", lambda: ("bfloat16", "it was asked"))
    monkeypatch.setattr(hardware, "bfloat16_factor", lambda: 0.2)
    assert status_of("plan", CONFIG, "--set", override) == 0
    printed = capsys.readouterr()
    assert line in printed.out
    assert "warning" not in printed.err


def test_a_type_that_the_measurement_contradicts_is_warned_of_and_runs_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "bfloat16_factor", lambda: 20.0)
    assert status_of("plan", CONFIG, "--set", "model.dtype=bfloat16") == 0
    assert "warning bfloat16 takes 20 times as long as float32" in capsys.readouterr().err


def test_the_doctor_says_the_type_of_weights_and_fails_where_it_is_contradicted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_of_cpu", lambda: ("float32", "it was asked"))
    for factor, told in ((20.0, "float32: it was asked"), (0.1, "but float32 takes 10 times")):
        monkeypatch.setattr(hardware, "bfloat16_factor", lambda factor=factor: factor)
        finding = _dtype()
        assert told in finding.text
        assert finding.ok == (factor > 1)


def in_a_fresh_process(
    code: str, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Return how a program ended, and its CPU seconds: what else the machine does has no part."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return run, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def refused_in_a_fresh_process(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Return how the command ended, with the modules it held on stdout, and its CPU seconds."""
    code = (
        "import sys\nfrom rpa_ray.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(*{name.partition('.')[0] for name in sys.modules})"
    )
    return in_a_fresh_process(code, *arguments)


@pytest.fixture(scope="module")
def import_s() -> float:
    """Return the CPU seconds that the libraries of a refusal take on this machine: about 3."""
    run, cpu_s = in_a_fresh_process("import torch, datasets")
    assert run.returncode == 0, run.stderr
    return cpu_s


@pytest.mark.parametrize(
    ("override", "loaded"),
    [
        ("data.rho=2", set()),
        ("defence.alph=1", {"torch"}),
        ("data.num_samples=1001", {"torch"}),
        ("data.num_samples=80000", {"torch"}),
    ],
)
def test_a_refusal_starts_no_engine_and_takes_seconds(
    override: str, loaded: set[str], import_s: float
) -> None:
    run, cpu_s = refused_in_a_fresh_process("run", CONFIG, "--set", override)
    assert (run.returncode, "Traceback" in run.stderr) == (2, False), run.stderr
    assert set(run.stdout.split()) & HEAVY == loaded
    assert cpu_s < 2 * import_s


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [(["--version"], "rpa-ray 0."), (["run", "-h"], "Run one experiment: attack")],
)
def test_the_version_and_help_are_where_one_looks_for_them(
    arguments: list[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*arguments) == 0
    assert printed in capsys.readouterr().out
