"""What tells models and data apart that attacks begin with, whatever was done to them since."""

from rpa_ray.report.read.labels import params_text
from rpa_ray.report.read.records import Record

SETTING_PARAMS = ("data.", "model.", "evaluation.split")
"""Parameters that change what is attacked or asked, not how: they part groups, not rows of one."""

SHUFFLED = "attack.shuffle_rewards"
"""Parameter of the control that deals rewards out at random."""

_REPEATED_PARAMS = frozenset({"data.rho", "data.num_samples"})


def variant_of(record: Record) -> str:
    """Return the parameters of its data and model that have no field of their own, as text."""
    variant = {
        key: value
        for key, value in record.params.items()
        if key.startswith(SETTING_PARAMS) and key not in _REPEATED_PARAMS
    }
    return params_text(variant)


def start_of(record: Record) -> tuple[object, ...]:
    """Return what tells the model before an attack, and what it was measured on, from others."""
    return record.model, record.world, record.data, variant_of(record)
