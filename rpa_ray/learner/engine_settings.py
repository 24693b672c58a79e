"""How a training steps and what DeepSpeed is told of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rpa_ray.learner.size import BUCKET_ELEMENTS

CHECKPOINT_KEYS = ("checkpoint", "nebula", "datastates_ckpt")
"""Sections of a DeepSpeed JSON that have state kept in other ways, which may run what they read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """How one training job steps."""

    learning_rate: float
    num_steps: int
    """Optimizer updates of the whole job; the schedule's length."""
    schedule: str = "constant"
    """``constant``, or ``cosine`` or ``linear`` (both to zero)."""
    warmup_frac: float = 0.0
    max_grad_norm: float = 0.0
    """0 leaves gradients unclipped."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def learning_rate_after(self, num_done: int) -> float:
        """Return the rate of the update that comes after so many scheduled ones."""
        num_warmup = round(self.warmup_frac * self.num_steps)
        if num_done < num_warmup:
            return self.learning_rate * (num_done + 1) / num_warmup
        if self.schedule == "constant":
            return self.learning_rate
        share = min(1.0, (num_done - num_warmup) / max(1, self.num_steps - num_warmup))
        if self.schedule == "linear":
            return self.learning_rate * (1 - share)
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * share)).item())
        return self.learning_rate * cosine


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """What DeepSpeed is told."""

    optimizer: OptimizerSettings
    micro_batch_size: int
    """Most rows of one rank in one backward."""
    num_ranks: int
    zero_stage: int
    bf16: bool
    micro_batch_tokens: int | None = None
    """Most tokens of one rank in one backward, padding included; None bounds the rows alone."""
    offload_optimizer: bool = False
    """Whether masters and the optimizer's state lie in main memory; under ZeRO-3 alone."""
    deepspeed_file: Path | None = None


def deepspeed_config(settings: EngineSettings, num_trained: int) -> dict[str, Any]:
    """Return the DeepSpeed JSON of a job; the user's own file wins key by key.

    The bucket in which ZeRO sums gradients is no larger than the ``num_trained`` parameters that
    have one: DeepSpeed takes its memory whether it is filled or not. DeepSpeed accumulates nothing
    by itself: it would divide losses that are already divided by the counts of the whole step.

    Raises:
        ValueError: the user's file sets one of the batch sizes, or how checkpoints are written.
    """
    optimizer = settings.optimizer
    cpu = not torch.cuda.is_available()
    batch_sizes = {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "train_batch_size": settings.micro_batch_size * settings.num_ranks,
    }
    config: dict[str, Any] = batch_sizes | {
        "steps_per_print": 10**9,
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": settings.bf16},
        "zero_optimization": {
            "stage": settings.zero_stage,
            "reduce_bucket_size": min(BUCKET_ELEMENTS, num_trained),
        },
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.learning_rate,
                "betas": list(optimizer.betas),
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
                # DeepSpeed's own Adam is compiled at its first use, which asks for the compiler of
                # the very CUDA that torch was built with.
                "torch_adam": True,
                "fused": True,
            },
        },
    }
    if settings.offload_optimizer:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": not cpu}
        # torch's Adam, as on the GPU: DeepSpeed's own would be compiled and round otherwise.
        config["zero_force_ds_cpu_optimizer"] = False
    if settings.zero_stage == 3 and cpu:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    if settings.deepspeed_file is not None:
        own = json.loads(settings.deepspeed_file.read_text(encoding="utf-8"))
        set_by = dict.fromkeys(batch_sizes, "cluster.micro_batch_size sets it")
        set_by |= dict.fromkeys(CHECKPOINT_KEYS, "checkpoints are written in one way alone")
        for name in sorted(set_by.keys() & own.keys()):
            raise ValueError(
                f"cluster.deepspeed must leave {name} out, got {own[name]!r}. Remove it from "
                f"{settings.deepspeed_file}; {set_by[name]}."
            )
        config.update(own)
    return config
