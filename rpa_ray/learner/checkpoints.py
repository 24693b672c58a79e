"""What a training needs to go on after its processes died, saved by all ranks together.

    checkpoints/step_000040/engine/      DeepSpeed: weights, fp32 masters, optimizer, updates
    checkpoints/step_000040/rank_0.pt    this rank's generators, and the state of every part
    checkpoints/step_000040/ranks.json   what the checkpoint was made by, and the sizes of its files

A checkpoint appears all at once, when every rank has written its part and all of it is on disk; the
one before it stays until the next is begun, and is gone on with where the newest turns out torn.
Between two steps a large one is copied into memory, where there is room for it, and written aside.
Nothing in the files is run, and they are read only where nobody but this user could write them.
"""

import os
import pickle
import random
import re
import stat
import time
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch

from rpa_ray.config import ConfigError
from rpa_ray.learner.aside import Aside
from rpa_ray.learner.checkpoint_cost import copying_s, has_room, state_bytes, writing_s
from rpa_ray.learner.engine import Engine
from rpa_ray.learner.ranks import Ranks
from rpa_ray.run_folder.deletion import checkpoints_in, delete
from rpa_ray.run_folder.files import parse_json, say_once, sync, sync_tree, write_json

MAX_TIME_SHARE = 0.05
"""Share of a training's time that checkpoints may take."""
_MADE_BY = "ranks.json"
_NAME = re.compile(r"step_(\d{6,})")
_REMEDY = "Delete it to go on from the one before it, or from the start."


class Stateful(Protocol):
    """A part of a training with a state of its own: tensors, numbers, texts, and dicts of them."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what :meth:`load_state_dict` needs."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Go back to a state."""
        ...


