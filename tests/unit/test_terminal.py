"""What a terminal is given holds no command and no markup, whatever users, files and models say."""

import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import HARMLESS, every_hostile_text, runs_named
from rich.console import Console
from rich.table import Table

from rpa_ray import cli
from rpa_ray.campaign.job_state import JobState
from rpa_ray.campaign.progress import Expected, ProgressView
from rpa_ray.cluster import doctor
from rpa_ray.config import ConfigError
from rpa_ray.data.errors import DataError
from rpa_ray.plan import load_config
from rpa_ray.plan.plan import Plan, make_plan
from rpa_ray.plan.table import plan_caption, plan_table
from rpa_ray.recipes.cell_models import CampaignInputs
from rpa_ray.report.html import ReportPaths
from rpa_ray.report.outcome import print_outcome
from rpa_ray.terminal import plain, printable, say, show_table

ACTS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal would act on, or what no terminal can be given."""


def written_by(write: Callable[[Console], object], width: int = 2000) -> str:
    """Return what is written to a plain terminal."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    write(console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def assert_shown(text: str, written: str) -> None:
    """Hold that a text is there, that nothing acts, and that no character was taken for markup."""
    assert ACTS.findall(written) == []
    # Tables fold long cells and put a line break where the text has one.
    shown, held = ("".join(part.split()) for part in (printable(text), written))
    assert shown in held


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;a\x07", r"\x1b]0;a\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb\ud800", r"a\u202eb\ud800"),
        ("a\tb\nc", "a\tb\nc"),
        ("Zo\u00eb \u5b57", "Zo\u00eb \u5b57"),
    ],
)
def test_what_cannot_be_printed_is_shown_by_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@every_hostile_text
def test_a_line_is_printed_as_it_is(text: str) -> None:
    assert_shown(text, written_by(lambda console: say(console, f"report: {text}")))


@every_hostile_text
@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_an_error_is_printed_as_it_is(
    text: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise ConfigError(text, "be known", 1, text) if kind is ConfigError else DataError(text)

    def run(console: Console) -> None:
        monkeypatch.setattr(cli, "errors", console)
        monkeypatch.setattr(cli, "app", refuse)
        with pytest.raises(SystemExit):
            cli.main()

    assert_shown(text, written_by(run))


@every_hostile_text
def test_the_end_of_a_campaign_is_printed_as_it_is(text: str, tmp_path: Path) -> None:
    records = runs_named(tmp_path, text)
    folder = Path(text)
    paths = ReportPaths(html=folder / "report.html", markdown=folder, csv=folder)
    # A run is one part of a path, or its record is refused; a longer name can be no folder's.
    run = text[:80] if not {"/", "\0"} & set(text) and text not in (".", "..") else "run"
    told = records[-1] | {"run": run}
    written = written_by(
        lambda console: print_outcome(
            console, tmp_path, [*records[:-1], told], sweep=None, paths=paths
        )
    )
    assert_shown(f"{run}: failed, see", written)
    assert_shown(f"model {text}", written)
    assert_shown(f"{folder}/report.html", written)


@pytest.fixture(scope="module")
def plan(world_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    file = tmp_path_factory.mktemp("config") / "two.yaml"
    file.write_text("kind: campaign\nattack: none\nmodel: {dtype: float32}\ncells: [{}, {seed: 1}]")
    return make_plan(load_config(file), file.parent / "runs", CampaignInputs(world_cache))


@every_hostile_text
def test_a_plan_is_printed_as_it_is(text: str, plan: Plan) -> None:
    text = text[:80]  # A longer name can be no folder's.
    first = plan.cells[0]
    model = first.settings.model.model_copy(update={"path": text})
    named = replace(first, settings=first.settings.model_copy(update={"model": model}))
    config = replace(plan.config, name=text)
    of_text = replace(plan, config=config, cells=(named, *plan.cells[1:]), output=Path(text))
    written = written_by(lambda console: console.print(plan_table(of_text)))
    caption = written_by(lambda console: say(console, plan_caption(of_text)))
    assert_shown(f"plan of {text}", written)
    rows = "".join(line for line in written.splitlines() if line.startswith("\u2502"))
    for line in text.split("\n"):
        assert_shown(line, rows)
    assert_shown(f"results in {Path(text)}", caption)


@every_hostile_text
def test_progress_is_printed_as_it_is(text: str) -> None:
    job = JobState(name="job", num_steps=5, num_done=1, note=text, stage="attack")

    def bars(console: Console) -> None:
        view = ProgressView(Console(file=io.StringIO(), force_terminal=True))
        view.expect({"job": Expected(label=text, is_cell=False, seconds=None)}, 1)
        view.show([job])
        console.print(view._progress.get_renderable())

    written = written_by(bars)
    assert_shown(f"attack {text}", written)
    assert_shown(text, written.partition("1/5")[0])
    assert_shown(text, written_by(lambda console: ProgressView(console).say(text)))
    assert "\t" not in written


@every_hostile_text
def test_findings_about_a_machine_are_printed_as_they_are(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [doctor.Finding(subject="device", ok=True, text=text)]
    monkeypatch.setattr(doctor, "examine", lambda cache: found)
    assert_shown(
        f"ok device: {text}", written_by(lambda console: doctor.print_findings(console, Path()))
    )


@pytest.mark.parametrize("name", ["x[/y]", "[bold]", "[/x]"])
def test_a_report_on_a_folder_with_brackets_ends_well(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs_named(tmp_path / name, HARMLESS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rpa-ray", "report", name])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (None, 0)
    assert f"report: {name}/report.html" in capsys.readouterr().out


def test_without_a_terminal_nothing_of_a_table_is_broken() -> None:
    title, cell, caption = ("t " * 60, "c" * 200, "/folder/" * 40)
    printed = []
    for is_terminal in (False, True):
        text = io.StringIO()
        table = Table(title=plain(title), caption=plain(caption))
        table.add_column("what")
        table.add_row(plain(cell))
        show_table(Console(file=text, width=80, force_terminal=is_terminal), table)
        printed.append(text.getvalue())
    assert all(part in printed[0] for part in (title, cell, caption))
    assert max(map(len, printed[0].splitlines())) < 400
    assert cell not in printed[1]
