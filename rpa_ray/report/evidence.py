"""What proves a table: every measured answer and every look, in two files that are committed.

``answers.parquet`` has one row a cell, prompt and answer, ``looks.parquet`` one a cell and look.
Both name the cells in their metadata, so that every number of a table can be computed again from
the two and nothing else. A folder that holds them is read like that of a campaign.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rpa_ray.evaluation.answers import COLUMNS, Answer, Decoding, from_table
from rpa_ray.evaluation.best_of_n import best_of_n_curves
from rpa_ray.evaluation.looks import HELD_OUT, dose_metrics
from rpa_ray.evaluation.metrics import metrics_of
from rpa_ray.report.read.before import before_of, first_of_each, model_of
from rpa_ray.report.read.comparisons import read_rows
from rpa_ray.report.read.records import (
    CELLS,
    FOUND,
    Record,
    cells_of,
    identity_of,
    identity_text,
    is_evidence,
    parse_records,
    read_checks,
    read_records,
)
from rpa_ray.report.read.reward_gain import NONE, ROW, Rewards, rewards_of, with_reward_gain
from rpa_ray.run_folder.files import AGAIN, parse_json, write_parquet
from rpa_ray.run_folder.names import ANSWERS, ANSWERS_BEFORE, EVALUATION, LOOKS
from rpa_ray.run_folder.outcome import worst_of

if TYPE_CHECKING:
    import pyarrow as pa

NUM_TEXTS = 20
"""Prompts of each kind whose texts evidence keeps: the first, not chosen by outcome."""
OUTCOME = ("status", "step_failed", "run", "weights_sha256")


class Measured(NamedTuple):
    """One cell with what proves it."""

    cell: dict[str, Any]
    """What tells it apart, and how it ended."""
    answers: "pa.Table | None"
    """Its rows without their number; None where it failed."""
    looks: list[dict[str, Any]]


def write_evidence(folders: Sequence[Path], output: Path) -> tuple[Path, Path]:
    """Write the two files of campaigns into a folder, and return them.

    Args:
        folders: Of campaigns whose runs have their answers, or of evidence written before (seeds
            measured on other days or machines); cells of one that stand in another too are taken
            once.
        output: Where to; made where it is not there, and may be one of ``folders``.

    Raises:
        ValueError: a folder is neither, a run of it has no answers, or two folders have other
            weights of what they call the same cell.
    """
    import pyarrow as pa

    measured: dict[str, Measured] = {}
    for folder in folders:
        for found in _of_evidence(folder) if is_evidence(folder) else _of_campaign(folder):
            name = identity_text(found.cell)
            _require_same(measured.setdefault(name, found).cell, found.cell, folder)
    cells = list(measured.values())
    metadata = {
        CELLS: json.dumps([found.cell for found in cells]).encode(),
        FOUND: json.dumps(worst_of(map(read_checks, folders))).encode(),
    }
    answers = pa.concat_tables(
        [
            _numbered(found.answers, number).unify_dictionaries()
            for number, found in enumerate(cells)
            if found.answers is not None
        ],
        promote_options="default",  # evidence of old lacks what answers did not have then
    )
    looks = [{**look, "cell": number} for number, found in enumerate(cells) for look in found.looks]
    columns = {name: [look.get(name) for look in looks] for name in ("cell", "samples", *HELD_OUT)}
    types = {"cell": pa.int32()}
    schema = pa.schema([(n, types.get(n, pa.float32())) for n in columns], metadata=metadata)
    paths = output / ANSWERS, output / LOOKS
    write_parquet(paths[0], answers.replace_schema_metadata(metadata))
    write_parquet(paths[1], pa.Table.from_pydict(columns, schema=schema))
    return paths


def _each_start_once(records: Sequence[Record]) -> list[Record]:
    """Leave out what a run measured before its attack where that model is a cell of its own.

    It is in the files all the same: a cell that was not attacked asks no reward model, a run does.
    """
    has_run = {model_of(r) for r in records if r.run and r.attack == "none"}
    return [r for r in records if r.run or r.attack != "none" or model_of(r) not in has_run]


def _require_same(cell: Mapping[str, Any], other: Mapping[str, Any], folder: Path) -> None:
    """Refuse two cells of one name that ended in different models.

    A campaign tells of a cell only what differs within the campaign.
    """
    for key in ("status", "weights_sha256"):
        if None not in (cell[key], other[key]) and cell[key] != other[key]:
            words = " ".join(str(cell[name]) for name in ("model", "data", "attack", "defence"))
            raise ValueError(
                f"{key} of {words}, seed {cell['seed']}, must be the same in all folders, got "
                f"{cell[key]} and, in {folder}, {other[key]}. Name one of the folders alone, or "
                "run other settings as one campaign, which tells them apart."
            )


def read_evidence(folder: Path, *, num_resamples: int = 2_000) -> list[Record]:
    """Return the records of a folder with every metric computed again from its two files.

    Once a process for the same files: a note asks for them table by table.

    Raises:
        ValueError: the files are not what :func:`write_evidence` writes.
    """
    stats = [(folder / name).stat() for name in (ANSWERS, LOOKS)]
    stamps = tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)
    return list(_records_of(folder, stamps, num_resamples))


@lru_cache(maxsize=4)
def _records_of(
    folder: Path, stamps: tuple[tuple[int, int, int], ...], num_resamples: int
) -> list[Record]:
    """Return what `read_evidence` does of files with these stamps, which tell one from another."""
    cells, answers = read_cells(folder)
    looks = _read_looks(folder)
    items: list[dict[str, Any]] = []
    rewards: list[Rewards] = []
    for number, cell in enumerate(cells):
        held = answers.get(number, [])
        metrics = metrics_of(held, num_resamples=num_resamples)
        metrics |= _pooled(held, cell, num_resamples)
        found = {name: asdict(estimate) for name, estimate in metrics.items()}
        if cell["attack"] != "none":
            found |= dose_metrics(looks.get(number, []))
        items.append({**cell, "metrics": found})
        rewards.append(rewards_of([(a.decoding, a.prompt_index, a.item, a.reward) for a in held]))
    records = parse_records(items, str(folder / ANSWERS))
    return _each_start_once(with_reward_gain(records, rewards, [NONE] * len(records)))


def read_measured(folder: Path) -> list[Record]:
    """Return the records of a folder, with the reward that each gained.

    Args:
        folder: Of evidence, of a campaign, or of a run.

    Raises:
        ValueError: the folder is none of these, or a file in it is not what a run writes.
    """
    if is_evidence(folder):
        return read_evidence(folder)
    records = read_records(folder)
    after, before = (
        [rewards_of(read_rows(_run(folder, record) / name, ROW)) for record in records]
        for name in (ANSWERS, ANSWERS_BEFORE)
    )
    return with_reward_gain(records, after, before)


def read_looks(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Return the looks at every cell of a folder's evidence, by the name of its run."""
    looks = _read_looks(folder)
    cells = enumerate(cells_of(folder))
    return {cell["run"]: looks[number] for number, cell in cells if cell["run"] and number in looks}


