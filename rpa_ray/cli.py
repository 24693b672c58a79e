"""The command line: run, campaign, evaluate, report, plan, doctor."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rpa_ray.config import LoadedConfig, load_config

app = typer.Typer(
    help="Measure which defences keep a safety-aligned model safe under unsafe feedback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

ConfigPath = Annotated[Path, typer.Argument(help="A YAML file under configs/ or your own.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key: --set data.rho=0.5. Repeat for more."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", help="Folder of the results; default runs/<config name>."),
]


def main() -> None:
    """Run the command line; what a user can cause ends with one line and status 2."""
    try:
        app(standalone_mode=True)
    except ValueError as error:
        errors.print(f"[bold red]error[/] {_escaped(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("interrupted; the same command continues where it stopped")
        sys.exit(130)


@app.command()
def run(config: ConfigPath, set_: Overrides = None, output: Output = None) -> None:
    """Run one experiment: attack under a defence, evaluate, record."""
    _run(load_config(config, set_ or []), output)


@app.command()
def campaign(config: ConfigPath, set_: Overrides = None, output: Output = None) -> None:
    """Run many experiments on one warm cluster; continues where it was interrupted."""
    _run(load_config(config, set_ or []), output)


@app.command()
def plan(config: ConfigPath, set_: Overrides = None, output: Output = None) -> None:
    """Show cells, models to make, CPUs, memory and time before anything starts."""
    loaded = load_config(config, set_ or [])
    _refuse_impossible(loaded, _folder(loaded, output))
    _print_plan(loaded, _folder(loaded, output))


@app.command()
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A Hugging Face folder or Hub id.")],
    set_: Overrides = None,
    output: Output = None,
) -> None:
    """Measure every metric of a model as it is."""
    from rpa_ray.config import CampaignSettings, parse_tree

    cell = parse_tree({"model": {"path": checkpoint}, "attack": "none"}, set_ or [])
    name = f"evaluate-{Path(checkpoint).name}"
    loaded = LoadedConfig(
        kind="run", name=name, campaign=CampaignSettings(name=name, cells=(cell,))
    )
    _run(loaded, output)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A campaign folder or a run folder.")],
) -> None:
    """Write tables (Markdown, CSV) and one self-contained HTML page."""
    from rpa_ray.report import write_report

    paths = write_report(folder)
    console.print(f"report: {paths.html}\ntables: {paths.markdown}, {paths.csv}")


@app.command()
def doctor() -> None:
    """Check versions, devices, memory, disk and libraries, and say how to mend what is wrong."""
    from rpa_ray.doctor import examine

    findings = examine()
    for finding in findings:
        mark = "[green]ok[/]  " if finding.ok else "[red]fail[/]"
        console.print(f"{mark} {finding.subject}: {finding.text}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


def cache_folder() -> Path:
    """Return where models and worlds are kept: RPA_RAY_CACHE, or runs/cache."""
    return Path(os.environ.get("RPA_RAY_CACHE", "runs/cache")).resolve()


def _folder(loaded: LoadedConfig, output: Path | None) -> Path:
    return output or Path("runs") / loaded.name


def _run(loaded: LoadedConfig, output: Path | None) -> None:
    folder = _folder(loaded, output)
    _refuse_impossible(loaded, folder)
    _print_plan(loaded, folder)

    from rpa_ray.campaign import run_campaign
    from rpa_ray.progress import ProgressView
    from rpa_ray.report import write_report
    from rpa_ray.report.tables import terminal_table

    with ProgressView(console) as view:
        records = run_campaign(loaded, folder, cache_folder(), watch=view.show, command=_command())
    paths = write_report(folder)
    console.print(terminal_table(records))
    for record in records:
        if record["status"] != "ok":
            console.print(f"[yellow]{record['run']}: {record['status']}[/]")
    console.print(f"results: {folder / 'summary.json'}\nreport:  {paths.html}")


def _refuse_impossible(loaded: LoadedConfig, folder: Path) -> None:
    from rpa_ray.preflight import check_cpus, check_experiment, check_output, local_cpus

    check_output(folder)
    check_output(cache_folder(), key="RPA_RAY_CACHE")
    cells = loaded.campaign.cells
    for i, cell in enumerate(cells):
        if cell.cluster.address is None:
            check_cpus(cell, local_cpus())
        check_experiment(cell, cache_folder(), f"cells[{i}]." if loaded.kind == "campaign" else "")


def _print_plan(loaded: LoadedConfig, folder: Path) -> None:
    from rpa_ray.plan import plan_table

    console.print(plan_table(loaded, folder, cache_folder()))


def _command() -> str:
    return shlex.join(["rpa-ray", *sys.argv[1:]])


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
