"""Memory by part before anything starts: of a rank, an engine and a scorer on a GPU, disk, host.

Everything is a function of sizes and settings alone, in GiB of 2**30 bytes. What is counted are the
tensors that the code holds at the same time, at most; that GPUs fill like this was not measured.

Letters of the formulas: N parameters; T trained ones, N or those of the adapters; R ranks; w bytes
of a weight (2 in bfloat16); L layers; H, I channels of the states and of the MLP; A, K those of all
queries and of all keys; V tokens of the vocabulary; t tokens of one backward pass; tp GPUs of an
engine. "ZeRO" is Rajbhandari et al. 2020 (arXiv:1910.02054), section 3, with DeepSpeed's buffers.
The activations of a layer are what transformers' Llama keeps for the backward pass. A norm keeps
its input in fp32, what it made of it and, unless it is frozen, that times its weight: 4 H + 2 w H.
Attention, which keeps no square of scores, has queries, keys, values and outputs: w (2 A + 2 K). A
gated MLP has four states: 4 w I. What tensors hold in trainings on a processor is within 15 % of it
(``benchmarks/memory_plan_cpu2_202611.md``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rpa_ray.attacks import ATTACKS
from rpa_ray.config import ClusterSettings, ExperimentSettings, RolloutConfig
from rpa_ray.defences import defence_of, offline_defence, online_defences
from rpa_ray.learner.size import BUCKET_ELEMENTS, LIVE_PARAMETERS, STEPPED_MASTERS
from rpa_ray.plan.model_shapes import ModelShape
from rpa_ray.plugin import DEFENCE_BATCHES, Need, SampledOfflineDefence
from rpa_ray.recipes.cell_models import MAX_MODEL_LEN, CellModels
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.scoring.size import bytes_a_weight

GIB = 2**30
LONGEST_PROMPT_TOKENS = 128
"""Longest prompt that is planned for."""
LONGEST_ANSWER_TOKENS = 512
"""Longest answer of a data set that is planned for."""
CONTEXT_GIB = 1.0
"""CUDA context and NCCL's buffers of a rank."""
PUSH_GIB = {"ipc": 1.0, "nccl": 2.4, "object_store": 0.0}
"""Buffers of a push of weights: one of 1 GiB, or two, with NCCL's channels; none through Ray."""
GRAPHS_GIB = 3.0
"""CUDA graphs and activations of an engine."""
SCORER_GIB = 0.5
"""CUDA context of a scoring worker."""
USABLE_FRAC = 0.98
"""Of a GPU's memory, the rest is the driver's: 78 of the 79.6 GiB of an H100."""
Parts = dict[str, float]
"""GiB by the part that they are of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankLoad:
    """What attack and defence put on a rank beside the sizes of the model."""

    num_tokens: int
    """t: of the rows whose activations are held at once."""
    num_frozen: int = 1
    """Frozen models: the one under attack as it was, what it was hardened from, and others that are
    stayed near."""
    lora_rank: int | None = None
    num_shard_copies: int = 0
    """See :attr:`~rpa_ray.plugin.OnlineDefence.num_shard_copies`."""
    bytes_a_weight: int = 2
    is_served: bool = True
    """Whether engines get the weights; not those of a model that is made of rows."""


def load_of(settings: ExperimentSettings, models: CellModels) -> RankLoad:
    """Return what the attack and the defence of a cell put on a rank.

    A row is a prompt of at most :data:`LONGEST_PROMPT_TOKENS` with its answer. The rows of a
    defence come with the last micro-batch of the attack, so that both are held; a pair is two rows.
    """
    cluster, training = settings.cluster, settings.training
    lora = training.lora if training is not None else None
    defence = defence_of(settings.defence)
    needs = ATTACKS[settings.attack.name].needs(settings.attack) | defence.needs
    answer = LONGEST_ANSWER_TOKENS
    if isinstance(settings.attack, RolloutConfig):
        answer = settings.attack.max_new_tokens
    num_tokens = 0
    if training is not None:
        attack = ATTACKS[settings.attack.name](defence.attack_config(settings.attack))
        rows = -(-training.batch_size * attack.answers_per_prompt // cluster.num_ranks)
        answers = 2 if Need.PAIRS in needs else 1
        num_tokens = _tokens_at_once(rows, answers * (LONGEST_PROMPT_TOKENS + answer), cluster)
    safe_rows = -(-defence.safe_batch_size // cluster.num_ranks)
    for need in needs & DEFENCE_BATCHES:
        pairs = 2 if need is Need.CONTRAST_BATCH else 1
        num_tokens += pairs * safe_rows * (LONGEST_PROMPT_TOKENS + LONGEST_ANSWER_TOKENS)
    others = [
        models.untouched,
        models.reference if Need.REFERENCE in needs else None,
        models.compared if Need.COMPARED_WEIGHTS not in needs else None,
    ]
    is_held = defence.needs_copy(lora, cluster.zero_stage)
    return RankLoad(
        num_tokens=num_tokens,
        num_frozen=is_held + sum(model is not None for model in others),
        lora_rank=lora.rank if lora is not None else None,
        num_shard_copies=sum(part.num_shard_copies for part in online_defences(settings.defence)),
        bytes_a_weight=_bytes_of(settings.model.dtype),
    )


def model_load_of(recipe: ModelRecipe, cluster: ClusterSettings) -> RankLoad:
    """Return what the training of a model that is made puts on a rank."""
    if recipe.defence is not None:
        return hardening_load_of(recipe, cluster)
    own_rows = -(-recipe.job.batch_size // cluster.num_ranks)
    return RankLoad(
        num_tokens=own_rows * recipe.job.max_tokens, bytes_a_weight=_bytes_of(recipe.job.dtype)
    )


def hardening_load_of(recipe: ModelRecipe, cluster: ClusterSettings) -> RankLoad:
    """Return what the training of an offline defence puts on a rank.

    Rows, or the answers of a batch with their prompts, are as long as its longest. The rows that it
    asks for come with the last micro-batch of refusals, and the model that it began with is held
    beside.
    """
    assert recipe.defence is not None
    defence, job = offline_defence(recipe.defence), recipe.job
    is_sampled = isinstance(defence, SampledOfflineDefence)
    group = defence.config.group_size if isinstance(defence, SampledOfflineDefence) else 1
    own_rows = -(-job.batch_size * group // cluster.num_ranks)
    num_tokens = _tokens_at_once(own_rows, job.max_tokens, cluster)
    for need in defence.needs & DEFENCE_BATCHES:
        pairs = 2 if need is Need.CONTRAST_BATCH else 1
        num_tokens += pairs * own_rows * job.max_tokens
    return RankLoad(
        num_tokens=num_tokens,
        num_frozen=int(defence.hooks().needs_copy(defence.lora, cluster.zero_stage)),
        lora_rank=None if defence.lora is None else defence.lora.rank,
        num_shard_copies=defence.num_shard_copies,
        bytes_a_weight=_bytes_of(job.dtype),
        is_served=is_sampled,
    )


def _tokens_at_once(num_rows: int, tokens_a_row: int, cluster: ClusterSettings) -> int:
    """Return the tokens of a micro-batch of rows that are as long as they can be."""
    num_tokens = min(num_rows, cluster.micro_batch_size or num_rows) * tokens_a_row
    if cluster.micro_batch_tokens is None:
        return num_tokens
    return min(num_tokens, max(tokens_a_row, cluster.micro_batch_tokens))


def _bytes_of(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def rank_memory(shape: ModelShape, cluster: ClusterSettings, load: RankLoad) -> Parts:
    """Return the GiB of a learner rank on its GPU, by part.

    ====================  ==================================================================
    context               :data:`CONTEXT_GIB`
    weights               w (N + adapters), / R under ZeRO-3 (ZeRO)
    gradients             w T, / R under ZeRO-2 and 3 (ZeRO)
    masters               12 T / R: fp32 weights and Adam's two moments (ZeRO); without ZeRO the
                          moments of all weights, 8 T
    frozen copies         w N each: whole on every rank; none of the model beneath adapters
    live layers           w min(N, ``LIVE_PARAMETERS``) under ZeRO-3
    buckets               w min(T, ``BUCKET_ELEMENTS``) under ZeRO-1; twice under ZeRO-2 and 3,
                          which cut them for the ranks while layers are still computed
    activations           L t (8 H + 4 w H + w (2 A + 2 K) + 4 w I), under LoRA 2 w H less; of
                          checkpointed layers those of one with its gradients, 2 w t I, and
                          w (L + 1) t H for the inputs of all
    head                  12 t V: logits and their gradients, in bfloat16 and in fp32; beside
                          checkpointed layers what it needs more than the one computed again
    optimizer step        the flat gradient of what is stepped at once, w T / R, and in fp32,
                          4 T / R (of at most ``STEPPED_MASTERS`` under ZeRO-3), as far as they
                          need more than the four parts above, which are gone then
    defence               4 T / R for each of ``num_shard_copies``; without ZeRO 4 T
    push                  :data:`PUSH_GIB`, where engines get the weights
    ====================  ==================================================================

    Of an offloaded optimizer gradients, masters, what it steps and what a defence keeps of them
    lie in main memory (:func:`offloaded_gib`).
    """
    num_ranks, stage = cluster.num_ranks, cluster.zero_stage
    trained = _num_trained(shape, load)
    num_adapter = 0 if load.lora_rank is None else trained
    shared_by = {at: num_ranks if stage >= at else 1 for at in (1, 2, 3)}
    weight = load.bytes_a_weight
    passing = {
        "live layers": weight * min(shape.num_parameters, LIVE_PARAMETERS) * (stage == 3),
        "buckets": weight * min(trained, BUCKET_ELEMENTS) * (0, 1, 2, 2)[stage],
    } | {part: load.num_tokens * of for part, of in _kept_bytes(shape, cluster, load).items()}
    stepped = trained / num_ranks if stage in (1, 2) else min(trained / num_ranks, STEPPED_MASTERS)
    step = (weight + (4 if weight < 4 else 0)) * stepped if stage else 0
    on_gpu = not cluster.offload_optimizer
    num_bytes = {
        "weights": weight * (shape.num_parameters + num_adapter) / shared_by[3],
        "gradients": on_gpu * weight * trained / shared_by[2],
        "masters": on_gpu * (12 if stage else 8) * trained / shared_by[1],
        "frozen copies": load.num_frozen * weight * shape.num_parameters,
    } | passing
    num_bytes |= {
        "optimizer step": on_gpu * max(0, step - sum(passing.values())),
        "defence": on_gpu * load.num_shard_copies * 4 * trained / shared_by[1],
    }
    parts = {"context": CONTEXT_GIB} | {name: of / GIB for name, of in num_bytes.items()}
    parts["push"] = PUSH_GIB[transfer(cluster)] if load.is_served else 0.0
    return {name: gib for name, gib in parts.items() if gib}


def _num_trained(shape: ModelShape, load: RankLoad) -> int:
    """Return how many parameters learn: all, or those of the adapters."""
    if load.lora_rank is None:
        return shape.num_parameters
    return shape.num_adapter_parameters(load.lora_rank)


def _layer_bytes(shape: ModelShape, load: RankLoad) -> int:
    """Return the bytes that a layer keeps of a token for the backward pass."""
    weight, hidden = load.bytes_a_weight, shape.hidden_width
    num_normed = 4 if load.lora_rank is None else 2
    attention = 2 * shape.num_heads * shape.head_width + 2 * shape.kv_width
    return 8 * hidden + weight * (num_normed * hidden + attention + 4 * shape.mlp_width)


def _kept_bytes(shape: ModelShape, cluster: ClusterSettings, load: RankLoad) -> dict[str, int]:
    """Return the bytes of a token that layers and head keep for the backward pass, by part."""
    layer, head = _layer_bytes(shape, load), 12 * shape.vocabulary_size
    if not cluster.gradient_checkpointing:
        return {"activations": shape.num_layers * layer, "head": head}
    # One layer with the gradients of its MLP, computed again when the head is gone.
    again = layer + 2 * load.bytes_a_weight * shape.mlp_width
    inputs = load.bytes_a_weight * (shape.num_layers + 1) * shape.hidden_width
    return {"activations": inputs + again, "head": max(0, head - again)}


def transfer(cluster: ClusterSettings) -> str:
    """Return how weights travel to engines: ``ipc`` on one GPU, ``nccl`` between two, else Ray."""
    if not cluster.gpus_of("rollout_worker"):
        return "object_store"
    return "ipc" if cluster.is_colocated else "nccl"


def engine_memory(
    shape: ModelShape, cluster: ClusterSettings, filled_gib: float | None, bytes_a_weight: int = 2
) -> Parts:
    """Return the GiB of a rollout engine on each of its GPUs, by part.

    Weights are w N / tp, graphs :data:`GRAPHS_GIB`. The KV cache holds one row of the longest
    length at least, and what is left of ``filled_gib``, which the engine fills whatever it needs;
    None where the size of the GPU is not known.
    """
    weights = bytes_a_weight * shape.num_parameters / _span(cluster) / GIB
    cache = kv_gib_a_token(shape, cluster, bytes_a_weight) * MAX_MODEL_LEN
    if filled_gib is not None:
        cache = max(cache, filled_gib - weights - GRAPHS_GIB)
    return {"weights": weights, "graphs": GRAPHS_GIB, "KV cache": cache}


def kv_gib_a_token(shape: ModelShape, cluster: ClusterSettings, bytes_a_weight: int = 2) -> float:
    """Return the GiB that keys and values of a token take on each GPU: 2 w L kv_width / tp."""
    return 2 * bytes_a_weight * shape.num_layers * shape.kv_width / _span(cluster) / GIB


def _span(cluster: ClusterSettings) -> int:
    """Return the GPUs that an engine spans."""
    return max(1, int(cluster.gpus_of("rollout_worker")))


def scorer_memory(shapes: Mapping[str, ModelShape]) -> Parts:
    """Return the GiB of a scoring worker on its GPU: the weights of each of its models."""
    own = {
        name: bytes_a_weight(n, on_gpu=True) * n / GIB
        for name, n in ((name, shape.num_parameters) for name, shape in shapes.items())
    }
    return {"context": SCORER_GIB} | own


def checkpoint_gib(shape: ModelShape, load: RankLoad) -> float:
    """Return the GiB of one checkpoint of a training, of all ranks: (w + 12) T.

    Frozen weights are not in it. Two lie side by side while the newer is written.
    """
    return (load.bytes_a_weight + 12) * _num_trained(shape, load) / GIB


def weights_gib(shape: ModelShape, dtype: str) -> float:
    """Return the GiB of a model's files with weights of a type: w N."""
    return _bytes_of(dtype) * shape.num_parameters / GIB


