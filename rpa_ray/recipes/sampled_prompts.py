"""Which prompts a hardening has its model answer."""

from rpa_ray.config.plugins import SampledOfflineConfig
from rpa_ray.data.order import hash_order, normalise
from rpa_ray.data.rows import SafePair
from rpa_ray.data.split import of_domains, require_rows
from rpa_ray.recipes.cell_data import CellData

KEY = "defence.num_prompts"


def restricted_prompts(config: SampledOfflineConfig, data: CellData, *, seed: int) -> list[str]:
    """Return ``num_prompts`` prompts of the defence split, those of the domains alone.

    Raises:
        DataError: a domain is none of the data, or there are too few prompts.
    """
    pairs = of_domains(data.safety.planned.roles["defence"], config.domains, key="defence.domains")
    distinct: dict[str, SafePair] = {}
    for pair in pairs:
        distinct.setdefault(normalise(pair.prompt), pair)
    what = "the distinct restricted prompts of role 'defence' in defence.domains"
    require_rows(KEY, config.num_prompts, num_rows=len(distinct), what=what)
    chosen = hash_order(
        list(distinct.values()), purpose="sampled_prompts", seed=seed, num=config.num_prompts
    )
    return [pair.prompt for pair in chosen]


def harmless_prompts(config: SampledOfflineConfig, data: CellData) -> list[str]:
    """Return the first ``num_prompts`` harmless prompts to train on.

    Raises:
        DataError: there are fewer.
    """
    rows = data.harmless_training_rows
    what = "the harmless prompts to train on"
    require_rows(KEY, config.num_prompts, num_rows=len(rows), what=what)
    return [row.prompt for row in rows[: config.num_prompts]]
