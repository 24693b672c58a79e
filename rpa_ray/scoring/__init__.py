"""What judges a (prompt, answer) pair of texts: models and rules, behind one protocol.

Runs in: scoring workers; the rules also on learner ranks.
Imports: transformers where a model is loaded.
Called by: `actors`, `evaluation`, `jobs`.
"""

from collections.abc import Sequence
from typing import Protocol


class Scorer(Protocol):
    """Gives one number to each pair of texts; it reads text, never the policy's token ids."""

    def score(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """Return one score for each (prompt, answer) pair, in their order.

        A score does not depend on the other pairs, their order or their lengths.
        """
        ...
