"""Write the tables of a note from its evidence, so that none is written by hand.

python -m rpa_ray.paper.note benchmarks/table3_cpu2_202611.md
python -m rpa_ray.paper.note --check benchmarks/table3_cpu2_202611.md   # changes nothing

A note names its tables between two lines:

<!-- table: differences table3 -->
(what stands here is written anew)
<!-- end of table -->

The first word is one of TABLES below, the others are folders beside the note: of the two files that
`rpa-ray evidence` writes or, of campaigns before there were such, of a summary.json.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from rpa_ray.paper.compare import agreement_text, cells_of, rows_table
from rpa_ray.report.read.definitions import REWARD_GAIN
from rpa_ray.report.read.folder import read_campaign
from rpa_ray.report.tables.best_of_n import best_of_n_table
from rpa_ray.report.tables.differences import differences_table, pairs_table
from rpa_ray.report.tables.main import cells_table, oracle_table
from rpa_ray.report.tables.side import SideTable, side_table_markdown

BLOCK = re.compile(
    r"(?P<begin><!-- table: (?P<name>\w+)(?P<folders>( [\w./-]+)+) -->\n).*?(?P<end><!-- end of)",
    re.DOTALL,
)


def main() -> int:
    """Write the tables of notes; with ``--check`` only say whether they are as they would be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notes", type=Path, nargs="+")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = 0
    for note in options.notes:
        text = note.read_text(encoding="utf-8")
        written = with_tables(text, note.parent)
        if written == text:
            continue
        stale += 1
        if options.check:
            print(f"{note}: not what its records give; write it with this command", file=sys.stderr)
        else:
            note.write_text(written, encoding="utf-8")
            print(f"{note}: written")
    return 1 if options.check and stale else 0


def with_tables(text: str, place: Path) -> str:
    """Return a note with its tables written anew; ``place`` is where its folders lie.

    Raises:
        ValueError: a table is unknown, or a folder has no records.
    """

    def written(found: re.Match[str]) -> str:
        make = TABLES.get(found["name"])
        if make is None:
            known = ", ".join(TABLES)
            raise ValueError(f"table must be one of {known}, got {found['name']}. Mend the note.")
        folders = [place / folder for folder in found["folders"].split()]
        return f"{found['begin']}{make(folders).strip()}\n{found['end']}"

    return BLOCK.sub(written, text)


def judge_gaps(folders: Sequence[Path]) -> str:
    """Return how far the judge is from the oracle in the attacked cells, as a histogram."""
    cells = [cell for cell in cells_of(folders) if not cell.is_untouched]
    gaps = [value.mean for cell in cells if (value := cell.value("judge_gap"))]
    edges = (-1.0, -0.5, -0.3, -0.15, -0.05, 0.05, 0.15, 0.3, 0.5, 1.0)
    lines = ["| Judge less oracle | Cells |", "| --- | --: |"]
    for low, high in pairwise(edges):
        last = high == edges[-1]
        num = sum(low <= gap < high or (last and gap == high) for gap in gaps)
        lines.append(f"| {low:+.2f} to {high:+.2f} | {num} {'#' * num} |")
    within = sum(abs(gap) <= 0.15 for gap in gaps)
    return "\n".join([*lines, "", f"Within 0.15: {within} of {len(gaps)} cells."])


def truth(folders: Sequence[Path]) -> str:
    """Return the few columns that come first: truth, text, the judge and its gap, what it cost."""
    return cells_table(cells_of(folders), TRUTH)


def _side(
    make: Callable[..., SideTable], *, of_groups: bool = False
) -> Callable[[Sequence[Path]], str]:
    def written(folders: Sequence[Path]) -> str:
        campaigns = [read_campaign(folder) for folder in folders]
        tables = [make(c.groups if of_groups else c) for c in campaigns]
        return "\n\n".join(side_table_markdown(table).replace("## ", "### ") for table in tables)

    return written


TRUTH = (
    *("harm", "harm_greedy", "compliance_sampled", "compliance", "valid"),
    *("p_harm_sampled", "judge_gap", "harmless_answered", "kl_seq_rb", REWARD_GAIN),
)
TABLES: Mapping[str, Callable[[Sequence[Path]], str]] = {
    "truth": truth,
    "results": lambda folders: cells_table(cells_of(folders)),
    "oracle": lambda folders: oracle_table(cells_of(folders)),
    "paper": lambda folders: rows_table(cells_of(folders)),
    "agreement": lambda folders: agreement_text(cells_of(folders)),
    "differences": _side(differences_table),
    "pairs": _side(pairs_table),
    "best_of_n": _side(best_of_n_table, of_groups=True),
    "judge_gaps": judge_gaps,
}


if __name__ == "__main__":
    sys.exit(main())
