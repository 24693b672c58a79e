"""What a user can get wrong ends with one sentence and status 2, before anything is started."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rpa_ray import cli

ROOT = Path(__file__).parents[2]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def refused(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refused:
    """Return a call of the command line that must end with status 2; gives what it printed."""

    def call(*arguments: str, config: Path = ROOT / "configs" / "attack_and_defence.yaml") -> str:
        monkeypatch.setenv("RPA_RAY_CACHE", str(cache))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["rpa-ray", "run", str(config), *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return call


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.rh=0.5", "data.rh must be a known key"),
        ("data.rh=0.5", "Did you mean 'rho'?"),
        ("attack.learning_rat=1", "Did you mean 'learning_rate'?"),
        ("attack=pppo", "Did you mean 'ppo'?"),
        ("data.rho=1.5", "data.rho must be less than or equal to 1, got 1.5"),
        ("data.rho=high", "data.rho must be a valid number"),
        ("attack=none", "defence must be none where attack is none, got 'refusal_loss'"),
        ("model.path=/no/model", "model.path must be chat, base, other_chat, qwen2_chat, a Hub id"),
        ("data.num_samples=1000000", "data.num_samples must be at most 10770"),
        ("data.num_samples=1001", "must be a multiple of attack.batch_size (8), got 1001"),
        ("attack.max_new_tokens=120", "attack.max_new_tokens must be at most 102"),
        ("cluster.num_ranks=8", "cluster must ask for at most the"),
        ("model.dtype=float16", "model.dtype must be 'auto', 'bfloat16' or 'float32', got"),
        ("cluster.address=nowhere", "cluster.address must have the form host:port, ray://host:"),
        ("cluster.address=127.0.0.1:1", "got '127.0.0.1:1'. Connection refused. Start it"),
        ("data.subset=10k", "data.subset must be '30k' or '330k', got '10k'"),
        ("data.columns.prompt=q", "data.columns must be left out where data.world is embedded"),
        ("data.columns.prompt=3", "data.columns must be a valid string, got 3"),
        ("data.pairs=all_pairs", "data.pairs must be mixed_only where data.name is beavertails"),
        ("data.name=preferences", "data.world must be real where data.name is preferences"),
        ("seed=-1", "seed must be greater than or equal to 0, got -1"),
        ("nothing", "--set must have the form key=value"),
    ],
)
def test_a_bad_setting_is_refused_with_its_key_and_rule(
    refused: Refused, override: str, message: str
) -> None:
    printed = refused("--set", override)
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"prompt": "a", "response": "b"}', "got x.jsonl without ['is_safe']"),
        (
            '{"prompt": "a", "response": "b", "is_safe": true}\n'
            '{"prompt": "a", "response": null, "is_safe": false}',
            "got null in row 2",
        ),
        (
            '{"prompt": "a", "response": NaN, "is_safe": true}',
            "row 1",
        ),
        ('{"prompt": "a"', "in line 1 of x.jsonl"),
    ],
)
def test_broken_data_are_refused_with_the_row(
    refused: Refused, tmp_path: Path, lines: str, message: str
) -> None:
    (tmp_path / "x.jsonl").write_text(lines)
    printed = refused("--set", "data.world=real", "--set", f"data.path={tmp_path / 'x.jsonl'}")
    assert "data.path must" in printed
    assert message in printed


@pytest.mark.parametrize(
    ("row", "overrides", "message"),
    [
        ('{"question": "a"}', ["promt=question"], "got 'promt'. Did you mean 'prompt'?"),
        ('{"question": "a"}', ["prompt=qestion"], "data.columns.prompt must name a column of own"),
        (
            '{"question": "a", "good": "b", "bad": null}',
            ["prompt=question", "safe=good", "unsafe=bad"],
            "data.path must hold a non-empty text in column 'bad' of every row, got null in row 1",
        ),
    ],
)
def test_own_preferences_are_refused_in_the_words_of_their_file(
    refused: Refused, tmp_path: Path, row: str, overrides: list[str], message: str
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(row)
    settings = ["data.name=preferences", "data.world=real", f"data.path={path}"]
    settings += [f"data.columns.{override}" for override in overrides]
    printed = refused(*(part for setting in settings for part in ("--set", setting)))
    assert message in printed
    assert "Traceback" not in printed


def test_a_folder_that_cannot_be_written_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    printed = refused("--output", str(tmp_path / "file" / "runs"))
    assert "--output must be a folder that can be written" in printed


def test_a_full_disk_is_refused(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    nearly_full = type(shutil.disk_usage("/"))(total=10**12, used=10**12 - 1, free=1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: nearly_full)
    assert "MiB free" in refused()


def test_a_file_that_is_not_there_is_refused(refused: Refused) -> None:
    printed = refused(config=Path("nowhere.yaml"))
    assert "config must name a YAML file that can be read, got 'nowhere.yaml'" in printed


def test_a_sweep_over_nothing_is_refused_with_an_example(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("kind: sweep\n")
    printed = refused(config=tmp_path / "sweep.yaml")
    assert "sweep must be a mapping of dotted keys to lists, got None. Write `sweep: {" in printed


def test_nothing_heavy_is_imported_before_a_setting_is_refused() -> None:
    import subprocess

    code = (
        "import sys; sys.argv = ['rpa-ray', 'run', sys.argv[1], '--set', 'data.rho=2']\n"
        "from rpa_ray import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('ray', 'vllm', 'deepspeed', 'transformers') if m in sys.modules])"
    )
    config = str(ROOT / "configs" / "attack_and_defence.yaml")
    done = subprocess.run(
        [sys.executable, "-c", code, config], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_example_of_ones_own_model_says_what_has_to_be_changed(
    refused: Refused, tmp_path: Path
) -> None:
    printed = refused(config=ROOT / "configs" / "own_model.yaml")
    for key in ("model.path must be chat, base", "data.path must be an existing folder"):
        assert printed.count(key) == 1
    assert "Traceback" not in printed
