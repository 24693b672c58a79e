"""What tests on a GPU do, as functions of the device: so that a CPU shows that they run at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from device_scene import Case, Outcome, Scene
from fakes import tiny_engine, tiny_policy, token_batch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rpa_ray.actors.engine import EngineConfig
from rpa_ray.actors.pools import RolloutPool
from rpa_ray.config import ClusterSettings
from rpa_ray.learner.engine import Engine, EngineSettings, OptimizerSettings
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.learner.ranks import Ranks
from rpa_ray.plan.memory import GIB, Parts, RankLoad, rank_memory
from rpa_ray.plan.model_shapes import ModelShape
from rpa_ray.weight_sync.source import ShardedSource
from rpa_ray.weight_sync.sync import PushResult, WeightSync

ADAM = OptimizerSettings(learning_rate=1e-2, num_steps=10, weight_decay=0.1)
NUM_UPDATES = 3
KEPT = ("weights", "gradients", "masters")
"""Parts of a rank's memory that stay between two updates, without a frozen copy."""


def one_rank(place: torch.device) -> Ranks:
    return Ranks(rank=0, size=1, device=place)


def update_of(case: Case, place: torch.device, models: Path) -> Outcome:
    """Return what comes of one update by an attack under a defence, by one rank."""
    return Scene(case, place, models, one_rank(place)).outcome([0])


def adam_updates(place: torch.device, *, zero_stage: int) -> tuple[Engine, dict[str, Tensor]]:
    """Return an engine and its weights after updates on a loss whose gradient is its weights'."""
    engine = tiny_engine(zero_stage=zero_stage, optimizer=ADAM, micro_batch_size=2)
    batch = token_batch([[1, 3, 4, 2], [1, 5, 2]])
    for _ in range(NUM_UPDATES):
        # DeepSpeed counts a backward of what went through the engine.
        logits = engine(batch.input_ids.to(place), batch.attention_mask.to(place))[0]
        squares = [p.float().square().sum() for p in engine.module.parameters()]
        engine.backward(torch.stack(squares).sum() / 2 + 0 * logits.float().sum())
        engine.step()
    return engine, {n: p.detach().float().cpu() for n, p in engine.module.named_parameters()}


def adam_by_hand() -> dict[str, Tensor]:
    """Return the same weights by AdamW's formula (Loshchilov and Hutter 2019), in fp64."""
    found = {}
    for name, parameter in tiny_policy().named_parameters():
        weight, first, second = parameter.detach().double(), 0.0, 0.0
        for t in range(1, NUM_UPDATES + 1):
            gradient, (b1, b2) = weight.clone(), ADAM.betas
            first = b1 * first + (1 - b1) * gradient
            second = b2 * second + (1 - b2) * gradient.square()
            weight = weight * (1 - ADAM.learning_rate * ADAM.weight_decay)
            root = (second / (1 - b2**t)).sqrt() + ADAM.eps
            weight = weight - ADAM.learning_rate * first / (1 - b1**t) / root
        found[name] = weight.float()
    return found


def push(pool: RolloutPool, model: LlamaForCausalLM, config: EngineConfig) -> PushResult:
    """Push a model from this process to engines, with the digests of what was sent."""
    source = ShardedSource(model.named_parameters(), dtype=model.dtype)
    return WeightSync(pool=pool, source=source, engine=config, rank=0).push(1, record_digests=True)


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A random model under DeepSpeed in bfloat16, and what is planned for it."""

    engine: Engine
    planned: Parts
    """GiB by part."""
    num_parameters: int

    def planned_bytes(self, parts: Sequence[str]) -> float:
        return sum(self.planned[name] for name in parts) * GIB

    def update(self, place: torch.device, *, num_rows: int, num_tokens: int) -> None:
        """Make one update on rows of token 3, as a cross-entropy of each."""
        ids = torch.full((num_rows, num_tokens), 3, device=place)
        logits = self.engine(ids, torch.ones_like(ids, dtype=torch.bool))[0]
        self.engine.backward(-logits.float().log_softmax(dim=-1)[..., 3].mean())
        self.engine.step()


def sized(*, width: int, num_layers: int, num_tokens: int) -> Sized:
    """Return a Llama of the width under ZeRO-1, planned for the tokens of one backward pass."""
    torch.manual_seed(0)
    vocabulary, heads = 1024, max(1, width // 64)
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 2 * width}
    config = LlamaConfig(
        vocab_size=vocabulary,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
        **sizes,
    )
    module = PolicyModel(LlamaForCausalLM(config).to(torch.bfloat16), value_head_seed=None)
    num_parameters = sum(p.numel() for p in module.parameters())
    shape = ModelShape(
        num_parameters, num_layers, width, 2 * width, heads, heads, vocabulary_size=vocabulary
    )
    load = RankLoad(num_tokens=num_tokens, num_frozen=0, is_served=False)
    settings = EngineSettings(
        optimizer=ADAM, micro_batch_size=8, num_ranks=1, zero_stage=1, bf16=True
    )
    return Sized(
        engine=Engine(module, settings),
        planned=rank_memory(shape, ClusterSettings(num_ranks=1, zero_stage=1), load),
        num_parameters=num_parameters,
    )
