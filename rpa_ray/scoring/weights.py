"""Whether a model that was loaded has all of its weights: others are drawn at random."""

from collections.abc import Collection
from pathlib import Path


def require_every_weight(path: Path | str, missing: Collection[str]) -> None:
    """Refuse a model that transformers found weights missing from.

    Args:
        path: Its folder.
        missing: Names of weights that the model should have read from it.

    Raises:
        ValueError: There is one.
    """
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"{path} must hold every weight of its model, got none for {shown} "
            f"({len(missing)} in all). They would be drawn at random: save the model again."
        )
