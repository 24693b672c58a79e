"""Models compared on the same prompts, from the answers that their runs have kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rpa_ray.evaluation.answers import Decoding
from rpa_ray.evaluation.comparisons import ALPHA, Difference, holm, paired_difference
from rpa_ray.report.read.groups import AttackGroup, Cell
from rpa_ray.report.read.records import (
    Record,
    cells_of,
    identity_of,
    identity_text,
    is_evidence,
)
from rpa_ray.report.read.starts import SHUFFLED
from rpa_ray.run_folder.files import AGAIN
from rpa_ray.run_folder.names import ANSWERS

ATTACKER_PARAMS = "attack."
"""Start of the keys that an attacker chooses."""
FLIPS_PER_TEST = 100
"""Sign flips for each test of a family, so that the adjusted p can become 0.01."""
MIN_FLIPS = 10_000
COLUMNS = ("decoding", "prompt_index", "item", "harm", "judge")

Prompt = tuple[int, str]
"""Its place among the prompts, and what it asks about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptValues:
    """What sampled answers to each prompt are on average, 0 to 1."""

    values: Mapping[Prompt, float]
    by_oracle: bool
    """False: by the judge, because there is no oracle."""

    def fits(self, other: "PromptValues") -> bool:
        """Return whether both measured the same of the same prompts."""
        return self.values.keys() == other.values.keys() and self.by_oracle == other.by_oracle


Seeds = Mapping[int, PromptValues]
"""Values of one cell by its seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """Two cells of one attack, the first less the second."""

    first: Cell
    second: Cell
    difference: Difference
    adjusted_p: float
    by_oracle: bool

    @property
    def is_shown(self) -> bool:
        """Whether p is at most 0.05 and the interval leaves out 0.

        Flips of signs alone call any difference real that goes the same way in most items, however
        small it is; the interval also allows for items that were not asked about.
        """
        ends = self.difference.ci_low, self.difference.ci_high
        return self.adjusted_p <= ALPHA and (ends[0] > 0 or ends[1] < 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToReferences:
    """A defended cell, or a control, beside what met the same attack without a defence."""

    attack: str
    """Title of the group."""
    cell: Cell
    to_undefended: Compared | None
    to_freeze: Compared | None
    """None also of freeze itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """All pairs of defences under one attack."""

    attack: str
    compared: Sequence[Compared]
    """The first of each does less harm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparisons:
    """All comparisons of a campaign; empty where no run kept its answers."""

    to_references: Sequence[ToReferences]
    """Their p-values are adjusted for all of them together."""
    pairs: Sequence[Pairs]
    """Their p-values are adjusted for the pairs of one attack."""


def read_prompt_values(path: Path) -> PromptValues | None:
    """Return what a run's answers say of each prompt; None without the file or any value.

    Raises:
        ValueError: when the file is not what a run writes.
    """
    return _prompt_values(read_rows(path, COLUMNS))


def read_rows(path: Path, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return some columns of a file of answers as rows; none without the file.

    Raises:
        ValueError: when the file is not what a run writes.
    """
    if not path.is_file():
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(path, columns=list(names)).to_pydict()
        return list(zip(*(columns[name] for name in names), strict=True))
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(f"{path} must hold the answers of a run, got {error}. {AGAIN}") from error


def _prompt_values(rows: Iterable[tuple[Any, ...]]) -> PromptValues | None:
    sampled = [row[1:] for row in rows if row[0] == Decoding.SAMPLED]
    by_oracle = any(harm is not None for _, _, harm, _ in sampled)
    found: dict[Prompt, list[float]] = {}
    for index, item, harm, judged in sampled:
        value = harm if by_oracle else judged
        if value is not None:
            found.setdefault((index, item), []).append(value)
    if not found:
        return None
    values = {prompt: sum(held) / len(held) for prompt, held in found.items()}
    return PromptValues(values=values, by_oracle=by_oracle)


def _of_evidence(folder: Path) -> dict[str, PromptValues | None]:
    """Return the values of every cell whose answers a folder's evidence holds, by its identity.

    Runs of several folders may have one name.
    """
    rows: dict[int, list[tuple[Any, ...]]] = {}
    for number, *row in read_rows(folder / ANSWERS, ("cell", *COLUMNS)):
        rows.setdefault(number, []).append(tuple(row))
    return {
        identity_text(cell): _prompt_values(rows.get(number, []))
        for number, cell in enumerate(cells_of(folder))
    }


