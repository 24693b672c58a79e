"""From a file to cells that can run: load, expand, cost, refuse. Starts nothing.

Runs in: driver.
Imports: `recipes`, `cluster`, tables of attacks and defences.
Called by: `campaign`, `cli`, `ray_job`.
"""

from rpa_ray.plan.files import merge
from rpa_ray.plan.load import (
    LoadedConfig,
    evaluation_of,
    load_config,
    parse_experiment,
    parse_tree,
    with_native_dtype,
)

__all__ = [
    "LoadedConfig",
    "evaluation_of",
    "load_config",
    "merge",
    "parse_experiment",
    "parse_tree",
    "with_native_dtype",
]
