"""Everything a report shows, read once from a campaign or run folder."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rpa_ray.config import SweepSettings
from rpa_ray.report.evidence import read_looks, read_measured
from rpa_ray.report.read.before import with_before
from rpa_ray.report.read.comparisons import Comparisons, compare
from rpa_ray.report.read.gate import SanityGate, read_gate
from rpa_ray.report.read.groups import (
    AttackGroup,
    Cell,
    attack_groups,
    group_cells,
)
from rpa_ray.report.read.records import Record, is_evidence, read_sweep
from rpa_ray.report.read.runs import RunFiles, read_run
from rpa_ray.run_folder.names import SUMMARY

NUM_COLOURS = 8


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """The content of a folder, grouped the way the report shows it."""

    folder: Path
    name: str
    """Name of the folder."""
    shown_path: str
    """The folder as a reader would type it: relative where it lies below the working folder."""
    is_campaign: bool
    """False for the folder of a single run."""
    records: Sequence[Record]
    cells: Sequence[Cell]
    groups: Sequence[AttackGroup]
    runs: Mapping[str, RunFiles]
    """The files of each run folder, by the record's `run`."""
    gate: SanityGate
    styles: Mapping[str, str]
    """CSS class by label of a row: a defence keeps its colour in all charts."""
    sweep: SweepSettings | None
    """What varied, where the folder is that of a sweep."""

    @property
    def multi_seed(self) -> bool:
        """Whether some cell was run with more than one seed."""
        return any(len(cell.records) > 1 for cell in self.cells)

    @cached_property
    def comparisons(self) -> Comparisons:
        """Models compared on the same prompts, as far as runs have kept their answers.

        Raises:
            ValueError: when a file of answers is not what a run writes.
        """
        return compare(self.folder, self.groups)

    def runs_of(self, cell: Cell) -> list[RunFiles]:
        """Return the files of a cell's run folders, by seed."""
        return [self.runs[record.run] for record in cell.records if record.run is not None]

    def commands(self) -> list[str]:
        """Return the shell lines that make these results again, as the runs recorded them."""
        recorded = [
            str(run.manifest["command"]) for run in self.runs.values() if "command" in run.manifest
        ]
        lines = list(dict.fromkeys(recorded)) or [
            f"rpa-ray run {shlex.quote(f'{self.shown_path}/{name}/config.yaml')}"
            for name, run in self.runs.items()
            if run.config_text
        ]
        return [*lines, f"rpa-ray report {shlex.quote(self.shown_path)}"]


def read_campaign(folder: Path) -> Campaign:
    """Return the content of a campaign folder or of a run folder.

    Raises:
        ValueError: when the folder is neither, or a file in it is not what a run writes.
    """
    proven = is_evidence(folder)
    records = read_measured(folder)
    cells = group_cells(with_before(records))
    names = dict.fromkeys(record.run for record in records if record.run is not None)
    runs = {name: read_run(folder / name) for name in names}
    if proven:
        seen = read_looks(folder)
        runs = {n: replace(run, evaluation={"looks": seen.get(n, [])}) for n, run in runs.items()}
    return Campaign(
        folder=folder,
        name=folder.resolve().name,
        shown_path=_shown_path(folder),
        is_campaign=proven or (folder / SUMMARY).is_file(),
        records=records,
        cells=cells,
        groups=attack_groups(cells),
        runs=runs,
        gate=read_gate(folder, records),
        styles=_styles(cells),
        sweep=read_sweep(folder),
    )


def _styles(cells: Sequence[Cell]) -> dict[str, str]:
    """Give each label a class: fixed colours for undefended, untouched and controls."""
    styles: dict[str, str] = {}
    num_defences = num_controls = num_undefended = 0
    for cell in cells:
        if cell.label in styles:
            continue
        if cell.is_untouched:
            styles[cell.label] = "untouched"
        elif cell.is_undefended:
            styles[cell.label] = f"undefended dash{num_undefended % 4}"
            num_undefended += 1
        elif cell.is_control:
            styles[cell.label] = f"control dash{num_controls % 3 + 1}"
            num_controls += 1
        else:
            colour, dash = num_defences % NUM_COLOURS, num_defences // NUM_COLOURS % 4
            styles[cell.label] = f"colour{colour} dash{dash}"
            num_defences += 1
    return styles


def _shown_path(folder: Path) -> str:
    relative = os.path.relpath(folder.resolve())
    return folder.resolve().name if relative.startswith("..") else relative
