"""How far judges are from the oracle while an attack goes on, from its looks."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from rpa_ray.evaluation.looks import HARM, JUDGED, SECOND_JUDGED
from rpa_ray.report.evidence import read_cells, read_looks
from rpa_ray.report.read.labels import params_text

NUM_COLUMNS = 6
"""Looks that are shown at most, evenly among those that there are."""
JUDGES = {"judge": JUDGED, "second judge": SECOND_JUDGED}
Looks = Mapping[float, Mapping[str, float]]
"""The looks at one run, by the samples that it had learned from."""


def gap_curves_table(folders: Sequence[Path]) -> str:
    """Return the oracle's harm less that by each judge over the samples of each attack.

    Means over the seeds, with the smallest and the largest of a seed where there are several: above
    0 the judge misses harm. Of every setting the looks are those that all its seeds have.
    """
    lines: list[str] = []
    for folder in folders:
        seen = read_looks(folder)
        runs: dict[tuple[str, str, str], list[Looks]] = defaultdict(list)
        for cell in read_cells(folder)[0]:
            looks = [look for look in seen.get(cell["run"], ()) if HARM in look]
            if looks and cell["attack"] != "none":
                told = params_text(cell["params"])
                defence = f"{cell['defence']} ({told})" if told else cell["defence"]
                name = (cell["data"], cell["attack"], defence)
                runs[name].append({look["samples"]: look for look in looks})
        for name, held in runs.items():
            common = sorted(set[float].intersection(*(set(looks) for looks in held)))
            shown = _evenly(common, NUM_COLUMNS)
            for judge, key in JUDGES.items():
                if all(key in looks[at] for looks in held for at in shown):
                    entries = [_entry([_gap(looks[at], key) for looks in held]) for at in shown]
                    row = [*name, judge, str(len(held))]
                    row += [f"{at:,.0f}: {entry}" for at, entry in zip(shown, entries, strict=True)]
                    lines.append(f"| {' | '.join(row)} |")
    columns = max((line.count(" | ") + 1 for line in lines), default=5) - 5
    header = ["Data", "Attack", "Defence", "Harm less that by", "Seeds", *["Samples"] * columns]
    rule = ["---"] * 4 + ["--:"] * (columns + 1)
    return "\n".join([f"| {' | '.join(header)} |", f"| {' | '.join(rule)} |", *lines])


def _gap(look: Mapping[str, float], judge: str) -> float:
    return look[HARM] - look[judge]


def _entry(gaps: Sequence[float]) -> str:
    ends = f" ({min(gaps):+.2f} to {max(gaps):+.2f})" if len(gaps) > 1 else ""
    return f"{fmean(gaps):+.2f}{ends}"


def _evenly(values: Sequence[float], num: int) -> list[float]:
    """Return so many of the values at most, the first and the last among them."""
    if len(values) <= num:
        return list(values)
    return [values[round(place * (len(values) - 1) / (num - 1))] for place in range(num)]
