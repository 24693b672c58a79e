"""Whether the files of a model folder are there and whole, told from their headers alone."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from rpa_ray.config import ConfigError
from rpa_ray.data.errors import last_line
from rpa_ray.data.hub_model import MODEL_FILES

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The files that transformers looks for, in this order."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    INDEX,
)
_LFS_POINTER = b"version https://git-lfs"
_DTYPES = {"F64", "F32", "F16", "BF16"}
"""What weights are stored in that are not quantised, as safetensors names it."""
_SAVE_AGAIN = "Save the model again, its weights as safetensors."


class StoredWeight(NamedTuple):
    """What a header says of one weight."""

    dtype: str
    """As safetensors names it: ``F32``, ``BF16``, ..."""
    shape: tuple[int, ...]


def check_files(folder: Path, key: str) -> None:
    """Refuse a folder that is no whole model in plain weights; no weight is read.

    Raises:
        ConfigError: with the file, what is wrong with it and what to do.
    """
    _refuse_adapter(folder, key)
    _refuse_endless(folder, key)
    read_json_object(
        folder / "config.json", key, "be a model folder with a config.json that can be read"
    )
    _refuse_pointers(folder, key)
    for name in JSON_FILES:
        if (folder / name).is_file():
            read_json_object(folder / name, key, f"be a model folder with a {name} to read")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        refuse_quantised(f"quantization_config in {folder / 'config.json'}", key)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        rule = f"hold a tokenizer ({', '.join(TOKENIZER_FILES)})"
        raise ConfigError(key, rule, str(folder), _SAVE_AGAIN)


def stored_weights(folder: Path, key: str) -> dict[str, StoredWeight]:
    """Return what the weight files of a folder hold, by name, from their headers.

    Raises:
        ConfigError: a file is missing, torn, or holds quantised weights.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, StoredWeight] = {}
    for file in _weight_files(folder, key):
        try:
            with safe_open(file, framework="np") as weights:
                for name in weights.keys():  # noqa: SIM118  (the handle is no mapping)
                    part = weights.get_slice(name)
                    found[name] = StoredWeight(part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                key,
                "hold whole weight files",
                f"{file}, {file.stat().st_size:,} bytes: {last_line(error)}",
                "Download or copy the file again.",
            ) from error
    for name, weight in found.items():
        if name.endswith("weight") and weight.dtype not in _DTYPES:
            refuse_quantised(f"{name} in {weight.dtype} in {folder}", key)
    return found


def refuse_quantised(what: str, key: str) -> None:
    """Refuse weights that are stored in fewer bits than are trained.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        key,
        "hold weights that are not quantised",
        what,
        "Name the model that it was made from: quantised weights cannot be trained or pushed.",
    )


def read_json_object(path: Path, key: str, rule: str) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        ConfigError: with the rule that is broken.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problem = f"{error.strerror}"
    except (ValueError, RecursionError) as error:  # broken JSON, too deep, or not UTF-8
        problem = f"{error}"
    else:
        if isinstance(found, dict):
            return found
        problem = "it holds something else"
    raise ConfigError(key, rule, str(path), f"{problem}: check the file.")


def _weight_files(folder: Path, key: str) -> list[Path]:
    """Return the files that transformers reads the weights from."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        remedy = _SAVE_AGAIN
        if any(folder.glob("*.bin")):
            remedy = (
                "Pickles (*.bin) are not read, for they can run code. Convert them where you trust "
                "their origin: load the folder with from_pretrained of transformers and write it "
                "with save_pretrained."
            )
        rule = f"hold weights ({WEIGHTS}, or {INDEX} and its shards)"
        raise ConfigError(key, rule, str(folder), remedy)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    shard_of = index.get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(s, str) for s in shard_of.values()):
        rule = f"have an {INDEX} that names the shard of every weight"
        raise ConfigError(key, rule, str(folder / INDEX), _SAVE_AGAIN)
    shards = sorted(set(shard_of.values()))
    foreign = [shard for shard in shards if Path(shard).name != shard]
    if foreign:
        rule = f"have an {INDEX} that names files beside it"
        raise ConfigError(key, rule, foreign[0], _SAVE_AGAIN)
    lost = [shard for shard in shards if not (folder / shard).is_file()]
    if lost:
        raise ConfigError(
            key,
            f"hold all {len(shards)} shards that {INDEX} names",
            f"{folder} without {', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}",
            "Download or copy what is missing.",
        )
    return [folder / shard for shard in shards]


def _refuse_adapter(folder: Path, key: str) -> None:
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            key,
            "be a whole model, not a LoRA adapter",
            f"{folder} with an adapter_config.json",
            "Merge it: AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload(), then "
            "save_pretrained of model and tokenizer.",
        )


def _refuse_endless(folder: Path, key: str) -> None:
    """Refuse what is neither file nor folder: to read it may never end."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ConfigError(
                key,
                "hold files, and no pipes, sockets or devices",
                str(path),
                "Remove it, or put the file in its place.",
            )


def _refuse_pointers(folder: Path, key: str) -> None:
    """Refuse what `git clone` leaves in place of large files where git-lfs is not installed."""
    files = (file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file())
    for file in sorted(files):
        with file.open("rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ConfigError(
                    key,
                    "hold its files, not pointers of Git LFS",
                    str(file),
                    "Run `git lfs pull` in the folder, or download the model with `hf download`.",
                )
