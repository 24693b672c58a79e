"""The cells of a config and their run folders: names, what tells them apart, what came out."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from rpa_ray.config import (
    ComposedConfig,
    EvaluationSettings,
    ExperimentSettings,
    PluginConfig,
    with_local_paths,
)
from rpa_ray.plan import LoadedConfig
from rpa_ray.plan.files import PLUGIN_KEYS
from rpa_ray.recipes.content import content_key
from rpa_ray.run_folder.files import say_once
from rpa_ray.run_folder.names import (
    COMMIT,
    CONFIG,
    MAX_NAME_BYTES,
    cut_to_bytes,
    short_commit,
)
from rpa_ray.run_folder.outcome import outcome_status, ran_to_an_end

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one written in C takes a tenth of the time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCell:
    """A cell with its folder and what tells it from its neighbours."""

    name: str
    settings: ExperimentSettings
    folder: Path
    params: dict[str, Any]
    done: bool
    """True where the same settings were run to an end before."""

    @property
    def num_samples(self) -> int:
        """Return how many samples the cell trains on; 0 where it does not train."""
        return 0 if self.settings.training is None else self.settings.data.num_samples


def plan_cells(config: LoadedConfig, output: Path) -> list[PlannedCell]:
    """Return the cells of a config with names, folders and distinguishing parameters."""
    cells, scheduled = config.campaign.cells, config.is_scheduled
    flat = [_flatten(_by_part(cell.to_yaml_dict())) for cell in cells]
    varied = _varied(flat)
    key_of = cache(content_key)  # what lies on the disk is looked at once for all cells
    planned = []
    for settings, values in zip(cells, flat, strict=True):
        folder = output / cell_name(settings, key_of)
        planned.append(
            PlannedCell(
                name=folder.name,
                settings=settings,
                folder=folder,
                params={
                    key: value
                    for key, value in values.items()
                    if key not in _RECORD_KEYS
                    and ((_scope(key, values), key) in varied or _is_set(key, value, settings))
                },
                done=is_done(folder, settings, scheduled=scheduled),
            )
        )
    return planned


def cell_labels(cells: Sequence[PlannedCell]) -> dict[str, str]:
    """Return, by the name of each cell, what it does and what tells it from its neighbours."""

    def values(cell: PlannedCell) -> dict[str, Any]:
        settings = cell.settings
        return {
            "model": settings.model.path,
            "data": settings.data.name,
            "rho": settings.data.rho,
            "samples": settings.data.num_samples,
            "seed": settings.seed,
        }

    shown = _shown_models({cell.settings.model.path for cell in cells})
    every = [values(cell) for cell in cells]
    varied = {key for own in every for key in own if own[key] != every[0][key]}
    labels = {}
    for cell, own in zip(cells, every, strict=True):
        settings = cell.settings
        named_by = {"model": shown[own["model"]], "data": own["data"]}
        parts = [name for key, name in named_by.items() if key in varied]
        parts.append(settings.attack.name)
        if (settings.attack.name, settings.defence.name) != ("none", "none"):
            parts.append(settings.defence.name)
        shared = [key for key in ("rho", "samples", "seed") if key in varied]
        named: dict[str, Any] = {key: own[key] for key in shared}
        last_words = Counter([*named, *(key.rpartition(".")[2] for key in cell.params)])
        for key, value in cell.params.items():
            last = key.rpartition(".")[2]
            named[last if last_words[last] == 1 else key] = value
        parts += [setting_text(key, value) for key, value in named.items()]
        labels[cell.name] = " ".join(parts)
    return labels


def setting_text(key: str, value: Any) -> str:
    """Return a setting in words."""
    return f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"


def _shown_models(paths: Set[str]) -> dict[str, str]:
    """Return short names of models, no two alike: of folders the last part, of commits 8 digits."""
    short = {path: short_commit(path) for path in paths}
    short |= {path: Path(path).name or path for path in paths if Path(path).is_dir()}
    num = Counter(short.values())
    return {path: name if num[name] == 1 else path for path, name in short.items()}


def cell_name(settings: ExperimentSettings, key_of: Callable[[Path], str] = content_key) -> str:
    """Return a readable folder name that two different cells never share.

    Two cells also differ where other weights or data lie under the same path. Of a name that no
    file system would take the readable part is cut.

    Args:
        settings: Of the cell.
        key_of: What stands for a local path: a key of what lies there.
    """
    # What lies under local paths counts, not the paths.
    identity = json.dumps(_identity(with_local_paths(settings, key_of)), sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()
    named = COMMIT.sub("", Path(settings.model.path).name)
    model = "".join(c if c.isalnum() else "-" for c in named)
    defence = settings.defence.name.replace("+", "_")
    readable = "_".join([model, settings.attack.name, defence, f"seed{settings.seed}"])
    return f"{cut_to_bytes(readable, MAX_NAME_BYTES - 9)}_{digest[:8]}"


_RECORD_KEYS = frozenset(
    {
        "model.path",
        "data.name",
        "data.world",
        "data.rho",
        "data.num_samples",
        "attack.name",
        "defence.name",
        "seed",
    }
)


_Scope: TypeAlias = tuple[str, str | None]
"""Section and name of an attack or a defence whose settings are compared; of others no more than
one, which all cells share."""
_SHARED: _Scope = ("", None)


def _scope(key: str, values: Mapping[str, Any]) -> _Scope:
    """Return between which cells a setting is compared: those of an attack or a defence by name."""
    section = key.partition(".")[0]
    return (section, values[f"{section}.name"]) if section in PLUGIN_KEYS else _SHARED


def _varied(flat: Sequence[dict[str, Any]]) -> set[tuple[_Scope, str]]:
    """Return which settings differ between cells of a scope."""
    first: dict[_Scope, dict[str, Any]] = {}
    varied: set[tuple[_Scope, str]] = set()
    for values in flat:
        for scope in (_SHARED, *(_scope(section, values) for section in PLUGIN_KEYS)):
            other = first.setdefault(scope, values)
            keys = values.keys() | other.keys()
            varied |= {(scope, key) for key in keys if values.get(key) != other.get(key)}
    return varied


def _is_set(key: str, value: Any, cell: ExperimentSettings) -> bool:
    """Return whether a setting is told even where all cells share it.

    That is a defence's which is not its default, and that prompts are not those which are reported.
    """
    if key == "evaluation.split":
        return bool(value != EvaluationSettings().split)
    section, _, name = key.partition(".")
    return section == "defence" and bool(_default_of(cell.defence, name) != value)


def _default_of(defence: PluginConfig, name: str) -> Any:
    """Return the default of a defence's setting; one of a part is called ``<part>.<setting>``.

    One inside a section that is left out by default has None.
    """
    if isinstance(defence, ComposedConfig):
        own_name, _, name = name.partition(".")
        (defence,) = (part for part in defence.parts if part.name == own_name)
    setting, _, inner = name.partition(".")
    default = type(defence).model_fields[setting].default
    return getattr(default, inner, None) if inner else default


def _by_part(tree: dict[str, Any]) -> dict[str, Any]:
    """Return settings with the list of a composed defence as one section for each part."""
    defence = dict(tree["defence"])
    sections = {part["name"]: part for part in defence.pop("parts", [])}
    own = {name: {k: v for k, v in part.items() if k != "name"} for name, part in sections.items()}
    return {**tree, "defence": defence | own}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _identity(settings: ExperimentSettings) -> dict[str, Any]:
    """Return what decides a cell's result: everything but where it runs."""
    return _without_cluster(settings.to_yaml_dict())


def _without_cluster(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key != "cluster"}


def is_done(folder: Path, settings: ExperimentSettings, *, scheduled: bool = False) -> bool:
    """Return whether the same settings were run to an end in a folder.

    Where its file of settings is not whole they were not, which is said once. What a scheduler has
    stopped is at its end only where there is a scheduler, ``scheduled``.
    """
    if not ran_to_an_end(folder) or (outcome_status(folder) == "stopped" and not scheduled):
        return False
    path = folder / CONFIG
    try:
        config = yaml.load(path.read_bytes(), Loader=_Loader)  # noqa: S506 - a safe loader
    except (FileNotFoundError, ValueError, yaml.YAMLError):
        config = None
    if isinstance(config, dict) and _without_cluster(config) == _identity(settings):
        return True
    say_once(
        f"{path} must hold the settings of its cell, got others or none. The cell is run again."
    )
    return False
