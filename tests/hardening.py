"""Making models of recipes in this process, from a tiny language model of the world's language."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fakes import ONE_RANK, context_of, forward_of, frozen_of, tiny_config
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from rpa_ray.actors.pools import RolloutPool, ScorerPool
from rpa_ray.config import ClusterSettings, ExperimentSettings
from rpa_ray.jobs.model import make_model
from rpa_ray.jobs.process import LearnerProcess
from rpa_ray.learner.modules import PolicyModel, load_policy
from rpa_ray.plugin import OfflineDefence
from rpa_ray.recipes.cell_models import CellInputs
from rpa_ray.recipes.model import ModelRecipe
from rpa_ray.recipes.to_make import ModelJob
from rpa_ray.types import LossTerm, PairBatch, TokenBatch
from rpa_ray.world.datasets import world_folder


class Silent:
    """Hears of progress and says nothing."""

    def start(self, job: str, num_steps: int) -> None: ...

    def advance(self, job: str, step: int, note: str) -> None: ...


def save_tiny_model(folder: Path, world_cache: Path) -> Path:
    """Write a folder with an untrained language model in bfloat16; return it."""
    tokenizer = AutoTokenizer.from_pretrained(world_folder(0, world_cache) / "tokenizer")
    torch.manual_seed(0)
    config = tiny_config(tie_word_embeddings=True)
    config.update({"vocab_size": len(tokenizer), "max_position_embeddings": 128})
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make(
    recipe: ModelRecipe,
    settings: ExperimentSettings,
    cache: Path,
    *,
    world_cache: Path,
    zero_stage: int = 1,
    checkpoint_interval_s: float = 30.0,
    progress: Silent | None = None,
    rollouts: RolloutPool | None = None,
    scorers: ScorerPool | None = None,
) -> Path:
    """Make the model of a recipe in a cache of its own; return its folder.

    Pools are for those that learn from the model's own answers.
    """
    if not cache.is_dir():
        cache.mkdir()
        (cache / world_folder(0, cache).name).symlink_to(world_folder(0, world_cache))
    nobody: Any = None
    process = LearnerProcess(
        ranks=ONE_RANK,
        rollouts=rollouts or nobody,
        scorers=scorers or nobody,
        cache=cache,
        cluster=ClusterSettings(
            zero_stage=zero_stage,  # type: ignore[arg-type]
            checkpoint_interval_s=checkpoint_interval_s,
        ),
        progress=progress or Silent(),
    )
    folder = make_model(ModelJob(recipe=recipe, data=settings.data), process)
    assert recipe.is_made(cache)
    return folder


def attacked_model(settings: ExperimentSettings, cache: Path) -> ModelRecipe:
    """Return the recipe of the model that a cell attacks."""
    policy = CellInputs(settings, cache).models.policy
    assert isinstance(policy, ModelRecipe)
    return policy


def step_of(
    defence: OfflineDefence,
    module: PolicyModel,
    *,
    pairs: PairBatch,
    harmless: TokenBatch | None = None,
    start: PolicyModel | None = None,
    num_ranks: int = 1,
    update: int = 0,
) -> LossTerm:
    """Return the loss of one step as if every rank held these rows, and what was measured."""
    objective, hooks = defence.objective(), defence.hooks()
    start = start or copy.deepcopy(module)
    hooks.attach(module, {})
    hooks.attach_compared(start)
    context = context_of(
        num_ranks=num_ranks,
        update=update,
        contrast_batch=pairs,
        harmless_batch=harmless,
        frozen=frozen_of(start),
    )
    objective, batch = hooks.plan_step(objective, pairs.chosen, context)
    context = replace(context, num_terms=num_ranks * int(objective.num_terms(batch)))
    term = objective.loss(forward_of(module), batch, context)
    extra = hooks.extra_loss(forward_of(module), context)
    if extra is None:
        return term
    return LossTerm(loss=term.loss + extra.loss, metrics=term.metrics | extra.metrics)


def gradients_of(loss: Tensor, module: PolicyModel) -> dict[str, Tensor]:
    """Return the gradient of a loss by each trained weight of a language model."""
    named = {name: p for name, p in module.policy.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a model that was made."""
    return dict(load_policy(folder, dtype=torch.bfloat16).named_parameters())


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Return whether two models are the same to the last bit."""
    return all(torch.equal(one[name], other[name]) for name in one)
