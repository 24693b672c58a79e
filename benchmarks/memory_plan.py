"""Count the bytes of all tensors that trainings hold, and set them beside the plan of memory.

python benchmarks/memory_plan.py
python benchmarks/memory_plan.py --cases "zero 3, 2 ranks" --rows 4 --tokens 64

Every training is one of a randomly initialised Llama in bfloat16 (122M parameters by default), each
rank a process of its own on gloo, with two micro-batches an update so that gradients wait while
activations are held. Counted are the storages of tensors that are alive, from before the model is
made: when they are made, by a dispatch mode, until they go. What kernels and DeepSpeed take within
one operation is not seen. Left out of the plan's side are what only GPUs have: contexts, buffers of
NCCL, of a push and of graphs. Attention is SDPA, as on a GPU: the kernel for CPUs keeps queries,
keys, values, outputs and one number a row, as those for GPUs do.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import weakref
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary
from transformers import LlamaConfig, LlamaForCausalLM

from rpa_ray.attacks import ATTACKS
from rpa_ray.config import ClusterSettings, LoraSettings
from rpa_ray.defences import DEFENCES
from rpa_ray.learner.engine import Engine, EngineSettings, OptimizerSettings
from rpa_ray.learner.modules import PolicyModel, add_lora, checkpoint_layers
from rpa_ray.learner.ranks import Ranks
from rpa_ray.learner.step import Learner, as_outputs, run_without_adapters
from rpa_ray.plan.memory import Parts, RankLoad, rank_memory
from rpa_ray.plan.model_shapes import ModelShape
from rpa_ray.types import TokenBatch

MIB = 2**20
ONLY_ON_GPUS = ("context", "push")
NUM_MICRO_BATCHES = 2


@dataclass(frozen=True)
class Case:
    """A training: how it is shared, what it learns, and what stands against it."""

    zero_stage: int = 1
    num_ranks: int = 1
    lora_rank: int | None = None
    held: bool = True
    """Whether a copy of the model as it was is held, or the adapters are switched off for it."""
    checkpointed: bool = False
    """Whether layers are computed once more in the backward pass."""
    defence: str = "none"
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "zero 1": Case(),
    "zero 1, 2 ranks": Case(1, 2),
    "zero 2, 2 ranks": Case(2, 2),
    "zero 3, 2 ranks": Case(3, 2),
    "zero 1, checkpointed": Case(checkpointed=True),
    "lora, a copy held": Case(lora_rank=16),
    "lora": Case(lora_rank=16, held=False),
    "lora, zero 2, 2 ranks": Case(2, 2, lora_rank=16, held=False),
    "lisa": Case(defence="lisa", settings={"rho": 1.0}),
    "lisa, zero 2, 2 ranks": Case(2, 2, defence="lisa", settings={"rho": 1.0}),
    "random_anchor": Case(defence="random_anchor", settings={"rho": 1.0}),
    "refusal_loss": Case(defence="refusal_loss", settings={"probe_every": 1}),
    "safegrad": Case(defence="safegrad"),
    "vaccine": Case(defence="vaccine", settings={"rho": 2.5}),
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages from the operation that makes them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_iter(outputs):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._add(tensor.untyped_storage())
        return outputs

    def reset_peak(self) -> None:
        """Let the peak be that from now on."""
        self.peak = self.now

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._sizes:
            return
        self._sizes[storage] = storage.nbytes()
        self._change(storage.nbytes())
        weakref.finalize(storage, self._change, -storage.nbytes())

    def _change(self, num_bytes: int) -> None:
        self.now += num_bytes
        self.peak = max(self.peak, self.now)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--mlp-width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--head-width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=33_000)
    parser.add_argument("--rows", type=int, default=4, help="of one rank in one backward pass")
    parser.add_argument("--tokens", type=int, default=64, help="of a row")
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        name, rank, store = options.rank
        print(json.dumps(in_group(CASES[name], options, int(rank), store)))
        return
    print("| training | at rest, MiB | planned | ratio | at the peak, MiB | planned | ratio |")
    print("| --- | --: | --: | --: | --: | --: | --: |", flush=True)
    for name in options.cases:
        print(f"| {name} | {' | '.join(row(started(name)))} |", flush=True)


def started(name: str) -> dict[str, Any]:
    """Return what the first rank of a case counts, each rank in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, *sys.argv, "--rank", name, str(rank), f"{folder}/store"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(CASES[name].num_ranks)
        ]
        told = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise SystemExit(f"{name}: a rank failed")
    found: dict[str, Any] = json.loads(told[0].splitlines()[-1])
    return found


