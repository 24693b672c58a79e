"""The model before an attack, from what the attack's own run measured of it."""

from collections.abc import Sequence
from dataclasses import replace

from rpa_ray.report.read.groups import SETTING_PARAMS, start_of
from rpa_ray.report.read.records import Record

REWARD = "reward"
"""Mean score by the attacker's reward model."""


def with_before(records: Sequence[Record]) -> list[Record]:
    """Return the records, and one of the model before the attack where none is among them.

    It is what a run measured before it began, an undefended one where there is one: of each model,
    world and data one.
    """
    measured = first_of_each([record for record in records if record.metrics_before], records)
    rows = [*map(before_of, measured), *records]
    rhos: dict[tuple[object, ...], set[float | None]] = {}
    for record in records:
        if record.attack != "none":
            rhos.setdefault(start_of(record), set()).add(record.rho)
    return [
        _without_reward(row)
        if row.attack == "none" and len(rhos.get(start_of(row), ())) > 1
        else row
        for row in rows
    ]


def _without_reward(record: Record) -> Record:
    """Return a record without the score by a reward model that is that of one rho among several."""
    metrics = {name: found for name, found in record.metrics.items() if name != "reward"}
    return replace(record, metrics=metrics)


def first_of_each(measured: Sequence[Record], among: Sequence[Record]) -> list[Record]:
    """Return an attacked record of each start that was not measured on its own.

    What a run with an offline defence measured before its attack is the hardened model, not the
    start. One that knows the reward of the start is preferred (not every attack has a reward
    model), then an undefended one.

    Args:
        measured: Records that know of the model before their attack.
        among: All records; a model that was not attacked is known already.
    """
    # Plug-ins load torch.
    from rpa_ray.defences import OFFLINE_DEFENCES

    known = {start_of(r) for r in among if r.attack == "none" and r.defence == "none"}
    found: dict[tuple[object, ...], Record] = {}
    for record in sorted(measured, key=_preference):
        is_hardened = not OFFLINE_DEFENCES.keys().isdisjoint(record.defence.split("+"))
        if record.attack != "none" and not is_hardened and start_of(record) not in known:
            found.setdefault(start_of(record), record)
    return list(found.values())


def _preference(record: Record) -> tuple[bool, bool]:
    return REWARD not in (record.metrics_before or {}), record.defence != "none"


def before_of(record: Record) -> Record:
    """Return what an attacked record says of the model before its attack, as a record."""
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