def read_cells(folder: Path) -> tuple[list[dict[str, Any]], dict[int, list[Answer]]]:
    """Return the cells of a folder's evidence, and the answers of each by its number."""
    table = _read_answers(folder / ANSWERS)
    cells = cells_of(folder)
    by_cell: dict[int, list[Answer]] = {}
    numbers = table["cell"].to_pylist()
    for number, answer in zip(numbers, from_table(table), strict=True):
        by_cell.setdefault(number, []).append(answer)
    return cells, by_cell


def _of_evidence(folder: Path) -> list[Measured]:
    """Return the cells of two files that were written before."""
    import pyarrow.compute as pc

    table, looks = _read_answers(folder / ANSWERS), _read_looks(folder)
    found = []
    for number, cell in enumerate(cells_of(folder)):
        answers = table.filter(pc.equal(table["cell"], number))
        found.append(Measured(cell, answers if answers.num_rows else None, looks.get(number, [])))
    return found


def _of_campaign(folder: Path) -> list[Measured]:
    """Return the cells of a campaign and the models before them, from the files of their runs."""
    found = []
    for record, path in _sources(folder, read_records(folder)):
        cell = identity_of(record) | {key: getattr(record, key) for key in OUTCOME}
        cell["model"] = _without_place(record.model)
        if path is None:
            found.append(Measured(cell, None, []))
        else:
            found.append(Measured(cell, _read_answers(path), _looks_of(path.parent, cell)))
    return found


