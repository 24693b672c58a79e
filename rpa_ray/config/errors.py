"""The one error a user's configuration can cause."""

import difflib
from collections.abc import Iterable, Iterator, Mapping

MAX_SHOWN_CHARS = 200
"""A value that prints longer than this is cut in the message."""
NOT_NEAR = "Choose one of those."
"""The remedy where a name is like none that is known."""


class ConfigError(ValueError):
    """A configuration that cannot be run: names the key, the rule, the value and the remedy.

    ``fitting`` holds the setting, by its config path, under which it could be, where one is known.
    """

    def __init__(
        self,
        key: str,
        rule: str,
        value: object,
        remedy: str,
        *,
        fitting: Mapping[str, object] | None = None,
    ) -> None:
        # All four, so that an error that is pickled (raised in a worker) can be made again.
        super().__init__(key, rule, value, remedy)
        self.key = key
        self.rule = rule
        self.value = value
        self.remedy = remedy
        self.fitting = fitting or {}

    def __str__(self) -> str:
        key = self.key or repr(self.key)
        return f"{key} must {self.rule}, got {short(self.value)}. {self.remedy}"


def short(value: object) -> str:
    """Return a value as Python writes it, cut; no more of it is read than is shown.

    Aliases of YAML make values of some lines that would be written in gigabytes.
    """
    text = ""
    for part in _parts(value):
        text += part
        if len(text) > MAX_SHOWN_CHARS:
            return f"{text[:MAX_SHOWN_CHARS]}..."
    return text


def _parts(value: object) -> Iterator[str]:
    """Yield what a value is written as, piece by piece."""
    if isinstance(value, Mapping):
        yield "{"
        for place, (key, inner) in enumerate(value.items()):
            yield ", " if place else ""
            yield from _parts(key)
            yield ": "
            yield from _parts(inner)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "[" if isinstance(value, list) else "("
        for place, inner in enumerate(value):
            yield ", " if place else ""
            yield from _parts(inner)
        yield "]" if isinstance(value, list) else ",)" if len(value) == 1 else ")"
    elif isinstance(value, str):
        yield repr(value[: MAX_SHOWN_CHARS + 1])
    else:
        try:
            yield repr(value)
        except ValueError:  # an integer of more digits than Python writes
            yield f"a large {type(value).__name__}"


def nearest_words(name: object, known: Iterable[str], *, cutoff: float = 0.5) -> list[str]:
    """Return the known word most like ``name``, in whatever case, or none that is so like it."""
    of_lower = {word.lower(): word for word in known}
    asked = name.lower() if isinstance(name, str) else ""
    return [of_lower[w] for w in difflib.get_close_matches(asked, of_lower, n=1, cutoff=cutoff)]


def nearest(name: object, known: Iterable[str]) -> str:
    """Return a remedy that names the known word most like ``name``."""
    close = nearest_words(name, known)
    return f"Did you mean {close[0]!r}?" if close else NOT_NEAR
