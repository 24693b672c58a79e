"""The model before an attack, from what the attack's own run measured of it."""

from collections.abc import Sequence
from dataclasses import replace

from rpa_ray.report.read.groups import SETTING_PARAMS, variant_of
from rpa_ray.report.read.records import Record

OFFLINE = "_offline"
"""How the id of a defence ends that is at work before the attack: what its runs measured before
the attack is the hardened model."""


def with_before(records: Sequence[Record]) -> list[Record]:
    """Return the records, and one of the model before the attack where none is among them.

    It is what a run measured before it began, an undefended one where there is one: of each model,
    world and data one.
    """
    known = {_start(r) for r in records if r.attack == "none" and r.defence == "none"}
    added: dict[tuple[object, ...], Record] = {}
    for record in sorted(records, key=lambda record: record.defence != "none"):
        is_hardened = any(part.endswith(OFFLINE) for part in record.defence.split("+"))
        start = _start(record)
        if record.metrics_before and not is_hardened and start not in known:
            added.setdefault(start, _before(record))
    return [*added.values(), *records]


def _before(record: Record) -> Record:
    return replace(
        record,
        attack="none",
        defence="none",
        rho=None,
        num_samples=None,
        status="ok",
        step_failed=None,
        run=None,
        weights_sha256=None,
        params={k: v for k, v in record.params.items() if k.startswith(SETTING_PARAMS)},
        metrics=record.metrics_before or {},
        metrics_before=None,
    )


def _start(record: Record) -> tuple[object, ...]:
    """Return what tells the model before an attack, and what it was measured on, from others."""
    return record.model, record.world, record.data, variant_of(record)
