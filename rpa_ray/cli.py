"""The command line: run, campaign, sweep, evaluate, harden, report, evidence, plan, doctor."""

import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rpa_ray.actors.environment import quieten_libraries
from rpa_ray.config import ConfigError
from rpa_ray.data.errors import DataError
from rpa_ray.plan import LoadedConfig, evaluation_of, load_config
from rpa_ray.plan.checks.problems import Refused
from rpa_ray.plan.files import DEFAULT_SCALE
from rpa_ray.run_folder.lock import FolderInUse, NoLocks
from rpa_ray.terminal import say

if TYPE_CHECKING:
    from rpa_ray.plan.plan import Plan

EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help=(
        "Measure which defences keep a safety-aligned language model safe when it is trained on "
        "unsafe feedback (preferences reversed).\n\n"
        "Worlds and models that every run shares are kept in runs/cache, or in the folder that "
        "RPA_RAY_CACHE names. Exit status: 0 done, 1 failed on the way, 2 refused before anything "
        "was started."
    ),
    epilog="Begin with: rpa-ray doctor, then rpa-ray campaign configs/quickstart.yaml",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file: one under configs/, or your own.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the file: --set data.rho=0.5. Repeat for more.",
        show_default=False,
    ),
]
Scale = Annotated[
    str,
    typer.Option(
        "--scale",
        help="Folder for {scale} in what a config includes: tiny, embedded models, or paper.",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="NAME",
        help="Cluster in place of the config's: a file of configs/cluster, or a path.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="Folder of the results; default runs/NAME of the config.",
        show_default=False,
    ),
]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"rpa-ray {version('rpa_ray')}")
        raise typer.Exit


@app.callback()
def _options(
    version_: Annotated[
        bool,
        typer.Option("--version", help="Print it.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Take the options of every command."""


def main() -> None:
    """Run the command line; what a user can cause ends with one message and status 2."""
    quieten_libraries()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\.")
    try:
        app()
    except (ConfigError, DataError, Refused, FolderInUse, NoLocks) as error:
        _print_error(str(error))
        sys.exit(EXIT_REFUSED)


@app.command(
    epilog="Example: rpa-ray run configs/attack_and_defence.yaml --set data.rho=0.5",
    short_help="One experiment: attack under a defence, evaluate, record.",
)
def run(
    config: ConfigPath,
    set_: Overrides = None,
    output: Output = None,
    scale: Scale = DEFAULT_SCALE,
    cluster: Cluster = None,
) -> None:
    """Run one experiment: attack a model under a defence, evaluate before and after, record.

    Writes to the output folder: summary.json, tables and report.html, and a folder of the run with
    config.yaml, manifest.json, metrics.jsonl, samples.jsonl and evaluation.json. A run that was
    finished before with the same settings is read back. A file of another kind is run as that.
    """
    _run(_planned(load_config(config, set_ or [], scale, cluster), output))


@app.command(
    epilog="Example: rpa-ray campaign configs/quickstart.yaml --output runs/mine",
    short_help="Many experiments on one warm cluster.",
)
def campaign(
    config: ConfigPath,
    set_: Overrides = None,
    output: Output = None,
    scale: Scale = DEFAULT_SCALE,
    cluster: Cluster = None,
) -> None:
    """Run many experiments on one warm cluster, and write one table of all.

    Writes what `run` writes, with a folder for each cell. Interrupted, the same command continues
    at the first unfinished cell; cells that are done are read back.
    """
    _run(_planned(load_config(config, set_ or [], scale, cluster), output))


@app.command(
    epilog="Example: rpa-ray sweep configs/paper/table10.yaml --set data.rho=0.5",
    short_help="One metric over any settings, by Ray Tune.",
)
def sweep(
    config: ConfigPath,
    set_: Overrides = None,
    output: Output = None,
    scale: Scale = DEFAULT_SCALE,
    cluster: Cluster = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue Ray Tune's record of an interrupted grid."),
    ] = False,
) -> None:
    """Run one trial for each combination of the values that a file lists under `sweep`.

    With `search: random` or `optuna` it is one for each of `num_trials` points. Writes what
    `campaign` writes, plots and a table of the metric over the swept keys, and Ray Tune's own
    record in tune/. Interrupted, the same command continues, a grid with --resume in that record;
    trials that are done, or that a scheduler stopped, are read back.
    """
    _run(_planned(load_config(config, set_ or [], scale, cluster), output), resume=resume)


@app.command(
    epilog="Example: rpa-ray evaluate runs/cache/chat-1a2b --set evaluation.num_prompts=50",
    short_help="Every metric of a Hugging Face checkpoint, as it is.",
)
def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="A Hugging Face folder or Hub id; chat or base."),
    ],
    set_: Overrides = None,
    output: Output = None,
) -> None:
    """Measure every metric of a model as it is, without an attack.

    Writes what `run` writes; the default output is runs/evaluate-NAME of the checkpoint, with a
    key of its content where it is a folder.
    """
    _run(_planned(evaluation_of(checkpoint, set_ or []), output))


