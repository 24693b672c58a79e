"""Checks that the engines were given the weights that were meant, by their bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rpa_ray.actors.pools import RolloutPool


class ServedWeightsError(RuntimeError):
    """An engine received other weights than were meant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DigestReport:
    """Names of weights by what is wrong with them; all empty where nothing is."""

    missing: tuple[str, ...]
    """Meant but not received."""
    unexpected: tuple[str, ...]
    """Received but not meant."""
    different: tuple[str, ...]
    """Received with other bytes."""

    @property
    def ok(self) -> bool:
        """True where exactly the meant weights were received."""
        return not (self.missing or self.unexpected or self.different)


def compare_digests(expected: Mapping[str, str], received: Mapping[str, str]) -> DigestReport:
    """Return what differs between the digests of the meant and of the received weights."""
    both = expected.keys() & received.keys()
    return DigestReport(
        missing=tuple(sorted(expected.keys() - received.keys())),
        unexpected=tuple(sorted(received.keys() - expected.keys())),
        different=tuple(sorted(name for name in both if expected[name] != received[name])),
    )


def verify_served(*, pool: RolloutPool, expected: Mapping[str, str]) -> None:
    """Check every engine's last push against the digests of the meant weights.

    The push must have recorded digests. Take ``expected`` from the trained module or its
    checkpoint, not from what the push sent, or a fault of the push hides itself.

    Raises:
        ServedWeightsError: If an engine received other weights, or recorded nothing.
    """
    for name, received in pool.digests().items():
        report = compare_digests(expected, received)
        if not report.ok:
            raise ServedWeightsError(
                f"{name} must have received the policy's {len(expected)} weights, got "
                f"{_listing('missing', report.missing)}, "
                f"{_listing('unexpected', report.unexpected)}, "
                f"{_listing('different', report.different)}. "
                "Check the names, the weight filter and the gather of the weight source."
            )


def _listing(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