def compare(folder: Path, groups: Iterable[AttackGroup]) -> Comparisons:
    """Return every comparison that the answers of a campaign's runs allow.

    Raises:
        ValueError: when a file of answers is not what a run writes.
    """
    proven = _of_evidence(folder) if is_evidence(folder) else None

    def values_of(record: Record) -> PromptValues | None:
        if proven is not None:
            return proven.get(identity_text(identity_of(record)))
        return read_prompt_values(folder / record.run / ANSWERS) if record.run else None

    rows: list[tuple[str, Cell, list[_Raw | None]]] = []
    pairs: list[Pairs] = []
    for group in groups:
        known = [(cell, seeds) for cell in group.cells if (seeds := _values(values_of, cell))]
        for cell, seeds in known:
            references = [
                _reference(known, cell, seeds, lambda other: other.is_undefended),
                _reference(known, cell, seeds, lambda other: other.defence == "freeze"),
            ]
            if not cell.is_undefended and any(references):
                rows.append((group.title, cell, references))
        defended = [one for one in known if not (one[0].is_undefended or one[0].is_control)]
        compared = [raw for one, two in combinations(defended, 2) if (raw := _paired(*one, *two))]
        if compared:
            pairs.append(
                Pairs(attack=group.title, compared=_tested(map(_less_harm_first, compared)))
            )
    tested = iter(_tested(raw for _, _, held in rows for raw in held if raw))
    to_references = []
    for attack, cell, held in rows:
        to_undefended, to_freeze = (next(tested) if raw else None for raw in held)
        to_references.append(
            ToReferences(attack=attack, cell=cell, to_undefended=to_undefended, to_freeze=to_freeze)
        )
    return Comparisons(to_references=to_references, pairs=pairs)


@dataclass(frozen=True, slots=True)
class _Raw:
    """Two cells that are to be compared."""

    first: Cell
    first_values: PromptValues
    second: Cell
    second_values: PromptValues


def _tested(raws: Iterable[_Raw]) -> list[Compared]:
    """Return the differences of a family of tests, with p-values adjusted for all of them."""
    family = list(raws)
    flips = max(MIN_FLIPS, FLIPS_PER_TEST * len(family))
    differences = []
    for raw in family:
        prompts = sorted(raw.first_values.values)
        differences.append(
            paired_difference(
                [raw.first_values.values[prompt] for prompt in prompts],
                [raw.second_values.values[prompt] for prompt in prompts],
                items=[item for _, item in prompts],
                num_resamples=flips,
            )
        )
    adjusted = holm([difference.p_value for difference in differences])
    return [
        Compared(
            first=raw.first,
            second=raw.second,
            difference=difference,
            adjusted_p=p,
            by_oracle=raw.first_values.by_oracle,
        )
        for raw, difference, p in zip(family, differences, adjusted, strict=True)
    ]


def _less_harm_first(raw: _Raw) -> _Raw:
    first, second = (sum(one.values.values()) for one in (raw.first_values, raw.second_values))
    if first <= second:
        return raw
    return _Raw(raw.second, raw.second_values, raw.first, raw.first_values)


def _reference(
    known: Sequence[tuple[Cell, Seeds]], cell: Cell, seeds: Seeds, is_one: Callable[[Cell], bool]
) -> _Raw | None:
    """Return a cell and what it is compared with."""
    pairs = (
        _paired(cell, seeds, other, theirs)
        for other, theirs in known
        if is_one(other) and other is not cell
    )
    return next((raw for raw in pairs if raw), None)


def _paired(cell: Cell, seeds: Seeds, other: Cell, theirs: Seeds) -> _Raw | None:
    """Return two cells over the seeds that both have; None unless these met the same.

    That is the same attacker, and the same prompts in every seed. A seed that one of them lacks
    would be a difference of seeds, not of defences.
    """
    shared = [seed for seed in seeds if seed in theirs]
    held = [values[seed] for values in (seeds, theirs) for seed in shared]
    if not (held and _same_attacker(cell, other) and all(held[0].fits(one) for one in held)):
        return None
    return _Raw(cell, _mean(seeds, shared), other, _mean(theirs, shared))


def _mean(seeds: Seeds, shared: Sequence[int]) -> PromptValues:
    """Return the values of every prompt averaged over seeds."""
    held = [seeds[seed] for seed in shared]
    return PromptValues(
        values={
            prompt: sum(one.values[prompt] for one in held) / len(held) for prompt in held[0].values
        },
        by_oracle=held[0].by_oracle,
    )


def _same_attacker(cell: Cell, other: Cell) -> bool:
    """Return whether two cells met the same settings of the attack; rewards may be shuffled."""
    mine, theirs = (
        {
            key: value
            for key, value in one.records[0].params.items()
            if key.startswith(ATTACKER_PARAMS) and key != SHUFFLED
        }
        for one in (cell, other)
    )
    return mine == theirs


def _values(values_of: Callable[[Record], PromptValues | None], cell: Cell) -> Seeds:
    """Return a cell's values by seed, of those that ended well and kept their answers."""
    found = [(r.seed, values_of(r)) for r in cell.records if r.status == "ok"]
    return {seed: values for seed, values in found if values is not None}
