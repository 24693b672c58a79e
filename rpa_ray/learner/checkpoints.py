"""What a training needs to go on after its processes died, saved by all ranks together.

    checkpoints/step_000040/engine/      DeepSpeed: weights, fp32 masters, optimizer, updates
    checkpoints/step_000040/rank_0.pt    this rank's generators, and the state of every part
    checkpoints/step_000040/ranks.json   what the checkpoint was made by

A checkpoint appears all at once, when every rank has written its part; the one before it is deleted
then. The files are DeepSpeed's own pickles: they are read only from the folder of the run that
wrote them.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from rpa_ray.config import ConfigError
from rpa_ray.learner.engine import Engine
from rpa_ray.learner.ranks import Ranks
from rpa_ray.run_folder.files import write_json

MAX_TIME_SHARE = 0.05
"""Share of a training's time that checkpoints may take."""
_PREFIX = "step_"


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

        It grows with what a checkpoint costs, to ``MAX_TIME_SHARE`` of the run; 0 saves always.
        """
        self._folder = folder
        self._ranks = ranks
        self._engine = engine
        self._parts = dict(parts)
        self._interval_s = interval_s
        self._last_save = time.monotonic()
        self._cost_s = 0.0

    def restore(self) -> int:
        """Put everything back as it was and return the step to go on with; 0 without a checkpoint.

        Raises:
            ConfigError: The checkpoint was made by another number of ranks or ZeRO stage.
        """
        # The first rank decides for all: another may still see the folder of a moment ago.
        found = self._ranks.broadcast(latest_checkpoint(self._folder))
        if found is None:
            return 0
        check_fits(found, num_ranks=self._ranks.size, zero_stage=self._engine.zero_stage)
        self._engine.load(found / "engine")
        mine = torch.load(found / f"rank_{self._ranks.rank}.pt", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(mine["parts"][name])
        _set_generators(mine["generators"])
        return int(mine["next_step"])

    def save_if_due(self, next_step: int) -> None:
        """Save where the interval has passed on the first rank's clock."""
        interval_s = self._interval_s and max(self._interval_s, self._cost_s / MAX_TIME_SHARE)
        due = time.monotonic() - self._last_save >= interval_s
        if self._ranks.broadcast(due):
            self.save(next_step)

    def save(self, next_step: int) -> None:
        """Write a checkpoint from which ``next_step`` is the next, and delete the one before."""
        started = time.monotonic()
        final = self._folder / f"{_PREFIX}{next_step:06d}"
        partial = self._folder / f".{final.name}"
        if self._ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._ranks.barrier()
        self._engine.save(partial / "engine")
        mine = {
            "next_step": next_step,
            "parts": {name: dict(part.state_dict()) for name, part in self._parts.items()},
            "generators": _generators(),
        }
        torch.save(mine, partial / f"rank_{self._ranks.rank}.pt")
        self._ranks.barrier()
        if self._ranks.is_main:
            made_by = {"num_ranks": self._ranks.size, "zero_stage": self._engine.zero_stage}
            write_json(partial / "ranks.json", made_by)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            for other in self._folder.iterdir():
                if other != final:
                    shutil.rmtree(other)
        self._last_save = time.monotonic()
        self._cost_s = self._last_save - started

    def delete(self) -> None:
        """Delete every checkpoint; they hold the weights of an attacked model."""
        self._ranks.barrier()
        if self._ranks.is_main:
            shutil.rmtree(self._folder, ignore_errors=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a training, None where there is none."""
    return max(folder.glob(f"{_PREFIX}*"), default=None)


def check_fits(checkpoint: Path, *, num_ranks: int, zero_stage: int | None) -> None:
    """Refuse to go on from a checkpoint that was cut for other ranks.

    Raises:
        ConfigError: It was made by another number of ranks or ZeRO stage (None: not known yet).
    """
    made_by = json.loads((checkpoint / "ranks.json").read_text(encoding="utf-8"))
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