def _without_place(model: str) -> str:
    """Return what a model is called where it does not matter on which machine it lay.

    Of a folder these are its last two names: a model that a run made is told by the run.
    """
    path = Path(model)
    return "/".join(path.parts[-2:]) if path.is_absolute() else model


def _sources(folder: Path, records: Sequence[Record]) -> list[tuple[Record, Path | None]]:
    """Return the records of a campaign and of the models before, each with its file of answers."""
    found: list[tuple[Record, Path | None]] = []
    has_before = [r for r in records if (_run(folder, r) / ANSWERS_BEFORE).is_file()]
    for record in first_of_each(has_before, ()):
        found.append((before_of(record), _run(folder, record) / ANSWERS_BEFORE))
    for record in records:
        if record.status != "ok":
            found.append((record, None))
            continue
        run = _run(folder, record)
        # Best-of-N changes no weights: its pool stands beside what was measured before.
        after = run / ANSWERS
        path = after if after.is_file() else run / ANSWERS_BEFORE
        if not path.is_file():
            raise ValueError(
                f"{run} must have {ANSWERS}, got none: it is of a version that kept no answers. "
                "Run it again."
            )
        found.append((record, path))
    return found


def _run(folder: Path, record: Record) -> Path:
    return folder / (record.run or ".")


def _numbered(table: "pa.Table", number: int) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.compute as pc

    kept = pc.less(table["prompt_index"], NUM_TEXTS)
    for name in ("prompt", "text"):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pc.if_else(kept, table[name], ""))
    column = pa.array([number] * table.num_rows, type=pa.int32())
    held = [name for name in COLUMNS if name in table.column_names]
    return table.select(held).add_column(0, "cell", column).replace_schema_metadata(None)


def _read_answers(path: Path) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} must hold the answers of a run, got {error}. {AGAIN}") from error


def _looks_of(run: Path, cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    if cell["attack"] == "none":
        return []
    evaluation = parse_json(run / EVALUATION)
    return list(evaluation.get("looks", [])) if isinstance(evaluation, dict) else []


def _read_looks(folder: Path) -> dict[int, list[dict[str, float]]]:
    import pyarrow.parquet as pq

    looks: dict[int, list[dict[str, float]]] = {}
    for row in pq.read_table(folder / LOOKS).to_pylist():
        held = {name: value for name, value in row.items() if value is not None and name != "cell"}
        looks.setdefault(row["cell"], []).append(held)
    return looks


def _pooled(
    answers: Sequence[Answer], cell: Mapping[str, Any], num_resamples: int
) -> dict[str, Any]:
    """Return the curves of best-of-N from the pool among the answers; empty without one."""
    pool: dict[int, list[Answer]] = {}
    for answer in answers:
        if answer.decoding is Decoding.POOL:
            pool.setdefault(answer.prompt_index, []).append(answer)
    if not pool:
        return {}
    size = min(map(len, pool.values()))
    sizes = [2**power for power in range(size.bit_length())]
    return best_of_n_curves(list(pool.values()), sizes, num_resamples=num_resamples)