@app.command(
    epilog="Example: rpa-ray harden configs/attack_and_defence.yaml --set defence=vaccine_offline",
    short_help="A checkpoint that offline defences hardened, with its card.",
)
def harden(
    config: ConfigPath,
    set_: Overrides = None,
    output: Output = None,
    scale: Scale = DEFAULT_SCALE,
    cluster: Cluster = None,
) -> None:
    """Harden a model by the offline defences of a file, measure it before and after, release it.

    Writes what `campaign` writes, and released/, a Hugging Face folder with a model card and
    hardened.json; the default output is runs/harden-NAME. A config's attack is left out.
    """
    from rpa_ray.campaign.harden import check_release, hardening_of, release

    loaded, what = hardening_of(load_config(config, set_ or [], scale, cluster))
    say(console, what)
    plan = _planned(loaded, output)
    check_release(plan)
    _run(plan)
    say(console, f"released: {release(plan)}")


@app.command(
    epilog="Example: rpa-ray report runs/quickstart",
    short_help="Tables and an HTML page from results.",
)
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a campaign or of a run.")],
) -> None:
    """Write tables (Markdown, CSV) and one self-contained HTML page from finished results.

    Reads summary.json and the folders of the cells; writes the files beside summary.json. `run`,
    `campaign` and `sweep` do this at their end.
    """
    from rpa_ray.report import write_report

    with _refusing():
        paths = write_report(folder)
    say(console, f"report: {paths.html}\ntables: {paths.markdown}, {paths.csv}")


@app.command(
    epilog="Example: rpa-ray plan configs/quickstart.yaml --set cluster.num_ranks=2",
    short_help="What a config would do; refuses what cannot be.",
)
def plan(
    config: ConfigPath,
    set_: Overrides = None,
    output: Output = None,
    scale: Scale = DEFAULT_SCALE,
    cluster: Cluster = None,
) -> None:
    """Show the cells of a config, the models to make, CPUs, memory and time; start nothing.

    Refuses what `run`, `campaign` and `sweep` would refuse; with --cluster for machines elsewhere.
    Writes to the cache alone: the texts and models of the embedded world, and how fast such models
    are here, timed once (3 s).
    """
    _planned(load_config(config, set_ or [], scale, cluster), output, on_paper=True)


@app.command(
    epilog="Example: rpa-ray evidence runs/table3 runs/table3_seed1 --output benchmarks/table3",
    short_help="Write the two files that prove a campaign's tables.",
)
def evidence(
    folders: Annotated[
        list[Path], typer.Argument(help="Of campaigns or evidence, merged by cell.")
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder of the two files.")],
) -> None:
    """Write every measured answer and every look of campaigns into two files to be committed.

    Every number of their tables can be computed again from these, as by `rpa-ray report FOLDER`.
    """
    from rpa_ray.report.evidence import write_evidence

    with _refusing():
        for path in write_evidence(folders, output):
            say(console, f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


@app.command(
    epilog="Example: rpa-ray doctor", short_help="What is wrong with this machine, how to mend it."
)
def doctor() -> None:
    """Check versions, libraries, devices, CPUs, memory and disk, and say how to mend what is wrong.

    Where RAY_ADDRESS names a cluster, each of its nodes is asked whether it shares the cache.
    Writes no file that stays. Exit status 1 where something fails.
    """
    from rpa_ray.cluster.doctor import print_findings

    if not print_findings(console, cache_folder()):
        raise typer.Exit(EXIT_FAILED)


def cache_folder() -> Path:
    """Return where models and worlds are kept: RPA_RAY_CACHE, or runs/cache."""
    return Path(os.environ.get("RPA_RAY_CACHE", "runs/cache")).absolute()


def _planned(loaded: LoadedConfig, output: Path | None, *, on_paper: bool = False) -> "Plan":
    """Refuse what cannot be; print and return what will be done, or on paper would be."""
    from rpa_ray.campaign.planning import plan_of

    return plan_of(loaded, output, cache_folder(), console, errors, on_paper=on_paper)


def _run(plan: "Plan", *, resume: bool = False) -> None:
    from rpa_ray.campaign.progress import ProgressView
    from rpa_ray.campaign.run import CampaignFailed, run_campaign
    from rpa_ray.report import write_report
    from rpa_ray.report.outcome import print_outcome

    command = shlex.join(["rpa-ray", *sys.argv[1:]])
    try:
        with ProgressView(console) as view:
            if plan.config.sweep is None:
                records = run_campaign(plan, view=view, command=command)
            else:
                from rpa_ray.campaign.sweep import run_sweep

                records = run_sweep(plan, view=view, command=command, resume=resume)
    except CampaignFailed as error:
        _print_error(str(error))
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        errors.print("interrupted; the same command continues where it stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    paths = write_report(plan.output)
    print_outcome(console, plan.output, records, sweep=plan.config.sweep, paths=paths)
    if any(record["status"] == "failed" for record in records):
        raise typer.Exit(EXIT_FAILED)


@contextmanager
def _refusing() -> Iterator[None]:
    """Print what is wrong with a folder, and end with the status of a refusal."""
    try:
        yield
    except ValueError as error:
        _print_error(str(error))
        raise typer.Exit(EXIT_REFUSED) from None


def _print_error(text: str) -> None:
    say(errors, text, mark="error", style="bold red")
