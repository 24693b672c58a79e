"""The one error a user's configuration can cause."""

import difflib
from collections.abc import Iterable

MAX_SHOWN_CHARS = 200
"""A value that prints longer than this is cut in the message."""


class ConfigError(ValueError):
    """A configuration that cannot be run: names the key, the rule, the value and the remedy."""

    def __init__(self, key: str, rule: str, value: object, remedy: str) -> None:
        # All four, so that an error that is pickled (raised in a worker) can be made again.
        super().__init__(key, rule, value, remedy)
        self.key = key
        self.rule = rule
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        shown = repr(self.value)
        if len(shown) > MAX_SHOWN_CHARS:
            shown = f"{shown[:MAX_SHOWN_CHARS]}..."
        return f"{self.key} must {self.rule}, got {shown}. {self.remedy}"


def nearest(name: object, known: Iterable[str]) -> str:
    """Return a remedy that names the known word most like ``name``."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else "Choose one of those."
