"""The error that a user's data can cause, and what it says of the error below it."""

from typing import Self


class DataError(ValueError):
    """Data that cannot be used: names where it comes from, the rule, what is there, the remedy."""

    @classmethod
    def broken_rule(cls, key: str, rule: str, got: object, remedy: str) -> Self:
        """Return the error for the config path ``key``; ``got`` is printed as it is."""
        return cls(f"{key} must {rule}, got {got}. {remedy}")


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, cut to 200 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:200]
