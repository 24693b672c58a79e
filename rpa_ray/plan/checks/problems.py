"""What is wrong with a config, collected: each thing once, in the order in which to mend it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rpa_ray.config import ConfigError
from rpa_ray.data.errors import DataError

MAX_SHOWN = 12
"""Further things are counted: they may follow from those before."""


class Refused(ValueError):
    """Several things have to change before anything can be started; each has its own line."""


class Problems:
    """Errors of the checks of all cells.

    Args:
        passes_over: Says of an error whether what it is about can be done without.
    """

    def __init__(
        self, passes_over: Callable[[ConfigError | DataError], bool] = lambda error: False
    ) -> None:
        self._passes_over = passes_over
        self._found: dict[str, tuple[ConfigError | DataError, list[str]]] = {}
        self._fitting: dict[str, Any] = {}

    @property
    def num_noted(self) -> int:
        """Return how many errors were noted, of whichever cells."""
        return sum(len(wheres) for _, wheres in self._found.values())

    @contextmanager
    def noted(self, where: str = "") -> Iterator[None]:
        """Keep the error that a check raises; its keys have no prefix, which ``where`` is."""
        try:
            yield
        except (ConfigError, DataError) as error:
            self.note(error, where)

    def note(self, error: ConfigError | DataError, where: str = "") -> None:
        """Keep an error of a cell; the same of another cell is counted."""
        if self._passes_over(error):
            return
        self._found.setdefault(str(error), (error, []))[1].append(where)

    def note_fitting(
        self, error: ConfigError | DataError | None, where: str, key: str, value: Any
    ) -> None:
        """Keep what fits in place of a setting, and the error if none of it was kept yet."""
        if error is not None:
            self.note(error, where)
        known = self._fitting.get(key, value)
        self._fitting[key] = min(known, value) if isinstance(value, int) else value

    def refuse(self) -> None:
        """Return where nothing was found.

        Raises:
            ConfigError: one thing, in the config.
            DataError: one thing, in the data.
            Refused: several.
        """
        found = [_prefixed(error, wheres[0]) for error, wheres in self._found.values()]
        if len(found) == 1 and not self._fitting:
            raise found[0]
        if not found:
            return
        texts = [str(error) for error in found]
        others = [len(wheres) - 1 for _, wheres in self._found.values()]
        lines = [
            f"{number}. {text}" + f" So in {other} more cells." * (other > 0)
            for number, (text, other) in enumerate(zip(texts, others, strict=True), 1)
        ][:MAX_SHOWN]
        if len(found) > MAX_SHOWN:
            lines.append(f"... and {len(found) - MAX_SHOWN} more")
        if self._fitting:
            words = " ".join(f"--set {key}={value}" for key, value in self._fitting.items())
            if len(found) == 1:
                raise DataError(f"{texts[0]} What fits the data: {words}")
            lines.append(f"This fits the data: {words}")
        raise Refused("\n".join([f"{len(found)} things must change first:", *lines]))


def _prefixed(error: ConfigError | DataError, where: str) -> ConfigError | DataError:
    if isinstance(error, ConfigError):
        return ConfigError(f"{where}{error.key}", error.rule, error.value, error.remedy)
    return DataError(f"{where}{error}")