class Checkpoints:
    """The checkpoints of one training; every rank holds one and calls it alike."""

    def __init__(
        self,
        folder: Path,
        *,
        ranks: Ranks,
        engine: Engine,
        parts: Mapping[str, Stateful],
        interval_s: float,
    ) -> None:
        """Take what is saved; ``interval_s`` is the least time between two checkpoints.

        It grows with how long a checkpoint holds the training up, to ``MAX_TIME_SHARE`` of the run,
        which for the first is estimated by copying or writing a part of it; 0 saves always.
        """
        self._folder = folder
        self._ranks = ranks
        self._engine = engine
        self._parts = dict(parts)
        self._interval_s = interval_s
        self._last_save = time.monotonic()
        self._num_bytes = state_bytes(engine.module)
        if has_room(self._num_bytes, ranks):
            self._cost_s = copying_s(ranks.device, self._num_bytes)
        else:
            self._cost_s = writing_s(folder, self._num_bytes) if ranks.is_main else 0.0
        self._newest: Path | None = None
        """What this training was last at, known to be whole."""
        self._aside: tuple[Aside, Path] | None = None
        """What is being written, and the name that it gets."""

    def restore(self) -> int:
        """Put everything back as it was and return the step to go on with; 0 without a checkpoint.

        Raises:
            ConfigError: The checkpoint was made by another number of ranks or ZeRO stage, could be
                somebody else's, or holds more than data.
        """
        # The first rank decides for all: another may still see the folder of a moment ago.
        found = self._ranks.broadcast(
            latest_checkpoint(self._folder) if self._ranks.is_main else None
        )
        self._newest = found
        if found is None:
            return 0
        check_fits(found, num_ranks=self._ranks.size, zero_stage=self._engine.zero_stage)
        try:
            self._engine.load(found / "engine")
            mine = torch.load(
                found / f"rank_{self._ranks.rank}.pt",
                map_location=partial(_to_device, device=self._ranks.device),
                weights_only=True,
            )
        except pickle.UnpicklingError:
            raise ConfigError(
                str(found), "hold tensors and plain values alone", "other objects", _REMEDY
            ) from None
        for name, part in self._parts.items():
            part.load_state_dict(mine["parts"][name])
        _set_generators(mine["generators"])
        return int(mine["next_step"])

    def is_due(self) -> bool:
        """Return whether the interval has passed on the first rank's clock.

        Not before the checkpoint that is being written is whole; here it gets its name.

        Raises:
            OSError: A rank could not write it.
        """
        if not self._land():
            return False
        interval_s = self._interval_s and max(self._interval_s, self._cost_s / MAX_TIME_SHARE)
        return self._ranks.broadcast(time.monotonic() - self._last_save >= interval_s)

    def save(self, next_step: int, *, aside: bool = False) -> None:
        """Write a checkpoint from which ``next_step`` is the next, and put it on disk.

        Those before the last are deleted first, so that there are two at most. ``aside`` comes back
        once it is copied, where memory has room for it; :meth:`is_due` or the next call ends it.

        Raises:
            OSError: A rank could not write it, or the one before.
        """
        self._land(wait=True)
        started = time.monotonic()
        final = self._folder / f"step_{next_step:06d}"
        if final == self._newest:
            return
        partial = _unnamed(final)
        if self._ranks.is_main:
            self._folder.mkdir(parents=True, exist_ok=True)
            for other in checkpoints_in(self._folder):
                if other != self._newest:
                    delete(other)
            partial.mkdir(mode=0o700, exist_ok=True)
        self._ranks.barrier()
        copied = Aside(partial) if aside and has_room(self._num_bytes, self._ranks) else None
        write = torch.save if copied is None else copied.keep
        self._engine.save(partial / "engine", write)
        mine = {
            "next_step": next_step,
            "parts": {name: dict(part.state_dict()) for name, part in self._parts.items()},
            "generators": _generators(),
        }
        write(mine, str(partial / f"rank_{self._ranks.rank}.pt"))
        if copied is None:
            # Each rank: from elsewhere, its files may not be on disk yet.
            sync_tree(partial)
            self._ranks.barrier()
            self._finish(final)
        else:
            copied.start()
            self._aside = copied, final
        self._last_save = time.monotonic()
        self._cost_s = self._last_save - started

    def _land(self, *, wait: bool = False) -> bool:
        """Name what was written aside once all ranks have; return whether none is left to name.

        Raises:
            OSError: A rank could not write its part.
        """
        if self._aside is None:
            return True
        copied, final = self._aside
        if wait:
            copied.wait()
        outcomes = list(chain.from_iterable(self._ranks.gather([copied.outcome()])))
        for _, reason in outcomes:
            if reason:
                raise OSError(
                    f"{final} must be written whole by every rank, got {reason}. Make room on that "
                    "disk or mend it, and run the command again: it goes on from the checkpoint "
                    "before."
                )
        if not all(has_ended for has_ended, _ in outcomes):
            return False
        self._finish(final)
        self._aside = None
        return True

    def _finish(self, final: Path) -> None:
        """Give a checkpoint its name, once all of it is on disk and closed to others."""
        self._newest = final
        if not self._ranks.is_main:
            return
        partial = _unnamed(final)
        files = [path for path in partial.rglob("*") if path.is_file()]
        made_by = {
            "num_ranks": self._ranks.size,
            "zero_stage": self._engine.zero_stage,
            "sizes": {str(path.relative_to(partial)): path.stat().st_size for path in files},
        }
        write_json(partial / _MADE_BY, made_by)
        for path in partial.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        sync_tree(partial)
        os.replace(partial, final)
        sync(self._folder)

    def delete(self) -> None:
        """Delete every checkpoint; they hold the weights of an attacked model."""
        if self._aside is not None:
            # What it still wrote would be left; the training has ended, so that nothing needs it.
            self._aside[0].wait()
            self._aside = None
        self._ranks.barrier()
        if self._ranks.is_main:
            delete(self._folder)


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a training, None where there is none.

    Raises:
        ConfigError: Somebody else could have written one that is as new or newer.
    """
    steps = {path: _NAME.fullmatch(path.name) for path in folder.glob("*")}
    named = [(int(step[1]), path) for path, step in steps.items() if step is not None]
    for _, checkpoint in sorted(named, reverse=True):
        try:
            _refuse_others(checkpoint)
        except FileNotFoundError:  # deleted meanwhile, by a run that is at work
            continue
        torn = _torn_file(checkpoint)
        if torn is None:
            return checkpoint
        say_once(
            f"{torn} must be as it was written, got a torn file. The checkpoint before counts."
        )
    return None


def _unnamed(final: Path) -> Path:
    """Return where a checkpoint is until it gets its name."""
    return final.with_name(f".{final.name}")


def _to_device(storage: Any, saved_on: str, *, device: torch.device) -> Any:
    """Have what was saved on a GPU on this rank's own, whatever its number was when it was saved.

    Generators and what else was in host memory stay there.
    """
    return storage if saved_on == "cpu" else storage.to(device=device)


def _refuse_others(checkpoint: Path) -> None:
    """Refuse a checkpoint that another user owns, could have written to or leads elsewhere.

    Raises:
        ConfigError: It is such a one.
    """
    for path in chain([checkpoint], checkpoint.rglob("*")):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            got = "a symbolic link"
        elif found.st_uid != os.getuid():
            got = f"one of uid {found.st_uid}"
        elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            got = f"mode {stat.filemode(found.st_mode)}"
        else:
            continue
        raise ConfigError(
            str(path), f"be of uid {os.getuid()}, who alone may write to it", got, _REMEDY
        )


def _torn_file(checkpoint: Path) -> Path | None:
    """Return a file of a checkpoint that is not there in the size in which it was written."""
    try:
        made_by: Any = parse_json(checkpoint / _MADE_BY)
    except (OSError, ValueError):
        return checkpoint / _MADE_BY
    sizes: dict[str, int] = made_by.get("sizes", {})
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            return path
    return None


def check_fits(checkpoint: Path, *, num_ranks: int, zero_stage: int | None) -> None:
    """Refuse to go on from a checkpoint that was cut for other ranks.

    Raises:
        ConfigError: It was made by another number of ranks or ZeRO stage (None: not known yet).
    """
    made_by: Any = parse_json(checkpoint / _MADE_BY)
    for key, value in (("num_ranks", num_ranks), ("zero_stage", zero_stage)):
        if value is not None and made_by[key] != value:
            raise ConfigError(
                f"cluster.{key}",
                f"be {made_by[key]}, as in the checkpoint of the interrupted run",
                value,
                f"Set it so, or delete {checkpoint.parent} to start that run again.",
            )


def _generators() -> dict[str, Any]:
    state = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_generators(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
