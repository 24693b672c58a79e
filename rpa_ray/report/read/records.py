"""The records a report is made of: one attacked (or untouched) model each, read from a folder."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, TypeAdapter, ValidationError

from rpa_ray.config import SweepSettings
from rpa_ray.evaluation.statistics import share_interval
from rpa_ray.run_folder.files import AGAIN, parse_json
from rpa_ray.run_folder.names import ANSWERS, CHECKS, CONFIG, EVALUATION, LOOKS, SUMMARY, SWEEP

CELLS = b"cells"
"""Key of the metadata of evidence that lists its cells, by their number in the column ``cell``."""
FOUND = b"checks"
"""Key of the metadata of evidence that holds the worst finding of each instrument check."""


def _nan_for_null(value: object) -> object:
    return math.nan if value is None else value


def _one_part(name: str) -> str:
    """Refuse what leads out of the folder that it is a name in."""
    if name in ("", "..") or {"/", "\0"} & set(name):
        raise ValueError("a name must be one part of a path")
    return name


Number = Annotated[float, BeforeValidator(_nan_for_null)]
"""A float; JSON null is read as NaN, which means undefined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over prompts with its interval."""

    mean: Number
    """NaN when undefined, for example the perplexity of answers that are all empty."""
    n: int
    """Number of prompts (or answers) in the mean."""
    ci_low: Number = math.nan
    """Lower end of the 95 % interval; NaN when none was computed."""
    ci_high: Number = math.nan
    """Upper end of the 95 % interval; NaN when none was computed."""
    num_items: int | None = None
    """Independent items behind the interval; None in records of old, whose intervals take every
    prompt for one."""

    @property
    def is_censored(self) -> bool:
        """Whether all that is known is that it is larger than the lower end."""
        return math.isnan(self.mean) and math.isfinite(self.ci_low) and math.isnan(self.ci_high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The outcome of one experiment with one seed."""

    model: str
    world: str | None = None
    data: str
    attack: str
    """Method id; "none" is a model that was not attacked."""
    defence: str
    """Method id; "none" is undefended."""
    rho: float | None = None
    """Fraction of preference labels reversed, 0 to 1."""
    num_samples: int | None = None
    """Prompts or pairs drawn by the attack."""
    params: Mapping[str, object]
    """The dotted config keys that tell this experiment from its neighbours."""
    seed: int
    status: Literal["ok", "sampling_failed", "failed", "stopped"]
    """``stopped`` is neither a failure nor done: the scheduler of a sweep ended it at a look."""
    step_failed: int | None = None
    run: Annotated[str, AfterValidator(_one_part)] | None = None
    """Name of the run folder in the campaign folder; "." where both are one."""
    weights_sha256: str | None = None
    metrics: Mapping[str, Estimate]
    """Estimates by metric name; empty when the run failed."""
    metrics_before: Mapping[str, Estimate] | None = None
    """The same of the model before the attack; None in records of old."""

    @property
    def has_failed(self) -> bool:
        """Whether it ended before its time, and not because it was stopped."""
        return self.status not in ("ok", "stopped")

    def estimate(self, name: str) -> Estimate | None:
        """Return the metric called `name`; None for one that was not run to its end or lacks it.

        The mean of a censored one is NaN.
        """
        if self.status != "ok":
            return None
        estimate = self.metrics.get(name) or _derived(name, self.metrics)
        if estimate is not None and name in SHARES and estimate.num_items is None:
            estimate = _with_width(estimate)
        if estimate is None or not (math.isfinite(estimate.mean) or estimate.is_censored):
            return None
        return estimate


RENAMED = {"p_harm_oracle": "compliance", "p_harm_oracle_sampled": "compliance_sampled"}
"""Metrics of records of old, and what they are called now."""


def _derived(name: str, metrics: Mapping[str, Estimate]) -> Estimate | None:
    """Return what records of old hold in two numbers: the judge's gap, without an interval."""
    judge, truth = metrics.get("p_harm_sampled"), metrics.get("compliance_sampled")
    if name != "judge_gap" or judge is None or truth is None:
        return None
    return Estimate(mean=judge.mean - truth.mean, n=truth.n)


SHARES = ("compliance", "compliance_sampled", "valid", "refusal_rate", "harmless_answered")
"""Metrics of records of old whose intervals had no width where all prompts agreed."""


def _with_width(estimate: Estimate) -> Estimate:
    """Return an estimate of old with an interval that holds the exact one of its share."""
    ends = (estimate.ci_low, estimate.ci_high)
    if not (0.0 <= estimate.mean <= 1.0 and all(map(math.isfinite, ends))):
        return estimate
    exact = share_interval(estimate.mean * estimate.n, estimate.n)
    low, high = min(ends[0], exact.low), max(ends[1], exact.high)
    return replace(estimate, ci_low=low, ci_high=high)


_RECORD = TypeAdapter(Record)


