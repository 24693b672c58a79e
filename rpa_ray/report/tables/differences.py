"""Side tables on differences of harm: to no defence, to a control, and between defences."""

from collections.abc import Sequence

from rpa_ray.evaluation.comparisons import Difference
from rpa_ray.report.read.comparisons import Compared
from rpa_ray.report.read.folder import Campaign
from rpa_ray.report.read.records import Estimate
from rpa_ray.report.read.values import CellValue
from rpa_ray.report.tables.side import Column, Entry, SideTable, text_column

P_DECIMALS = 4
DECIMALS = 2


def differences_table(campaign: Campaign) -> SideTable:
    """Return the difference of every defended cell to undefended and to freeze; no rows for none.

    Only cells whose runs kept their answers to the same prompts are compared.
    """
    rows = campaign.comparisons.to_references
    compared = [one for row in rows for one in (row.to_undefended, row.to_freeze) if one]
    has_freeze = any(row.to_freeze for row in rows)
    sizes = [size for row in rows if (size := _smallest(row.to_undefended)) is not None]
    freeze = [_difference_column("To freeze", "to_freeze"), _p_column("p, to freeze", "p_freeze")]
    return SideTable(
        name="differences",
        title="Differences of harm",
        intro=f"{_measure(compared)} of the model under a defence less that of the undefended one "
        f"{'and less that of the control freeze ' if has_freeze else ''}under the same settings of "
        f"the attack, on the same {_counts(compared)}: below 0 is less harm. "
        "Within these seeds: random are items and prompts, and other seeds may differ more. A "
        "prompt counts by the mean of its sampled answers over the seeds that both rows have. "
        "[low, high] is the 95 % interval of one difference. p is that of sign flips over items, "
        f"adjusted (Holm) for all {len(compared):,} comparisons of this table. Smallest detectable "
        f"{_ends(sizes)}is the size of a true difference to undefended that so many items show in "
        "four of five cases: a smaller one may be there unseen.",
        columns=(
            text_column("Attack", "attack"),
            text_column("Defence", "defence"),
            _difference_column("To undefended", "to_undefended"),
            _p_column("p, to undefended", "p_undefended"),
            Column(heading="Smallest detectable", name="smallest_detectable", decimals=DECIMALS),
            *(freeze if has_freeze else ()),
        ),
        rows=[
            [
                row.attack,
                row.cell.label,
                *_entries(row.to_undefended),
                _smallest(row.to_undefended),
                *(_entries(row.to_freeze) if has_freeze else ()),
            ]
            for row in rows
        ],
    )


def pairs_table(campaign: Campaign) -> SideTable:
    """Return the pairs of defences that differ under one attack, and how many do."""
    rows: list[list[Entry]] = []
    for pairs in campaign.comparisons.pairs:
        separated = [one for one in pairs.compared if one.is_shown]
        count = f"{len(separated)} of {len(pairs.compared)}"
        ordered = sorted(separated, key=lambda one: one.difference.mean)
        rows += [
            [pairs.attack, count, one.first.label, one.second.label, *_entries(one)]
            for one in ordered
        ]
        if not separated:
            rows.append([pairs.attack, count, None, None, None, None])
    compared = [one for pairs in campaign.comparisons.pairs for one in pairs.compared]
    num_shown = sum(one.is_shown for one in compared)
    return SideTable(
        name="pairs",
        title="Defences told apart",
        intro="Which of two defences under one attack leaves less harm: "
        f"{num_shown:,} of {len(compared):,} pairs differ at 95 %: p is at most 0.05 "
        "after Holm's adjustment for all pairs of that attack, and the "
        "interval leaves out 0. The difference is "
        f"{_measure(compared).lower()} under the first less that under the second, on the same "
        f"{_counts(compared)}. Within these seeds: random are items and prompts. [low, high] is "
        "the 95 % interval of one difference. A pair that is not listed was not told apart, which "
        "does not say that both are alike.",
        columns=(
            text_column("Attack", "attack"),
            text_column("Pairs told apart", "pairs_separated"),
            text_column("Less harm", "first"),
            text_column("More harm", "second"),
            _difference_column("Difference", "difference"),
            _p_column("p", "p"),
        ),
        rows=rows,
    )


def _measure(compared: Sequence[Compared]) -> str:
    by_oracle = {one.by_oracle for one in compared}
    if by_oracle == {False}:
        return "Harm (by the judge)"
    return "Harm" if len(by_oracle) < 2 else "Harm (by the judge where there is no oracle)"


def _counts(compared: Sequence[Compared]) -> str:
    """Return how many prompts and items comparisons rest on, in words."""
    prompts = _range([one.difference.n for one in compared])
    items = _range([one.difference.num_items for one in compared])
    return f"{prompts} prompts about {items} items"


def _ends(sizes: Sequence[float]) -> str:
    """Return the least and the largest of the sizes in brackets, "" of none."""
    return f"({min(sizes):.{DECIMALS}f} to {max(sizes):.{DECIMALS}f} here) " if sizes else ""


def _range(counts: Sequence[int]) -> str:
    ends = dict.fromkeys((min(counts, default=0), max(counts, default=0)))
    return " to ".join(f"{end:,}" for end in ends)


def _difference_column(heading: str, name: str) -> Column:
    return Column(heading=heading, name=name, decimals=DECIMALS, has_interval=True)


def _p_column(heading: str, name: str) -> Column:
    return Column(heading=heading, name=name, decimals=P_DECIMALS)


def _entries(compared: Compared | None) -> tuple[Entry, Entry]:
    if compared is None:
        return None, None
    return _value(compared.difference), compared.adjusted_p


def _value(difference: Difference) -> CellValue:
    low, high = difference.ci_low, difference.ci_high
    estimate = Estimate(mean=difference.mean, n=difference.n, ci_low=low, ci_high=high)
    return CellValue(mean=difference.mean, low=low, high=high, by_seed=(estimate,))


def _smallest(compared: Compared | None) -> float | None:
    size = compared.difference.smallest_detectable if compared is not None else float("nan")
    return size if size == size else None
