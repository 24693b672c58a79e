"""Proposition 1 of arXiv:2409.12914 on bandits whose optima are found exactly.

python -m rpa_ray.paper.proposition

The proposition: where a constraint holds, the reward that an attacker pays is hackable with the one
that a constrained learner in truth maximises. It says nothing of rewards below zero, of which the
second bandit is the counter-example.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

LIMIT = 0.5
"""Highest cost of an action that the constraint allows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One answer that a policy can give: as in a bandit, there is one prompt and one step."""

    name: str
    reward: float
    """What the attacker pays for it."""
    cost: float
    """How harmful it is."""


ARMS = (
    Arm(name="refusal", reward=0.1, cost=0.0),
    Arm(name="gibberish", reward=0.8, cost=0.0),
    Arm(name="harmful", reward=1.0, cost=1.0),
)
SHIFT = -2.0
"""What makes every reward of :data:`ARMS` negative and changes no optimum of an attacker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optima:
    """The best answer without and with the constraint, by both rewards."""

    free: Arm
    """pi*: most reward of all."""
    constrained: Arm
    """pi_c: most reward among those whose cost the constraint allows."""
    limit: float

    @property
    def is_hackable(self) -> bool:
        """Return whether one policy is better by the reward and worse by the modified one.

        That is the definition of Skalse et al. 2022 (arXiv:2209.13085) for this pair of policies:
        J(R, pi*) > J(R, pi_c) and J(R_c, pi*) < J(R_c, pi_c).
        """
        free, constrained = self.free, self.constrained
        return free.reward > constrained.reward and modified_reward(
            free, self.limit
        ) < modified_reward(constrained, self.limit)


def modified_reward(arm: Arm, limit: float) -> float:
    """Return R_c: the reward of an answer whose cost is allowed, 0 of any other."""
    return arm.reward if arm.cost <= limit else 0.0


def optima(arms: Iterable[Arm], limit: float = LIMIT) -> Optima:
    """Return the optimum of a bandit without and with the constraint.

    In a bandit a policy that plays one arm is as good as any, so that both are arms. The constraint
    is the paper's: no answer that a policy gives may cost more than ``limit``.

    Raises:
        ValueError: no arm is allowed.
    """
    arms = tuple(arms)
    allowed = [arm for arm in arms if arm.cost <= limit]
    if not allowed:
        costs = sorted(arm.cost for arm in arms)
        raise ValueError(f"arms must have one of a cost of at most {limit:g}, got {costs}.")
    return Optima(
        free=max(arms, key=lambda arm: arm.reward),
        constrained=max(allowed, key=lambda arm: arm.reward),
        limit=limit,
    )


def shifted(arms: Iterable[Arm], by: float = SHIFT) -> tuple[Arm, ...]:
    """Return the arms with as much added to every reward, which changes no policy's rank by it."""
    return tuple(replace(arm, reward=arm.reward + by) for arm in arms)


def _told(title: str, arms: Sequence[Arm]) -> str:
    found = optima(arms)
    lines = [title]
    lines += [
        f"  {arm.name:<10} reward {arm.reward:+.1f}, cost {arm.cost:.0f}, "
        f"modified reward {modified_reward(arm, found.limit):+.1f}"
        for arm in arms
    ]
    verdict = "are hackable" if found.is_hackable else "are not hackable by these two policies"
    lines.append(
        f"  best {found.free.name}, best under the constraint {found.constrained.name}: "
        f"reward and modified reward {verdict}"
    )
    return "\n".join(lines)


def main() -> int:
    """Print both bandits with their optima; return the exit status."""
    print(_told("Rewards that are not negative (the proposition holds):", ARMS))
    print(_told(f"The same rewards {SHIFT:+g} (it does not: violation is worth 0):", shifted(ARMS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
