"""From the rows of a data set to pairs of a better and a worse answer, and to prompts."""

from collections.abc import Iterable, Sequence

from rpa_ray.data.errors import DataError
from rpa_ray.data.formats import FORMATS
from rpa_ray.data.order import digest, normalise
from rpa_ray.data.rows import SafePair
from rpa_ray.data.schema import Format, RestrictedPrompt, Row, TwoAnswers


def safe_pairs(name: str, rows: Sequence[Row], *, all_pairs: bool = False) -> list[SafePair]:
    """Return the pairs of one safe and one unsafe answer in the rows, in order of appearance.

    Repeated pairs count once, and two equal answers are no pair.

    Args:
        name: A key of :data:`FORMATS`.
        rows: Checked rows of that format.
        all_pairs: Take both safe and both unsafe answers too where the rows say which is safer.

    Raises:
        DataError: Another name.
    """
    found = _format(name)
    pairing = found.all_pairs if all_pairs and found.all_pairs is not None else found.pairs
    return _distinct_pairs(name, pairing(rows))


def answered(
    name: str,
    *,
    prompt: str,
    safe: str,
    unsafe: str,
    category: str | None,
    target: str | None = None,
) -> SafePair:
    """Return the pair of two answers in a data set of this name."""
    return SafePair(
        id=digest(name, prompt, safe, unsafe)[:24],
        prompt=prompt,
        safe=safe,
        unsafe=unsafe,
        category=category,
        target=target,
    )


def unanswered_pairs(name: str, rows: Sequence[Row]) -> list[SafePair]:
    """Return one pair an unsafe answer in the rows; its safe answer, yet to be written, is empty.

    An answer that is labelled both safe and unsafe is left out.

    Raises:
        DataError: The name is of no format, or of a harmless task.
    """
    unanswered = _format(name).unanswered
    if unanswered is None:
        raise DataError.broken_rule(
            "data.name", "be no harmless task", repr(name), "It has no unsafe answers."
        )
    return _distinct_pairs(name, unanswered(rows))


def restricted_prompts(name: str, rows: Sequence[Row]) -> list[RestrictedPrompt]:
    """Return the prompt of every row that has an unsafe answer, in order, repeats included.

    Raises:
        DataError: The name is of no format.
    """
    return _format(name).restricted_prompts(rows)


def distinct(prompts: Iterable[str]) -> list[str]:
    """Return the prompts that differ, each where it stands first."""
    found: dict[str, str] = {}
    for prompt in prompts:
        found.setdefault(normalise(prompt), prompt)
    return list(found.values())


def _distinct_pairs(name: str, found: Iterable[TwoAnswers]) -> list[SafePair]:
    pairs = (answered(name, **two._asdict()) for two in found)
    return list({pair.id: pair for pair in pairs}.values())


def _format(name: str) -> Format:
    if name in FORMATS:
        return FORMATS[name]
    *names, last = FORMATS
    raise DataError.broken_rule(
        "data.name",
        f"be {', '.join(names)} or {last}",
        repr(name),
        "Only these have pairs of a better and a worse answer.",
    )
