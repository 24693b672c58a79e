"""The one error a user's configuration can cause."""


class ConfigError(ValueError):
    """A configuration that cannot be run: names the key, the rule, the value and the remedy."""

    def __init__(self, key: str, rule: str, value: object, remedy: str) -> None:
        super().__init__(f"{key} must {rule}, got {value!r}. {remedy}")
        self.key = key
