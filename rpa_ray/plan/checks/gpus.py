"""Whether what a cell's processes hold fits the GPUs and the main memory of their nodes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rpa_ray.cluster.placement import Placed
from rpa_ray.cluster.resources import GIB_A_PROCESS
from rpa_ray.config import ClusterSettings, ConfigError, MachineSettings
from rpa_ray.config.cluster import ENGINE_FRAC
from rpa_ray.plan.memory import (
    USABLE_FRAC,
    Parts,
    checkpoint_gib,
    engine_memory,
    hardening_load_of,
    host_gib,
    largest,
    load_of,
    model_load_of,
    offloaded_gib,
    rank_memory,
    scorer_memory,
    total,
    weights_gib,
)
from rpa_ray.plan.model_shapes import ModelShape, shape_of
from rpa_ray.recipes.cell_models import CellInputs, CellModels
from rpa_ray.recipes.model import ModelKind, ModelRecipe, in_order

_ROUNDING = 1e-9
KINDS = ("rank", "rollout_worker", "scorer_worker")
HARDENING = "hardening_rank"
"""A rank while an offline defence trains its model."""
_REMEDIES = {
    HARDENING: "Take more ranks, cluster.zero_stage: 3, cluster.gradient_checkpointing: true, a "
    "smaller defence.batch_size, or larger GPUs.",
    "rank": "Take adapters (attack.lora: {rank: 16}), more ranks, another cluster.zero_stage, "
    "cluster.gradient_checkpointing: true, cluster.offload_optimizer: true (with zero_stage: 3), a "
    "smaller cluster.micro_batch_size, or larger GPUs.",
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
    engine_frac: float | None
    """Share of its GPU that an engine fills; None where what lies beside it is not known."""
    checkpoint_gib: float
    host_gib_a_rank: float
    """Main memory in which a rank loads models, and keeps an offloaded optimizer."""


def cell_memory(inputs: CellInputs) -> CellMemory | None:
    """Return what the processes of a cell hold; None without GPUs or sizes of the model.

    Where the sizes of a scoring model are not known, nothing is said of scoring workers.
    """
    cluster, models = inputs.settings.cluster, inputs.models
    shape = shape_of(models.policy)
    on_gpu = [kind for kind in KINDS if cluster.gpus_of(kind)]
    if shape is None or not on_gpu:
        return None
    load = load_of(inputs.settings, models)
    gpu = {"rank": rank_memory(shape, cluster, load)}
    scorers = _scorers(models)
    if scorers is not None:
        gpu["scorer_worker"] = scorer_memory(scorers)
    hardenings = [hardening_load_of(recipe, cluster) for recipe in _to_harden(inputs)]
    if hardenings:
        gpu[HARDENING] = largest([rank_memory(shape, cluster, own) for own in hardenings])
    card = cluster.machines.gib_per_gpu if cluster.machines is not None else None
    frac = _engine_frac(cluster, gpu, card)
    filled = None if frac is None or card is None else frac * card
    gpu["rollout_worker"] = engine_memory(shape, cluster, filled, load.bytes_a_weight)
    kinds = ("rank", "rollout_worker", "scorer_worker", HARDENING)
    return CellMemory(
        gpu={k: gpu[k] for k in kinds if k in gpu and k.replace(HARDENING, "rank") in on_gpu},
        engine_frac=frac,
        checkpoint_gib=max(checkpoint_gib(shape, own) for own in (load, *hardenings)),
        host_gib_a_rank=host_gib(shape, load, 1)
        + max(offloaded_gib(shape, cluster, own) for own in (load, *hardenings)),
    )


def _engine_frac(
    cluster: ClusterSettings, gpu: Mapping[str, Parts], gib_per_gpu: float | None
) -> float | None:
    """Return the share of its GPU that an engine fills: what is asked for, or what is left.

    Of its own GPU it leaves a tenth, of a rank's what rank and scorer hold at most.
    """
    if cluster.engine.gpu_memory_utilization is not None:
        return cluster.engine.gpu_memory_utilization
    if not cluster.is_colocated:
        return ENGINE_FRAC
    if gib_per_gpu is None or "scorer_worker" not in gpu:
        return None
    beside = max(total(parts) for kind, parts in gpu.items() if kind != "scorer_worker")
    return max(0.0, USABLE_FRAC - (beside + total(gpu["scorer_worker"])) / gib_per_gpu)


def holding_most(
    memories: Mapping[str, CellMemory], *, is_colocated: bool
) -> dict[str, tuple[str, Parts]]:
    """Return what each kind of worker holds where that is most, with the name of the cell.

    Engines beside ranks fill in every cell what is left in that with least.

    Args:
        memories: Of each cell by its name.
        is_colocated: Whether engines lie beside ranks.
    """
    found = {}
    for kind in dict.fromkeys(kind for memory in memories.values() for kind in memory.gpu):
        own = [(name, m.gpu[kind]) for name, m in memories.items() if kind in m.gpu]
        chosen = min if is_colocated and kind == "rollout_worker" else max
        found[kind] = chosen(own, key=lambda one: total(one[1]))
    return found


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


def engine_frac(inputs: CellInputs) -> float | None:
    """Return the share of its GPU that an engine of a cell fills; None where it is not known."""
    memory = cell_memory(inputs)
    asked = inputs.settings.cluster.engine.gpu_memory_utilization
    return asked if memory is None else memory.engine_frac


def with_engine_share(cluster: ClusterSettings, cells: Iterable[CellInputs]) -> ClusterSettings:
    """Return the settings with the share of a GPU that engines fill beside the ranks of all cells.

    That of engines on GPUs of their own, or on none, is left as it is.
    """
    if not cluster.is_colocated or not cluster.gpus_per_rank:
        return cluster
    known = [frac for frac in map(engine_frac, cells) if frac is not None]
    engine = cluster.engine.model_copy(update={"gpu_memory_utilization": min(known)})
    return cluster.model_copy(update={"engine": engine})


def check_engine_share(inputs: CellInputs) -> None:
    """Refuse an engine beside a rank on a GPU whose share of it is neither set nor known.

    Raises:
        ConfigError: with the setting to give.
    """
    cluster = inputs.settings.cluster
    if cluster.is_colocated and cluster.gpus_per_rank and engine_frac(inputs) is None:
        raise ConfigError(
            "cluster.engine.gpu_memory_utilization",
            f"be given with cluster.layout: {cluster.layout} where the memory of the GPUs "
            "(cluster.machines) or the sizes of the models are not known",
            None,
            "Describe cluster.machines, or set the share of a GPU that rank and scorer leave.",
        )


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
        if HARDENING in memory.gpu and "rank" in kinds:
            hardening = [HARDENING if kind == "rank" else kind for kind in kinds]
            _check_gpu(hardening, memory, machines)
    _check_host(memory, machines, placed)


def _check_gpu(kinds: Sequence[str], memory: CellMemory, machines: MachineSettings) -> None:
    """Refuse processes that share a GPU and do not fit it; kinds that are not known pass."""
    known = [kind for kind in kinds if kind in memory.gpu]
    frac = USABLE_FRAC
    if known == ["rollout_worker"] and memory.engine_frac is not None:
        frac = memory.engine_frac
    usable = frac * machines.gib_per_gpu
    asked = sum(total(memory.gpu[kind]) for kind in known)
    if asked > usable * (1 + _ROUNDING):  # an engine fills what is left
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
            "Take adapters (attack.lora: {rank: 16}), more ranks or cluster.zero_stage: 3, lower "
            "cluster.engine.gpu_memory_utilization where it is set, or take cluster.layout: apart."
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
                f"{asked:.0f} GiB, {memory.host_gib_a_rank:.0f} of them for each rank: its models, "
                "and what it offloads",
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
