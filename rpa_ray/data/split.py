"""Which rows serve which purpose: disjoint by prompt, the same on every machine and for every seed.

A role hangs on the normalised prompt alone, so a prompt that two data sets share has one role.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from rpa_ray.data.errors import DataError
from rpa_ray.data.order import RowT, digest_of_rows, hash_order, normalise, unit_interval
from rpa_ray.data.rows import SafePair

ROLE_SHARES: Mapping[str, float] = {
    "attack": 0.6,
    "reward_model": 0.15,
    "defence": 0.07,
    "classifier": 0.18,
}
"""Shares of the training prompts; they sum to 1."""

ROLES = (*ROLE_SHARES, "evaluation", "validation")
"""Every purpose; the last two share the held-out prompts: settings are chosen on ``validation``,
and what is reported is ``evaluation``."""

VALIDATION_SHARE = 0.25
"""Share of a real test split's prompts that are ``validation``."""

HELD_OUT_SHARE = 0.1
"""Share of prompts that are the test split of a data set that comes as a single file."""

JUDGE_HALVES: Mapping[str, int] = {"judge": 1, "second_judge": 0}
"""Half of the prompts of ``classifier`` that each judge learns from: none is in both."""


def roles_fingerprint() -> str:
    """Return a short hash of the shares: models trained on one role's rows depend on them."""
    text = ",".join(f"{role}:{share}" for role, share in ROLE_SHARES.items())
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class HasPrompt(Protocol):
    """A record about one prompt."""

    @property
    def id(self) -> str:
        """The stable id."""
        ...

    @property
    def prompt(self) -> str:
        """The bare prompt."""
        ...


class HasCategory(Protocol):
    """A record with a harm category."""

    @property
    def category(self) -> str | None:
        """The first harm category of the unsafe answer; None where the data set names none."""
        ...


CategorisedT = TypeVar("CategorisedT", bound=HasCategory)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleManifest:
    """What a run folder records about the rows of one role."""

    num_rows: int
    num_prompts: int
    """Distinct normalised prompts."""
    sha256: str
    """Hash of the sorted row ids; ids are hashes of the content."""


def role_of(prompt: str) -> str:
    """Return the role of a training prompt: one of the keys of :data:`ROLE_SHARES`."""
    position = unit_interval("role", normalise(prompt))
    *roles, last = ROLE_SHARES
    for role in roles:
        position -= ROLE_SHARES[role]
        if position < 0:
            return role
    return last


def is_held_out(prompt: str) -> bool:
    """Return True where the prompt belongs to the test split of a single-file data set."""
    return unit_interval("held-out", normalise(prompt)) < HELD_OUT_SHARE


def is_validation(prompt: str) -> bool:
    """Return True where a prompt of a real test split belongs to ``validation``."""
    return unit_interval("validation", normalise(prompt)) < VALIDATION_SHARE


def by_role(
    train: Sequence[SafePair],
    evaluation: Sequence[SafePair],
    evaluation_prompts: Iterable[str] = (),
    *,
    validation: Sequence[SafePair] = (),
) -> dict[str, tuple[SafePair, ...]]:
    """Return the pairs of every role, in input order; no two roles share a prompt.

    Args:
        train: Pairs to divide. Those whose prompt is also an evaluation prompt are left out: their
            number is ``len(train)`` less the rows of the training roles.
        evaluation: The pairs of the role ``evaluation``.
        evaluation_prompts: Prompts that are held out beyond those of the held-out pairs.
        validation: The pairs of the role ``validation``.
    """
    held_out = {normalise(pair.prompt) for pair in (*evaluation, *validation)}
    held_out |= {normalise(prompt) for prompt in evaluation_prompts}
    roles: dict[str, list[SafePair]] = {role: [] for role in ROLE_SHARES}
    for pair in train:
        if normalise(pair.prompt) not in held_out:
            roles[role_of(pair.prompt)].append(pair)
    held_out_roles = {"evaluation": tuple(evaluation), "validation": tuple(validation)}
    return {role: tuple(rows) for role, rows in roles.items()} | held_out_roles


def half_of(pairs: Sequence[SafePair], half: int) -> list[SafePair]:
    """Return the pairs of one half of the prompts, 0 or 1; no prompt is in both."""
    return [
        pair
        for pair in pairs
        if int(unit_interval("judge", normalise(pair.prompt)) * len(JUDGE_HALVES)) == half
    ]


def manifest(roles: Mapping[str, Sequence[HasPrompt]]) -> dict[str, RoleManifest]:
    """Return size and hash of every role."""
    return {
        role: RoleManifest(
            num_rows=len(rows),
            num_prompts=len({normalise(row.prompt) for row in rows}),
            sha256=digest_of_rows(rows),
        )
        for role, rows in roles.items()
    }


def of_domains(
    rows: Sequence[CategorisedT], domains: Collection[str] | None, *, key: str
) -> Sequence[CategorisedT]:
    """Return the rows of these harm categories, in their order; None takes all.

    Raises:
        DataError: No row is of a category; ``key`` is the config path named.
    """
    if domains is None:
        return rows
    known = {row.category for row in rows if row.category is not None}
    if unknown := sorted(set(domains) - known):
        raise DataError.broken_rule(
            key,
            f"be harm categories of the data ({', '.join(sorted(known)) or 'which name none'})",
            ", ".join(unknown),
            "Name others, or leave it out.",
        )
    return [row for row in rows if row.category in domains]


def draw(rows: Sequence[RowT], num: int, *, seed: int, role: str, key: str) -> list[RowT]:
    """Return ``num`` rows in a random order fixed by (seed, role, id).

    A larger draw begins with every smaller one, so attacks of different sizes are nested.

    Raises:
        DataError: More rows are asked for than there are; ``key`` is the config path named.
    """
    require_rows(key, num, num_rows=len(rows), what=f"the rows of role {role!r}")
    return hash_order(rows, purpose=f"draw:{role}", seed=seed, num=num)


def require_rows(key: str, num: int, *, num_rows: int, what: str) -> None:
    """Refuse to take more rows than there are.

    Args:
        key: The config path that asks for them, which an error names.
        num: Rows that are asked for.
        num_rows: Rows that there are.
        what: Those in words.

    Raises:
        DataError: More are asked for.
    """
    if num > num_rows:
        raise DataError.broken_rule(
            key,
            f"be at most {num_rows} ({what})",
            num,
            "Lower it or bring a larger data set.",
            fitting={key: num_rows},
        )
