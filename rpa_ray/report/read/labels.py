"""How rows are called: parameters that tell them apart, and those that a defence's rows share."""

from collections import Counter
from collections.abc import Mapping, Sequence

MAX_LABEL = 60
"""Characters of parameters above which what all rows of a defence share is told once."""
DEFENCE = "defence."


def params_text(params: Mapping[str, object], among: Mapping[str, object] | None = None) -> str:
    """Return the parameters with the shortest key that is still unique, among others too."""
    last_parts = Counter(key.rpartition(".")[2] for key in among or params)
    short = {key: key.rpartition(".")[2] for key in params}
    return ", ".join(
        f"{short[key] if last_parts[short[key]] == 1 else key}={_value_text(value)}"
        for key, value in sorted(params.items())
    )


def label_params(rows: Sequence[tuple[str, Mapping[str, object]]]) -> list[tuple[str, str]]:
    """Return the parameters that the label of each row tells, and those that it leaves to a note.

    Left out are parameters of a defence that all rows of it share, where a label of it would be
    long.

    Args:
        rows: Of a table, the defence and the parameters of each.
    """
    shared = {defence: _shared(defence, rows) for defence, _ in rows}
    return [
        (
            params_text({k: v for k, v in params.items() if k not in shared[defence]}, params),
            params_text(shared[defence], params),
        )
        for defence, params in rows
    ]


def _shared(defence: str, rows: Sequence[tuple[str, Mapping[str, object]]]) -> Mapping[str, object]:
    held = [params for name, params in rows if name == defence]
    if max(len(params_text(params)) for params in held) <= MAX_LABEL:
        return {}
    return {
        key: value
        for key, value in held[0].items()
        if key.startswith(DEFENCE) and all(key in p and p[key] == value for p in held)
    }


def _value_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
