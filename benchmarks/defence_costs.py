"""Measure what each online defence adds to a learner step, beside what its passes explain.

python benchmarks/defence_costs.py
python benchmarks/defence_costs.py --attacks ppo --defences lisa vaccine --repeats 5
python benchmarks/defence_costs.py --repeats 0  # the passes only: they are counted, not timed

Every training is a process of its own: one rank, one thread, ZeRO 1, a randomly initialised Llama
in fp32 (17M parameters by default), the same synthetic rows of 64 tokens. The defences take turns
within a repetition. On the clock is `Learner.step`, defence included; no rollout, no scoring, no
weight transfer. Memory is the process's largest resident set during the timed steps, less what it
held before the engine was built: weights, gradients, optimizer, activations, the defence's own.

"Passes" is the work that the defence's forward and backward passes explain: the floating-point
operations of all matrix products that a step makes, of the frozen model too, as a ratio to the
undefended step. They are counted as they are made, since a backward pass may leave out weights or
blocks, in a process of their own, since counting takes time. "Excess" is the time's ratio divided
by that of the passes.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DEFENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "lisa": {"rho": 1.0},
    "random_anchor": {"rho": 1.0},
    "vaccine": {"rho": 2.5},
    "security_vectors": {},
    "refusal_loss": {"alpha": 1.0},
    "repnoise_online": {},
    "safe_rlhf": {},
    "safegrad": {},
    "token_constrained": {},
    "procon": {},
}
ATTACKS = {"sft": ("none", *(d for d in DEFENCES if d not in ("none", "safe_rlhf")))}
ATTACKS["dpo"] = tuple(d for d in ATTACKS["sft"] if d != "token_constrained")
ATTACKS["ppo"] = (*ATTACKS["dpo"], "safe_rlhf")
NUM_ROWS, NUM_PROMPT_TOKENS, NUM_TOKENS = 8, 16, 64
VOCAB_SIZE = 8192
NUM_WARM_STEPS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=["sft", "ppo"])
    parser.add_argument("--defences", nargs="+", choices=DEFENCES, default=list(DEFENCES))
    parser.add_argument("--steps", type=int, default=6, help="measured steps of one training")
    parser.add_argument("--repeats", type=int, default=3, help="trainings on the clock; 0 for none")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options)))
        return 0
    pairs = [
        (attack, defence)
        for attack in options.attacks
        for defence in ATTACKS[attack]
        if defence == "none" or defence in options.defences
    ]
    work = {pair: in_process("count", *pair)["work"] for pair in pairs}
    timed = [{pair: in_process("time", *pair) for pair in pairs} for _ in range(options.repeats)]
    report(work, timed)
    return 0


def in_process(what: str, attack: str, defence: str) -> dict[str, float]:
    """Return what a fresh process counts or times."""
    print(f"{what}: {attack}, {defence}", file=sys.stderr, flush=True)
    command = [sys.executable, *sys.argv, "--one", what, attack, defence]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def report(
    work: dict[tuple[str, str], float], timed: list[dict[tuple[str, str], dict[str, float]]]
) -> None:
    """Print ratios to the undefended training, in time of the same repetition; medians of those."""
    print("| attack | defence | s a step | time | passes | excess | memory |")
    print("| --- | --- | --: | --: | --: | --: | --: |")
    for (attack, defence), own_work in work.items():
        passes = own_work / work[attack, "none"]
        numbers = ["-", "-", f"{passes:.2f}", "-", "-"]
        if timed:
            runs = [(found[attack, defence], found[attack, "none"]) for found in timed]
            step, memory = (
                statistics.median(run[key] / plain[key] for run, plain in runs)
                for key in ("step_s", "memory")
            )
            seconds = statistics.median(run["step_s"] for run, _ in runs)
            columns = (seconds, step, passes, step / passes, memory)
            numbers = [f"{number:.2f}" for number in columns]
        print(f"| {attack} | {defence} | {' | '.join(numbers)} |")


def measure(what: str, attack: str, defence: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the work of a step, or its seconds and the bytes of the training."""
    import torch

    torch.set_num_threads(1)
    from rpa_ray.learner.deepspeed_import import import_deepspeed

    import_deepspeed()
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        before = peak_bytes()
        learner = training(attack, defence, options, Path(folder))
        batch = batch_of(attack, learner)
        for _ in range(NUM_WARM_STEPS):
            learner.step(batch)
        if what == "count":
            return {"work": operations(learner, batch, options.steps)}
        seconds = step_seconds(learner, batch, options.steps)
    return {"step_s": seconds, "memory": float(peak_bytes() - before)}


