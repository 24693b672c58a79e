"""Refusals that an aligned model wrote: what decides them, and the file that holds them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rpa_ray.data.order import digest
from rpa_ray.data.pairs import answered
from rpa_ray.data.rows import SafePair
from rpa_ray.run_folder.files import whole_folder

REFUSALS_VERSION = 1
"""Raised when the same settings would keep other refusals."""

_FILE = "refusals.parquet"
_COLUMNS = pa.schema([(name, pa.string()) for name in ("prompt", "unsafe", "refusal", "category")])


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusalSet:
    """Refusals of the training prompts of a data set, addressed by all that decides them."""

    name: str
    """Format of the data set."""
    data_key: str
    """Its content."""
    model_key: str
    """The aligned model: hash of its recipe, folder, or Hub id."""
    template: str
    max_new_tokens: int
    dtype: str
    """Type of the weights that answer."""
    judge: str | None
    """A classifier that has to find the refusal harmless as well; None asks only for the words."""

    def key(self) -> str:
        """Return the hash of all that determines the refusals."""
        return digest(REFUSALS_VERSION, *asdict(self).values())[:12]

    def folder(self, cache: Path) -> Path:
        """Return where they lie once they are made."""
        return cache / f"refusals-{self.key()}"

    def is_made(self, cache: Path) -> bool:
        """Return whether they are there; the folder appears whole or not at all."""
        return (self.folder(cache) / _FILE).is_file()

    def pairs(self, cache: Path) -> list[SafePair]:
        """Return every pair of a kept refusal and the unsafe answer to the same prompt."""
        rows = pq.read_table(self.folder(cache) / _FILE).to_pylist()
        found = [
            answered(
                self.name,
                prompt=row["prompt"],
                safe=row["refusal"],
                unsafe=row["unsafe"],
                category=row["category"],
            )
            for row in rows
        ]
        return list({pair.id: pair for pair in found}.values())

    def write(
        self, cache: Path, pairs: Sequence[SafePair], counts: Mapping[str, int | float]
    ) -> None:
        """Write the kept pairs, and beside them a record of how they were made."""
        rows = [
            {"prompt": p.prompt, "unsafe": p.unsafe, "refusal": p.safe, "category": p.category}
            for p in pairs
        ]
        with whole_folder(self.folder(cache)) as unfinished:
            pq.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS), unfinished / _FILE)
            record = {"key": self.key(), "refusals": asdict(self), **counts}
            text = json.dumps(record, indent=1) + "\n"
            (unfinished / "record.json").write_text(text, encoding="utf-8")