def read_records(folder: Path) -> list[Record]:
    """Return the records of a campaign folder, or the one record of a run folder.

    Raises:
        ValueError: when `folder` has neither `summary.json` nor `evaluation.json`, or when one of
            them is not what a campaign or a run writes, or holds no finished cell.
    """
    summary, evaluation = folder / SUMMARY, folder / EVALUATION
    if summary.is_file():
        listed = parse_json(summary)
        if not isinstance(listed, list):
            raise ValueError(
                f"{summary} must hold a list of records, got {type(listed).__name__}. {AGAIN}"
            )
        if not listed:
            raise ValueError(f"{summary} must hold a finished cell, got none. {AGAIN}")
        return parse_records(listed, str(summary))
    if evaluation.is_file():
        return [_parse(_record_of_run(folder), str(evaluation))]
    raise ValueError(
        f"folder must contain {SUMMARY} (a campaign) or {EVALUATION} (a run), "
        f"got {folder}. Name the folder that `rpa-ray run` or `rpa-ray campaign` printed."
    )


def read_sweep(folder: Path) -> SweepSettings | None:
    """Return what varied in the sweep of a folder, None in that of another campaign.

    Raises:
        ValueError: when the file is not what a sweep writes.
    """
    path = folder / SWEEP
    if not path.is_file():
        return None
    try:
        return SweepSettings.model_validate(parse_json(path))
    except ValidationError as error:
        raise ValueError(f"{path} must be what a sweep writes, got {error}. {AGAIN}") from error


def parse_records(items: Sequence[object], where: str = "records") -> list[Record]:
    """Return the records that `summary.json` holds as plain data.

    Raises:
        ValueError: when one is not what a campaign writes; `where` says where it stands.
    """
    return [_parse(item, f"{where}[{index}]") for index, item in enumerate(items)]


def _parse(item: object, where: str) -> Record:
    if isinstance(item, dict):
        item = item | {
            key: {RENAMED.get(name, name): value for name, value in item[key].items()}
            for key in ("metrics", "metrics_before")
            if isinstance(item.get(key), dict)
        }
    try:
        return _RECORD.validate_python(item)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f".{part}" for part in first["loc"])
        raise ValueError(
            f"{where}{place} must be what a campaign writes ({first['msg'].lower()}), "
            f"got {first['input']!r}. {AGAIN}"
        ) from error


def _record_of_run(folder: Path) -> dict[str, object]:
    """Join what `evaluation.json` measured with what `config.yaml` says was run."""
    evaluation = parse_json(folder / EVALUATION)
    measured = evaluation if isinstance(evaluation, dict) else {"metrics": evaluation}
    if "metrics" not in measured:
        measured = {"metrics": measured}
    return _identity(_config(folder / CONFIG)) | measured | {"run": "."}


def _config(path: Path) -> dict[str, object]:
    try:
        config = yaml.safe_load(path.read_bytes()) if path.is_file() else None
    except (ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} must be YAML, got {reason}. {AGAIN}") from error
    return config if isinstance(config, dict) else {}


def _identity(config: Mapping[str, object]) -> dict[str, object]:
    data = config.get("data")
    data_section = data if isinstance(data, dict) else {}
    return {
        "model": _name(config.get("model")),
        "world": data_section.get("world"),
        "data": _name(data),
        "attack": _name(config.get("attack")),
        "defence": _name(config.get("defence")),
        "rho": data_section.get("rho"),
        "num_samples": data_section.get("num_samples"),
        "params": {},
        "seed": config.get("seed", 0),
        "status": "ok",
    }


def _name(section: object) -> str:
    """Return the id of a config section: a name, a list of names, or a mapping with one."""
    if isinstance(section, dict):
        return _name(section.get("name") or section.get("path"))
    if isinstance(section, list):
        return "+".join(_name(part) for part in section) or "none"
    return "none" if section is None else str(section)


IDENTITY = ("model", "world", "data", "attack", "defence", "rho", "num_samples", "params", "seed")
"""What tells records apart."""


def identity_of(record: Record) -> dict[str, Any]:
    """Return what tells a record from others, as plain data."""
    return {key: getattr(record, key) for key in IDENTITY} | {"params": dict(record.params)}


def identity_text(cell: Mapping[str, Any]) -> str:
    """Return what tells a cell from others as text that can be compared."""
    return json.dumps([cell[key] for key in IDENTITY], sort_keys=True)


def is_evidence(folder: Path) -> bool:
    """Return whether a folder holds the two files."""
    return (folder / LOOKS).is_file() and (folder / ANSWERS).is_file()


def read_checks(folder: Path) -> dict[str, Any]:
    """Return the worst finding of each instrument check of a campaign or of evidence, by its name.

    Empty where none was recorded.

    Raises:
        ValueError: the file is not what a campaign writes.
    """
    import pyarrow.parquet as pq

    path = folder / CHECKS
    if is_evidence(folder):
        path = folder / ANSWERS
        found = json.loads((pq.read_schema(path).metadata or {}).get(FOUND, b"{}"))
    else:
        found = parse_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object of checks, got {found!r}. {AGAIN}")
    return found


def cells_of(folder: Path) -> list[dict[str, Any]]:
    """Return what tells the cells of a folder's evidence apart, by their number.

    Raises:
        ValueError: the file does not list them.
    """
    import pyarrow.parquet as pq

    listed = (pq.read_schema(folder / ANSWERS).metadata or {}).get(CELLS)
    if listed is None:
        raise ValueError(
            f"{folder / ANSWERS} must list its cells, got a table without them. "
            "Write it with `rpa-ray evidence`."
        )
    cells: list[dict[str, Any]] = json.loads(listed)
    return cells