def offloaded_gib(shape: ModelShape, cluster: ClusterSettings, load: RankLoad) -> float:
    """Return the GiB of main memory that the optimizer of a rank takes, 0 where it is on the GPU.

    (16 + w + 4 copies of a defence) T / R: masters and moments, gradients as they were reduced and
    in fp32. ZeRO-Offload is Ren et al. 2021 (arXiv:2101.06840).
    """
    if not cluster.offload_optimizer:
        return 0.0
    bytes_each = 16 + load.bytes_a_weight + 4 * load.num_shard_copies
    return bytes_each * _num_trained(shape, load) / cluster.num_ranks / GIB


def host_gib(shape: ModelShape, load: RankLoad, num_ranks_on_node: int) -> float:
    """Return the GiB of main memory in which ranks of a node load models: w N for each of two.

    Each rank reads the model that learns and, beside it, a frozen one. The copy of a checkpoint
    that is written aside does not count: where it does not fit the training waits for the disk.
    """
    num_models = 1 + min(1, load.num_frozen)
    return num_ranks_on_node * num_models * load.bytes_a_weight * shape.num_parameters / GIB


def total(parts: Mapping[str, float]) -> float:
    """Return the GiB of all parts."""
    return sum(parts.values())


def largest(memories: Sequence[Parts]) -> Parts:
    """Return that which is most in all."""
    return max(memories, key=total)
