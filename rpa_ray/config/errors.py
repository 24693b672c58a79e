"""The one error a user's configuration can cause."""

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
