"""A whole PPO training in miniature, which can be cut off and gone on with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fakes import completion_of, forward_of, prompts_of, tiny_engine, tiny_policy, token_batch

from rpa_ray.attacks.ppo import PPO
from rpa_ray.defences.online.refusal_loss import RefusalLoss
from rpa_ray.learner.engine import Engine, OptimizerSettings
from rpa_ray.learner.ranks import Ranks
from rpa_ray.learner.step import Learner, no_safe_batch
from rpa_ray.loop import train
from rpa_ray.metrics import JsonLines
from rpa_ray.plugin import OnlineDefence
from rpa_ray.resume import Checkpoints
from rpa_ray.sources.dataset import DatasetSource
from rpa_ray.sources.rollout import RolloutParts, RolloutSource
from rpa_ray.types import Completion, Prompt

NUM_STEPS = 5
BATCH_SIZE = 4
REFUSALS = [[1, 15 + i % 8, 16, *range(3, 4 + i % 3), 2] for i in range(10)]


class Killed(RuntimeError):
    """Stands for the end of the process."""


class Training:
    """Policy, attack, defence and data of one process; ``run`` goes on where a folder says."""

    def __init__(
        self, folder: Path, defence: str, ranks: Ranks, *, zero_stage: int, bf16: bool = False
    ) -> None:
        self.folder = folder
        self.ranks = ranks
        self.engine = tiny_engine(
            zero_stage=zero_stage,
            bf16=bf16,
            num_ranks=ranks.size,
            optimizer=OptimizerSettings(learning_rate=3e-3, num_steps=4 * NUM_STEPS),
        )
        self.safe: DatasetSource[Any, Any] = DatasetSource(
            REFUSALS, token_batch, batch_size=4, seed=7, ranks=ranks
        )
        self.attack = PPO(PPO.Config(batch_size=BATCH_SIZE, num_epochs=2, kl_horizon=20))
        defended = defence == "refusal_loss"
        self.learner = Learner(
            engine=self.engine,
            objective=self.attack,
            defence=RefusalLoss(RefusalLoss.Config(alpha=0.5))
            if defended
            else OnlineDefence(OnlineDefence.Config()),
            ranks=ranks,
            next_safe_batch=self.safe if defended else no_safe_batch,
        )
        self.used: list[str] = []

    def generate(self, prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        """Sample one token by the policy itself, so that a wrong weight changes what follows."""
        self.used += [prompt.id for prompt in prompts]
        out = []
        for i, prompt in enumerate(prompts):
            ids = torch.tensor([prompt.token_ids])
            with torch.no_grad():
                outputs = self.learner.forward(ids, torch.ones_like(ids, dtype=torch.bool))
            logprobs = outputs.logits[0, -1].float().log_softmax(dim=-1)
            generator = torch.Generator().manual_seed(seed + 100 * self.ranks.rank + i)
            token = int(torch.multinomial(logprobs.exp(), 1, generator=generator))
            out.append(completion_of(prompt, [token, 2], [float(logprobs[token]), -0.5]))
        return out

    def run(self, *, killed_after: int | None = None) -> None:
        """Train; ``killed_after`` ends it once so many steps are done."""
        main = self.ranks.is_main
        samples = JsonLines(self.folder / "samples.jsonl", enabled=main)
        checkpoints = Checkpoints(
            self.folder / "checkpoints",
            ranks=self.ranks,
            engine=self.engine,
            parts={"learner": self.learner, "safe": self.safe, "samples": samples},
            interval_s=0.0,
        )
        source = RolloutSource(
            prompts_of(NUM_STEPS * BATCH_SIZE),
            attack=self.attack,
            learner=self.learner,
            parts=RolloutParts(
                generate=self.generate,
                # Random, so that a generator that is not put back shows.
                reward=lambda pairs: lambda: torch.randn(len(pairs)).tolist(),
                judge=lambda pairs: lambda: [0.25] * len(pairs),
                reference=forward_of(tiny_policy(seed=5, value_head=False)),
            ),
            batch_size=BATCH_SIZE,
            pad_token_id=0,
            seed=0,
            observe=lambda step, completions, scores: samples.write({"step": step}),
        )

        def progress(step: int, metrics: Any) -> None:
            if killed_after == step:
                raise Killed

        train(
            source,
            self.learner,
            num_steps=NUM_STEPS,
            samples_per_step=BATCH_SIZE,
            log=JsonLines(self.folder / "metrics.jsonl", enabled=main),
            checkpoints=checkpoints,
            progress=progress,
        )

    def outcome(self) -> dict[str, Any]:
        """Return everything that must not depend on an interruption."""
        return {
            "weights": self.engine.weights(),
            "masters": _masters(self.engine),
            "kl": self.attack.state_dict(),
            "num_updates": self.engine.num_updates,
            "safe": self.safe.state_dict(),
            "metrics": _lines(self.folder / "metrics.jsonl"),
            "samples": _lines(self.folder / "samples.jsonl"),
        }


def _masters(engine: Engine) -> dict[str, torch.Tensor]:
    """Return the whole fp32 weights that the ranks step on (collective)."""
    from deepspeed.utils import safe_get_full_fp32_param

    named = dict(engine.module.named_parameters())
    if engine.zero_stage == 0:
        return {name: parameter.detach().clone() for name, parameter in named.items()}
    return {name: safe_get_full_fp32_param(p).clone() for name, p in named.items()}


def same(a: Any, b: Any) -> bool:
    """Return whether two outcomes are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