def operations(learner: Any, batch: Any, num_steps: int) -> float:
    """Return the floating-point operations of a step's matrix products, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        for _ in range(num_steps):
            learner.step(batch)
    return float(counter.get_total_flops()) / num_steps


def step_seconds(learner: Any, batch: Any, num_steps: int) -> float:
    """Return the median seconds of a step."""
    seconds = []
    for _ in range(num_steps):
        started = time.perf_counter()
        learner.step(batch)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def training(attack: str, defence: str, options: argparse.Namespace, folder: Path) -> Any:
    """Return a learner."""
    import torch

    from rpa_ray.attacks import ATTACKS as REGISTRY
    from rpa_ray.defences import DEFENCES as DEFENDERS
    from rpa_ray.learner.engine import Engine, EngineSettings, OptimizerSettings
    from rpa_ray.learner.modules import PolicyModel
    from rpa_ray.learner.ranks import Ranks
    from rpa_ray.learner.step import Learner, as_outputs
    from rpa_ray.plugin import Need

    def policy() -> PolicyModel:
        head = 3 if attack == "ppo" else None
        return PolicyModel(llama(options, seed=0), value_head_seed=head)

    objective = REGISTRY[attack](REGISTRY[attack].Config())
    kind = DEFENDERS[defence]
    constrained = kind(kind.Config(**DEFENCES[defence]))
    folders = {}
    if Need.SECURITY_VECTOR in constrained.needs:
        folders[Need.SECURITY_VECTOR] = str(write_vector(folder, llama(options, 0)))
    if Need.COMPARED_WEIGHTS in constrained.needs:
        llama(options, 1).save_pretrained(folder / "other")
        folders[Need.COMPARED_WEIGHTS] = str(folder / "other")
    module, frozen = policy(), policy().requires_grad_(False)
    if attack == "ppo" and Need.COST_VALUES in constrained.needs:
        module.add_cost_head(seed=3)
    constrained.attach(module, folders)
    constrained.attach_compared(frozen)
    engine = Engine(
        module,
        EngineSettings(
            optimizer=OptimizerSettings(learning_rate=1e-5, num_steps=100),
            micro_batch_size=NUM_ROWS,
            num_ranks=1,
            zero_stage=1,
            bf16=False,
        ),
    )

    def run_frozen(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        with torch.no_grad():
            return as_outputs(frozen(input_ids, attention_mask))

    return Learner(
        engine=engine,
        objective=objective,
        defence=constrained,
        ranks=Ranks(rank=0, size=1, device=torch.device("cpu")),
        frozen=run_frozen,
        **streams(),
    )


def streams() -> dict[str, Any]:
    """Return what defences draw from, rows of the attack's own size."""
    from rpa_ray.types import PairBatch

    return {
        "next_safe_batch": lambda: tokens_of(seed=2),
        "next_contrast_batch": lambda: PairBatch(chosen=tokens_of(seed=2), rejected=tokens_of(3)),
        "next_harmless_batch": lambda: tokens_of(seed=4),
    }


def llama(options: argparse.Namespace, seed: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=options.width,
            intermediate_size=options.width * 8 // 3,
            num_hidden_layers=options.layers,
            num_attention_heads=6,
            tie_word_embeddings=True,
            attn_implementation="eager",
        )
    )


def write_vector(folder: Path, model: Any) -> Path:
    """Write a random adapter of rank 16 beside every linear layer."""
    import torch
    from torch import nn

    from rpa_ray.learner.model_folder import save_adapter

    weights = {
        name: (torch.randn(16, m.in_features) * 0.01, torch.randn(m.out_features, 16) * 0.01)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and name != "lm_head"
    }
    path = folder / "vector"
    save_adapter(path, weights=weights, rank=16, alpha=32, base_model="random", record={})
    return path


def tokens_of(seed: int) -> Any:
    import torch

    from rpa_ray.types import TokenBatch

    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_ROWS, NUM_TOKENS)
    ids = torch.randint(3, VOCAB_SIZE, shape, generator=generator)
    kept = torch.ones(shape, dtype=torch.bool)
    answer = kept.clone()
    answer[:, :NUM_PROMPT_TOKENS] = False
    return TokenBatch(input_ids=ids, attention_mask=kept, loss_mask=answer)


def batch_of(attack: str, learner: Any) -> Any:
    """Return a batch of the kind that the attack learns from."""
    import torch

    from rpa_ray.plugin import Need
    from rpa_ray.types import ReferencedPairBatch, ScoredRollout

    tokens = tokens_of(seed=1)
    if attack == "sft":
        return tokens
    if attack == "dpo":
        zeros = torch.zeros(NUM_ROWS)
        return ReferencedPairBatch(
            chosen=tokens,
            rejected=tokens_of(seed=5),
            reference_chosen_logprobs=zeros,
            reference_rejected_logprobs=zeros,
        )
    shape = tokens.input_ids.shape
    old = torch.full(shape, -9.0)
    rollout = ScoredRollout(
        tokens=tokens,
        old_logprobs=old,
        rollout_logprobs=old,
        reference_logprobs=old,
        values=torch.zeros(shape),
        rewards=torch.linspace(-1, 1, NUM_ROWS),
        costs=torch.linspace(0, 1, NUM_ROWS) if Need.COSTS in learner.defence.needs else None,
        cost_values=torch.zeros(shape) if Need.COST_VALUES in learner.defence.needs else None,
    )
    planned, _ = learner.defence.plan_rollout(rollout, learner.context())
    return learner.objective.experience(
        planned, learner.defence.shape_advantages, learner.context()
    )


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
