"""Builds the folder of an embedded world: tokenizer, oracle and data sets, once per seed."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rpa_ray.data.template import PLAIN_QA_ANSWERED
from rpa_ray.run_folder.files import whole_file, whole_folder
from rpa_ray.world import tables
from rpa_ray.world.language import WORLD_VERSION, World
from rpa_ray.world.oracle import Oracle
from rpa_ray.world.summaries import tldr
from rpa_ray.world.tokenizer import save_tokenizer, train_tokenizer

CONTEXT_TOKENS = 128
"""Positions of the embedded models; the longest prompt with its answer needs about 80."""

VALIDATION = {
    "beavertails": tables.beavertails_validation,
    "safe_rlhf": tables.safe_rlhf_validation,
    "helpful": tables.helpful_validation,
}
"""The data sets that have rows for validation."""


def world_folder(seed: int, cache: Path) -> Path:
    """Return where the world of `seed` lies in `cache`, built or not."""
    fingerprint = hashlib.sha256(f"{WORLD_VERSION}/{seed}".encode()).hexdigest()[:12]
    return cache / f"world-{fingerprint}"


def build_world(seed: int, cache: Path) -> Path:
    """Write the world of `seed` unless it is there, and return its folder.

    The folder holds `tokenizer/`, `world.json` (the oracle's) and `data/<set>/<split>.parquet`. It
    appears all at once: a killed build leaves no half of it under its name.
    """
    folder = world_folder(seed, cache)
    if folder.exists():
        _add_validation(seed, folder)
        return folder
    with whole_folder(folder) as unfinished:
        _write_world(World(seed), unfinished)
    return folder


def make_tables(world: World) -> dict[str, pa.Table]:
    """Return every data set of a world, keyed by "<set>/<split>"."""
    data_sets = {
        "beavertails": tables.beavertails,
        "safe_rlhf": tables.safe_rlhf,
        "helpful": tables.helpful,
        "tldr": tldr,
    }
    made = {}
    for name, make in data_sets.items():
        made[f"{name}/train"] = make(world, is_test=False)
        made[f"{name}/test"] = make(world, is_test=True)
    made |= {f"{name}/validation": make(world) for name, make in VALIDATION.items()}
    made["pretraining/train"] = tables.pretraining(world)
    made["alignment/train"] = tables.alignment(world)
    made["perplexity/train"] = tables.perplexity(world)
    return made


def _add_validation(seed: int, folder: Path) -> None:
    """Add what a folder lacks that was built before there was validation."""
    for name, make in VALIDATION.items():
        path = folder / "data" / name / "validation.parquet"
        if not path.is_file():
            with whole_file(path) as file:
                pq.write_table(make(World(seed)), file)


def _write_world(world: World, folder: Path) -> None:
    made = make_tables(world)
    for name, table in made.items():
        path = folder / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    tokenizer = train_tokenizer(_tokenizer_texts(made))
    save_tokenizer(tokenizer, folder / "tokenizer", context_tokens=CONTEXT_TOKENS)
    Oracle.of(world).save(folder / "world.json", seed=world.seed)


def _tokenizer_texts(made: Mapping[str, pa.Table]) -> Iterator[str]:
    """Yield training texts in the form in which models read them."""
    yield from made["pretraining/train"]["text"].to_pylist()
    for row in made["tldr/train"].to_pylist():
        yield PLAIN_QA_ANSWERED.format(prompt=row["prompt"], answer=row["label"])
