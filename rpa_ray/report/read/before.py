"""The model before an attack, from what the attack's own run measured of it."""

from collections.abc import Sequence
from dataclasses import replace

from rpa_ray.report.read.labels import params_text
from rpa_ray.report.read.records import Record
from rpa_ray.report.read.starts import SETTING_PARAMS, start_of

REWARD = "reward"
"""Mean score by the attacker's reward model."""


def with_before(records: Sequence[Record]) -> list[Record]:
    """Return the records, and one of each model before its attack where none is among them.

    It is what a run measured before it began, an undefended one where there is one: of each model,
    world and data one, and one of each hardening of it.
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
    """Return an attacked record of each model that was not measured on its own.

    What a run with an offline defence measured before its attack is the hardened model, not the
    start. One that knows the reward of the model is preferred (not every attack has a reward
    model), then an undefended one.

    Args:
        measured: Records that know of the model before their attack.
        among: All records; a model that was not attacked is known already.
    """
    known = {model_of(record) for record in among if record.attack == "none"}
    found: dict[tuple[object, ...], Record] = {}
    for record in sorted(measured, key=_preference):
        if record.attack != "none" and model_of(record) not in known:
            found.setdefault(model_of(record), record)
    return sorted(found.values(), key=lambda record: _hardening_of(record)[0] != "none")


def _preference(record: Record) -> tuple[bool, bool]:
    return REWARD not in (record.metrics_before or {}), record.defence != "none"


def model_of(record: Record) -> tuple[object, ...]:
    """Return what tells the model that an attack begins with from others."""
    defence, params = _hardening_of(record)
    return start_of(record), defence, params_text(params)


def _hardening_of(record: Record) -> tuple[str, dict[str, object]]:
    """Return the offline parts of a defence with their parameters; "none" where there are none."""
    # Plug-ins load torch.
    from rpa_ray.defences import OFFLINE_DEFENCES

    parts = record.defence.split("+")
    offline = [part for part in parts if part in OFFLINE_DEFENCES]
    own = {key: value for key, value in record.params.items() if key.startswith("defence.")}
    if offline != parts:
        prefixes = [f"defence.{part}." for part in offline]
        own = {
            # Of a single part parameters are told without its name.
            key if len(offline) > 1 else f"defence.{key.removeprefix(prefix)}": value
            for key, value in own.items()
            for prefix in prefixes
            if key.startswith(prefix)
        }
    return "+".join(offline) or "none", own


def before_of(record: Record) -> Record:
    """Return what an attacked record says of the model before its attack, as a record."""
    defence, params = _hardening_of(record)
    setting = {k: v for k, v in record.params.items() if k.startswith(SETTING_PARAMS)}
    return replace(
        record,
        attack="none",
        defence=defence,
        rho=None,
        num_samples=None,
        status="ok",
        step_failed=None,
        run=None,
        weights_sha256=None,
        params=setting | params,
        metrics=record.metrics_before or {},
        metrics_before=None,
    )
