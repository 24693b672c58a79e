"""Models that judge a (prompt, answer) pair of texts with one number, behind one protocol."""

from collections.abc import Sequence
from typing import Protocol


class Scorer(Protocol):
    """Gives one number to each pair of texts; it reads text, never the policy's token ids."""

    def score(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """Return one score for each (prompt, answer) pair, in their order.

        A score does not depend on the other pairs, their order or their lengths.
        """
        ...
