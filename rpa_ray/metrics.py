"""Where measured values go: one JSON line a step, flushed, so that nothing computed is lost."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """An append-only JSON Lines file; a disabled one writes nothing (ranks above 0)."""

    def __init__(self, path: Path, *, enabled: bool, keep_lines: int | None = 0) -> None:
        """Open the file, keeping its first ``keep_lines`` lines (None keeps all)."""
        self._file = None
        if not enabled:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
        path.write_text("".join(lines[:keep_lines]), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush it; numbers that are not finite are written as null."""
        if self._file is None:
            return
        self._file.write(json.dumps({k: _json_value(v) for k, v in record.items()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one piece: readers see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1, sort_keys=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 8) if math.isfinite(value) else None
    return value
