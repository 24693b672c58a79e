"""Files of a checkpoint that are copied into memory and written while the training goes on.

DeepSpeed's own `DecoupledCheckpointEngine` is not used: the process that it starts reads tensors of
the CPU from memory that it shares with the training, which goes on to change them, and the next
update waits until it has written.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch.utils.serialization import config

from rpa_ray.run_folder.files import sync_tree


class Aside:
    """What one rank writes of one checkpoint: first all is kept, then a thread writes it."""

    _writing: Future[None]
    """Since :meth:`start`, which the other methods come after."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of the checkpoint, which has no name yet."""
        self._folder = folder
        self._contents: dict[Path, BytesIO] = {}

    def keep(self, state: Any, path: str | os.PathLike[str]) -> None:
        """Copy a state into memory, as the content of a file that :meth:`start` writes."""
        self._contents[Path(path)] = in_memory(state)

    def start(self) -> None:
        """Begin to write what was kept, in the folders that are there."""
        self._writing = ThreadPoolExecutor(1, "checkpoint").submit(self._write)

    def wait(self) -> None:
        """Wait until the thread has ended, whether it wrote everything or not."""
        wait([self._writing])

    def outcome(self) -> tuple[bool, str]:
        """Return whether the thread has ended, and why it failed; empty where it did not."""
        if not self._writing.done():
            return False, ""
        error = self._writing.exception()
        return True, "" if error is None else f"{type(error).__name__}: {error}"

    def _write(self) -> None:
        while self._contents:
            path, content = self._contents.popitem()
            path.write_bytes(content.getbuffer())
        sync_tree(self._folder)


def in_memory(state: Any) -> BytesIO:
    """Return what ``torch.save`` writes of a state, which says of each tensor where it lay.

    Without the checksums, which take most of the time and which ``torch.load`` does not read.
    """
    content = BytesIO()
    with config.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
        torch.save(state, content)
    return content
