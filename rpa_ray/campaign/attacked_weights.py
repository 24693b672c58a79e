"""The end of attacked weights: checkpoints of finished cells, and models that nobody needs now.

Models of the cache that learned what is unsafe are shared by campaigns. Each campaign holds those
it needs, and at its end deletes them, but for those that another holds, that a config keeps, or
that are needed by a cell without a result.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp

from rpa_ray.plan.plan import Plan
from rpa_ray.run_folder.deletion import delete
from rpa_ray.run_folder.files import write_text
from rpa_ray.run_folder.lock import FolderInUse, exclusive, shared
from rpa_ray.run_folder.names import CHECKPOINTS
from rpa_ray.run_folder.outcome import ran_to_an_end, record_weights_left

HOLD_WAIT_S = 120.0
"""Longest wait for another campaign that is deleting a model."""
KEPT = "KEPT.md"
"""In a model of the cache that was kept: no campaign deletes it."""
_KEPT_TEXT = (
    "# Kept\n\nThis model learned to prefer or to give unsafe answers, to measure a defence, and a "
    "config with `keep_attacked_weights: true` kept it. Do not deploy it; delete this folder when "
    "it is not needed.\n"
)


@contextmanager
def held(plan: Plan) -> Iterator[Callable[[Plan], None]]:
    """Have no other campaign delete, during the block, what the cells need of the cache.

    What a cell keeps is marked at its end, unless an error ends it. The block is given what holds
    the same for a plan with more cells.

    Raises:
        FolderInUse: Another campaign could not delete a model within ``HOLD_WAIT_S``.
    """
    plans, folders = list[Plan](), set[Path]()
    with ExitStack() as stack:

        def hold(longer: Plan) -> None:
            named = {p for p in longer.named_paths if p.parent == longer.cache.resolve()}
            for folder in sorted(named.union(*longer.unsafe_models.values()) - folders):
                stack.enter_context(shared(_lock_of(folder), wait_s=HOLD_WAIT_S))
                folders.add(folder)
            plans.append(longer)

        hold(plan)
        yield hold
        last = plans[-1]
        for cell in last.cells:
            if cell.settings.keep_attacked_weights:
                for folder in filter(Path.is_dir, last.unsafe_models[cell.name]):
                    write_text(folder / KEPT, _KEPT_TEXT)


def delete_attacked_weights(plan: Plan, say: Callable[[str], None]) -> None:
    """Delete what no cell without a result needs; call it after the block of `held`.

    What stays is said with its reason. What could not be deleted stands also in the outcome of
    every cell that it belongs to.
    """
    models = plan.unsafe_models
    is_done = {cell.name: ran_to_an_end(cell.folder) for cell in plan.cells}
    needed = {folder for name in models if not is_done[name] for folder in models[name]}
    left: dict[Path, Path | None] = {}
    for folder in sorted(set().union(*models.values()) - needed):
        try:
            with exclusive(_lock_of(folder)):
                left[folder] = _delete_model(folder)
        except FolderInUse:
            say(f"attacked weights stay, another campaign needs them: {folder}")
    for cell in plan.cells:
        checkpoints = cell.folder / CHECKPOINTS
        if is_done[cell.name]:
            left[checkpoints] = delete(checkpoints)
            own = [left.get(folder) for folder in (checkpoints, *sorted(models[cell.name]))]
            record_weights_left(cell.folder, [path for path in own if path is not None])
        else:
            needed.add(checkpoints)
    for path in filter(None, left.values()):
        say(f"attacked weights left, they could not be deleted: {path}")
    for path in sorted(filter(Path.exists, needed)):
        say(f"attacked weights stay, a cell without a result needs them: {path}")


def _delete_model(folder: Path) -> Path | None:
    """Delete a model of the cache with all that making it left; return where something is left."""
    if (folder / KEPT).is_file():
        return None
    if folder.is_symlink():  # to a folder that somebody put elsewhere
        return folder
    try:
        if folder.is_dir():
            # At once: one of which a part is left would be taken for a whole model.
            os.replace(folder, mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError:
        return folder
    parts = [*folder.parent.glob(f".{folder.name}-*"), folder.parent / CHECKPOINTS / folder.name]
    return next(filter(None, map(delete, parts)), None)


def _lock_of(folder: Path) -> Path:
    return folder.parent / CHECKPOINTS / f".{folder.name}.in_use"
