"""The models of the default world that come with the package, so that nobody has to train them."""

import hashlib
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rpa_ray.config import ConfigError
from rpa_ray.run_folder.files import whole_folder

SHIPPED = Path(__file__).parent / "shipped_models"
"""A folder a model, named as in a cache: by what it is and the key of its recipe."""
INDEX = "index.json"
"""Beside them: to which world and tokenizer they belong, what made them, and their SHA-256."""


def place_shipped(
    world: Path, cache: Path, names: Collection[str], shipped: Path = SHIPPED
) -> list[str]:
    """Copy those of a world's models that come with the package into the cache.

    None are copied where the world or its tokenizer is another than that of the models: what is
    missing in the cache is made then. Two of them learned to prefer unsafe answers: nobody gets
    a model that he did not name.

    Args:
        world: Folder of a world that is built.
        cache: Where its models are looked for, by the key of their recipe.
        names: Of the models that are needed, as in the cache.
        shipped: Folder of the models.

    Returns:
        The names of those that were not in the cache.

    Raises:
        ConfigError: A file is not the one that was shipped.
    """
    index = _index(shipped)
    if index.get("world") != world.name:
        return []
    tokenizer = world / "tokenizer"
    if _sha256(tokenizer / "tokenizer.json") != index["tokenizer_sha256"]:
        return []
    new = [n for n in index["models"] if n in names and not (cache / n).exists()]
    for name in new:
        _place(shipped / name, index["models"][name], tokenizer, cache / name)
    return new


def _place(source: Path, digests: dict[str, str], tokenizer: Path, folder: Path) -> None:
    """Copy a model, with the tokenizer of its world, into a folder that appears all at once."""
    with whole_folder(folder) as unfinished:
        for name, digest in digests.items():
            shutil.copyfile(source / name, unfinished / name)
            found = _sha256(unfinished / name)
            if found != digest:
                raise ConfigError(
                    str(source / name),
                    f"be the file that was shipped, of SHA-256 {digest[:12]}...",
                    f"{found[:12]}...",
                    "Install rpa_ray again.",
                )
        for file in tokenizer.iterdir():
            shutil.copyfile(file, unfinished / file.name)


def _index(shipped: Path) -> dict[str, Any]:
    path = shipped / INDEX
    index: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return index


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