def row(found: dict[str, Any]) -> list[str]:
    """Return measured and planned MiB, at rest and at the peak, with their ratios."""
    parts = found["planned"]
    resting = sum(parts.get(n, 0.0) for n in ("weights", "masters", "frozen copies"))
    columns = []
    for measured, planned in (
        (found["rest"] - found["defence"], resting * 1024),
        (found["peak"], sum(parts.values()) * 1024),
    ):
        columns += [f"{measured:.0f}", f"{planned:.0f}", f"{planned / measured:.2f}"]
    return columns


def in_group(case: Case, options: argparse.Namespace, rank: int, store: str) -> dict[str, Any]:
    """Return what one rank counts."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=case.num_ranks
    )
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=options.mlp_width,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=options.head_width,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return counted(case, config, num_rows=options.rows, num_tokens=options.tokens)


def counted(case: Case, config: LlamaConfig, *, num_rows: int, num_tokens: int) -> dict[str, Any]:
    """Return MiB at rest and at the peak of an update on this rank, and GiB by part as planned."""
    with LiveBytes() as live:
        learner = training(case, config, num_rows, num_tokens)
        batch = tokens_of(config.vocab_size, NUM_MICRO_BATCHES * num_rows, num_tokens)
        learner.step(batch)  # the optimizer has its moments, the defence its anchor
        rest = live.now
        live.reset_peak()
        learner.step(batch)
    anchors = getattr(learner.defence, "anchors", {}).values()
    return {
        "rest": rest / MIB,
        "peak": live.peak / MIB,
        "defence": sum(anchor.nbytes for anchor in anchors) / MIB,
        "planned": planned(case, config, num_rows * num_tokens),
    }


def planned(case: Case, config: LlamaConfig, num_tokens: int) -> Parts:
    """Return GiB by part, less those that only GPUs have."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shape = ModelShape(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_layers=config.num_hidden_layers,
        hidden_width=config.hidden_size,
        mlp_width=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        vocabulary_size=config.vocab_size,
        own_head_width=config.head_dim,
    )
    cluster = ClusterSettings(
        zero_stage=case.zero_stage,
        num_ranks=case.num_ranks,
        gradient_checkpointing=case.checkpointed,
    )
    rows_of_defence = 1 if case.defence in ("refusal_loss", "safegrad") else 0
    load = RankLoad(
        num_tokens=(1 + rows_of_defence) * num_tokens,
        num_frozen=int(case.held),
        lora_rank=case.lora_rank,
        num_shard_copies=DEFENCES[case.defence].num_shard_copies,
    )
    parts = rank_memory(shape, cluster, load)
    return {name: gib for name, gib in parts.items() if name not in ONLY_ON_GPUS}


def training(case: Case, config: LlamaConfig, num_rows: int, num_tokens: int) -> Learner:
    """Return the learner of a case; what its defence draws is as large as a micro-batch."""

    def model() -> PolicyModel:
        torch.manual_seed(0)
        made = LlamaForCausalLM(config).to(torch.bfloat16)
        return PolicyModel(made, value_head_seed=None)

    module = model()
    if case.lora_rank is not None:
        add_lora(module, LoraSettings(rank=case.lora_rank), seed=0)
    kind = DEFENCES[case.defence]
    defence = kind(kind.Config(**case.settings))
    defence.attach(module, {})
    if case.checkpointed:
        checkpoint_layers(module)
    engine = Engine(
        module,
        EngineSettings(
            optimizer=OptimizerSettings(learning_rate=1e-5, num_steps=100),
            micro_batch_size=num_rows,
            num_ranks=case.num_ranks,
            zero_stage=case.zero_stage,
            bf16=True,
        ),
    )

    if case.held:
        frozen = model().requires_grad_(False)
        defence.attach_compared(frozen)
        run_frozen: Any = torch.no_grad()(lambda ids, mask: as_outputs(frozen(ids, mask)))
    else:
        run_frozen = partial(run_without_adapters, engine)
    return Learner(
        engine=engine,
        objective=ATTACKS["sft"](ATTACKS["sft"].Config()),
        defence=defence,
        ranks=Ranks.current(),
        next_safe_batch=lambda: tokens_of(config.vocab_size, num_rows, num_tokens),
        frozen=run_frozen,
    )


def tokens_of(vocabulary_size: int, num_rows: int, num_tokens: int) -> TokenBatch:
    """Return rows of which the first is shorter, so that padding is masked."""
    ids = torch.randint(3, vocabulary_size, (num_rows, num_tokens))
    kept = torch.ones_like(ids, dtype=torch.bool)
    kept[0, -num_tokens // 4 :] = False
    return TokenBatch(input_ids=ids, attention_mask=kept, loss_mask=kept)


if __name__ == "__main__":
    main()
