"""Whether what a cell's processes hold fits the GPUs and the main memory of their nodes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rpa_ray.cluster.placement import Placed
from rpa_ray.cluster.resources import GIB_A_PROCESS
from rpa_ray.config import ClusterSettings, ConfigError, MachineSettings
from rpa_ray.plan.memory import (
    ENGINE_FRAC,
    USABLE_FRAC,
    Parts,
    checkpoint_gib,
    engine_memory,
    hardening_load_of,
    host_gib,
    largest,
    load_of,
    model_load_of,
    rank_memory,
    scorer_memory,
    total,
    weights_gib,
)
from rpa_ray.plan.model_shapes import ModelShape, shape_of
from rpa_ray.recipes.cell_models import CellInputs, CellModels
from rpa_ray.recipes.model import ModelKind, ModelRecipe, in_order

KINDS = ("rank", "rollout_worker", "scorer_worker")
HARDENING = "hardening_rank"
"""A rank while an offline defence trains its model."""
_REMEDIES = {
    HARDENING: "Take more ranks, cluster.zero_stage: 3, cluster.gradient_checkpointing: true, a "
    "smaller defence.batch_size, or larger GPUs.",
    "rank": "Take adapters (attack.lora: {rank: 16}), more ranks, another cluster.zero_stage, "
    "cluster.gradient_checkpointing: true, a smaller cluster.micro_batch_size, or larger GPUs.",
    "rollout_worker": "Take larger GPUs, or more of them for an engine "
    "(cluster.gpus_per_rollout_worker).",
    "scorer_worker": "Take larger GPUs, or smaller scoring models.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CellMemory:
    """What the processes of a cell hold."""

    gpu: dict[str, Parts]
    """GiB on each GPU of a worker by part, by the kind of worker; of those on GPUs alone. Of ranks
    there are those that attack and, where a model has yet to be hardened, those that do that."""
    checkpoint_gib: float
    host_gib_a_rank: float
    """Main memory in which a rank loads models."""


def cell_memory(inputs: CellInputs) -> CellMemory | None:
    """Return what the processes of a cell hold; None without GPUs or sizes of the model.

    Where the sizes of a scoring model are not known, nothing is said of scoring workers.
    """
    cluster, models = inputs.settings.cluster, inputs.models
    shape = shape_of(models.policy)
    on_gpu = [kind for kind in KINDS if getattr(cluster, f"gpus_per_{kind}")]
    if shape is None or not on_gpu:
        return None
    load = load_of(inputs.settings, models)
    card = cluster.machines.gib_per_gpu if cluster.machines is not None else None
    gpu = {
        "rank": rank_memory(shape, cluster, load),
        "rollout_worker": engine_memory(shape, cluster, card, load.bytes_a_weight),
    }
    scorers = _scorers(models)
    if scorers is not None:
        gpu["scorer_worker"] = scorer_memory(scorers)
    gpu = {kind: parts for kind, parts in gpu.items() if kind in on_gpu}
    hardenings = [hardening_load_of(recipe, cluster) for recipe in _to_harden(inputs)]
    if hardenings and "rank" in gpu:
        gpu[HARDENING] = largest([rank_memory(shape, cluster, own) for own in hardenings])
    return CellMemory(
        gpu=gpu,
        checkpoint_gib=max(checkpoint_gib(shape, own) for own in (load, *hardenings)),
        host_gib_a_rank=host_gib(shape, load, 1),
    )


def checkpoints_gib(inputs: CellInputs) -> float:
    """Return the disk space of the checkpoints of cells side by side; 0 where it is not known.

    Of each there are two while the newer is written.
    """
    settings, shape = inputs.settings, shape_of(inputs.models.policy)
    if settings.training is None or shape is None:
        return 0.0
    one = checkpoint_gib(shape, load_of(settings, inputs.models))
    return 2 * (settings.cluster.parallel_cells or 1) * one


def models_gib(recipes: Iterable[tuple[ModelRecipe, ClusterSettings]]) -> float:
    """Return the disk space of models to be made, and of two checkpoints of the largest training.

    Adapters, and models of sizes that are not known, count nothing.

    Args:
        recipes: Each of those that are not in the cache once, with the cluster of its cell.
    """
    weights, trainings = 0.0, [0.0]
    for recipe, cluster in recipes:
        shape = None if recipe.kind is ModelKind.ADAPTER else shape_of(recipe)
        if shape is not None:
            weights += weights_gib(shape, recipe.job.dtype)
            trainings.append(checkpoint_gib(shape, model_load_of(recipe, cluster)))
    return weights + 2 * max(trainings)


def check_memory(inputs: CellInputs, machines: MachineSettings, placed: Sequence[Placed]) -> None:
    """Refuse processes that need more than the memory of their GPU, or all of a node's main memory.

    Args:
        inputs: Of a cell.
        machines: What the nodes have.
        placed: Where the processes of the cells go that run side by side.

    Raises:
        ConfigError: with the part of each, in GiB.
    """
    memory = cell_memory(inputs)
    if memory is None:
        return
    held: dict[tuple[int, int], list[str]] = defaultdict(list)
    for process in placed:
        for gpu in process.gpus:
            held[process.node, gpu].append(process.worker.kind)
    for kinds in held.values():
        _check_gpu(kinds, memory, machines)
        _check_gpu([HARDENING] * kinds.count("rank"), memory, machines)
    _check_host(memory, machines, placed)


def _check_gpu(kinds: Sequence[str], memory: CellMemory, machines: MachineSettings) -> None:
    """Refuse processes that share a GPU and do not fit it; kinds that are not known pass."""
    known = [kind for kind in kinds if kind in memory.gpu]
    frac = ENGINE_FRAC if known == ["rollout_worker"] else USABLE_FRAC
    usable = frac * machines.gib_per_gpu
    asked = sum(total(memory.gpu[kind]) for kind in known)
    if asked > usable:
        kind = max(known, key=lambda kind: total(memory.gpu[kind]))
        told = "; ".join(f"{_words(kind)}: {parts_text(memory.gpu[kind])}" for kind in known)
        raise ConfigError(
            "cluster",
            f"leave room on every GPU, of whose {machines.gib_per_gpu:g} GiB "
            f"{usable:.1f} can be used",
            f"{asked:.1f} GiB on one ({told})",
            _remedy(kind, known),
        )


def parts_text(parts: Parts) -> str:
    """Return GiB by part in words."""
    return ", ".join(f"{name} {gib:.1f}" for name, gib in parts.items())


def _remedy(kind: str, sharing: Sequence[str]) -> str:
    if len(sharing) > 1 and "rollout_worker" in sharing:
        return (
            f"An engine takes {ENGINE_FRAC:.0%} of its GPU: give it one of its own "
            "(cluster.gpus_per_rollout_worker: 1)."
        )
    return _REMEDIES[kind]


def _check_host(memory: CellMemory, machines: MachineSettings, placed: Sequence[Placed]) -> None:
    for node in {process.node for process in placed}:
        kinds = [process.worker.kind for process in placed if process.node == node]
        asked = len(kinds) * GIB_A_PROCESS + kinds.count("rank") * memory.host_gib_a_rank
        if asked > machines.gib_per_node:
            raise ConfigError(
                "cluster",
                f"ask for at most the {machines.gib_per_node:g} GiB main memory of a node",
                f"{asked:.0f} GiB, {memory.host_gib_a_rank:.0f} of them for each rank to load "
                "models",
                "Take fewer ranks on a node, a smaller model, or larger nodes.",
            )


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _to_harden(inputs: CellInputs) -> list[ModelRecipe]:
    """Return the recipes of the offline defences of a cell that are not in the cache."""
    found = in_order(inputs.models.recipes(), inputs.cache)
    return [recipe for recipe in found if recipe.defence is not None]


def _scorers(models: CellModels) -> dict[str, ModelShape] | None:
    """Return the sizes of the scoring models of a cell; None where one is not known."""
    named = {
        "reward model": models.reward_model,
        "cost model": models.cost_model,
        "summary model": models.summary,
        "judge": models.judge,
        "second judge": models.second_judge,
        "perplexity": models.perplexity,
        "helpfulness": models.helpfulness,
    }
    found = {name: shape_of(model) for name, model in named.items() if model is not None}
    known = {name: shape for name, shape in found.items() if shape is not None}
    return known if len(known) == len(found) else None
