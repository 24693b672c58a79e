"""Attack and defence of a cell: their settings by name, and pairs that cannot be."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rpa_ray.config.errors import ConfigError, nearest
from rpa_ray.config.plugins import ComposedConfig, PluginConfig
from rpa_ray.config.schema import ExperimentSettings
from rpa_ray.plan.explain import explain


def plugin_config(key: str, value: Any, where: str) -> PluginConfig:
    """Return the settings of the attack or the defence that a config names."""
    if isinstance(value, PluginConfig):
        return value
    tree = {"name": value} if isinstance(value, str) else value
    name = tree.get("name") if isinstance(tree, Mapping) else None
    configs = plugin_configs(key)
    if not isinstance(name, str) or name not in configs:
        raise ConfigError(
            f"{where}{key}", f"name one of {sorted(configs)}", value, nearest(name, configs)
        )
    try:
        return configs[name].model_validate(tree)
    except ValidationError as error:
        raise explain(error, configs[name], where, at=f"{key}.") from None


def defence_config(value: Any, where: str) -> PluginConfig:
    """Return the config of one defence, or of the list of those that run as one."""
    if isinstance(value, Mapping) and "parts" in value:  # a composed one, as runs write it down
        value = value["parts"]
    if not isinstance(value, list | tuple):
        return plugin_config("defence", value, where)
    if not value:
        raise ConfigError(f"{where}defence", "name a defence", value, "Write `defence: none`.")
    parts = [plugin_config(f"defence[{i}]", part, where) for i, part in enumerate(value)]
    if len(parts) == 1:
        return parts[0]
    return ComposedConfig(name="+".join(part.name for part in parts), parts=tuple(parts))


def plugin_configs(key: str) -> dict[str, type[PluginConfig]]:
    """Return the settings of every ``attack`` or ``defence``, whichever ``key`` is, by its name."""
    from rpa_ray.attacks import ATTACKS
    from rpa_ray.defences import DEFENCES, OFFLINE_DEFENCES

    if key == "attack":
        return {name: attack.Config for name, attack in ATTACKS.items()}
    return {name: d.Config for name, d in (DEFENCES | OFFLINE_DEFENCES).items()}


def refuse_impossible_pair(settings: ExperimentSettings, where: str) -> None:
    """Refuse defences that contradict each other or lack what the attack would have to have.

    So is a data set that nobody knows: no pair is made of it.
    """
    from rpa_ray.attacks import ATTACKS
    from rpa_ray.data.formats import FORMATS
    from rpa_ray.defences import online_defences
    from rpa_ray.defences.composed import contradiction

    if (name := settings.data.name) not in FORMATS:
        known = sorted(FORMATS)
        raise ConfigError(f"{where}data.name", f"be one of {known}", name, nearest(name, known))
    attack, defence = settings.attack.name, settings.defence.name
    parts = online_defences(settings.defence)
    reason = contradiction(defence.split("+"), parts)
    if reason is not None:
        raise ConfigError(f"{where}defence", "list what can run together", defence, f"{reason}.")
    if settings.training is None and any(part.config.name != "none" for part in parts):
        raise ConfigError(
            f"{where}defence",
            f"be none where attack is {attack}",
            defence,
            "It acts on the steps of an attack: name one that trains, as in `attack: ppo`.",
        )
    needed = frozenset().union(*(part.needs_of_attack for part in parts))
    missing = needed - ATTACKS[attack].requires
    if missing:
        able = sorted(name for name, a in ATTACKS.items() if needed <= a.requires)
        raise ConfigError(
            f"{where}defence",
            f"work with an attack that has {sorted(m.value for m in missing)}",
            f"{defence} with {attack}",
            f"Choose one of the attacks {able}, or another defence.",
        )
