"""RepNoise before the attack, against its formula written out, and what it does to weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fakes import tiny_policy, token_batch
from hardening import (
    are_equal,
    attacked_model,
    gradients_of,
    make,
    save_tiny_model,
    step_of,
    weights,
)
from torch import Tensor

from rpa_ray.defences.offline.repnoise import RepNoise
from rpa_ray.learner.modules import PolicyModel
from rpa_ray.plan import parse_tree
from rpa_ray.types import PairBatch, TokenBatch

PAIRS = PairBatch(
    chosen=token_batch([[1, 4, 14, 15, 2], [1, 5, 2]], num_prompt_tokens=2, width=6),
    rejected=token_batch([[1, 4, 10, 11, 12, 2], [1, 5, 11, 2]], num_prompt_tokens=2, width=6),
)


def repnoise(**settings: Any) -> RepNoise:
    return RepNoise(RepNoise.Config(**settings))


def cross_entropy(logits: Tensor, rows: TokenBatch) -> Tensor:
    """Return the mean over the marked tokens."""
    marked = rows.loss_mask[:, 1:]
    return F.cross_entropy(logits[:, :-1][marked], rows.input_ids[:, 1:][marked])


def squared_mmd(one: Tensor, other: Tensor) -> Tensor:
    """Return the biased estimate over five kernels, a pair of vectors at a time."""
    both = torch.cat([one, other])
    num = len(both)
    distances = torch.stack([(both - row).square().sum(dim=1) for row in both])
    width = distances.detach().sum() / (num**2 - num)
    kernel = sum(torch.exp(-distances / (width * 2.0 ** (i - 2))) for i in range(5))
    assert isinstance(kernel, Tensor)
    half = num // 2
    within = kernel[:half, :half] + kernel[half:, half:]
    return (within - kernel[:half, half:] - kernel[half:, :half]).mean()


def written_out(module: PolicyModel, *, alpha: float, beta: float, update: int) -> Tensor:
    """Return ``L_retain + beta * L_noise - alpha * log A``."""
    model, unsafe, mlps = module.policy, PAIRS.rejected, []
    hooks = [
        layer.mlp.register_forward_hook(lambda mlp, args, output: mlps.append(output))
        for layer in model.model.layers
    ]
    out = model(unsafe.input_ids, attention_mask=unsafe.attention_mask, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    mask = unsafe.loss_mask[:, :, None].float()
    noises = []
    for layer, features in enumerate(mlps):
        drawn = torch.Generator().manual_seed(update * 65536 + layer)
        noise = torch.randn(features.shape, generator=drawn)
        noises.append(squared_mmd((features * mask).flatten(1), (noise * mask).flatten(1)))
    by_layer = [
        cross_entropy(model.lm_head(model.model.norm(hidden)), unsafe)
        for hidden in out.hidden_states
    ]
    final = cross_entropy(out.logits, unsafe)
    level = 1 + (final + torch.stack(by_layer).sum()) / len(by_layer)
    safe = PAIRS.chosen
    kept = model(safe.input_ids, attention_mask=safe.attention_mask).logits
    noise_loss = torch.stack(noises).mean()
    return cross_entropy(kept, safe) + beta * noise_loss - alpha * level.log()


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.001), (2.0, 3.0), (0.0, 1.0), (1.0, 0.0)])
def test_loss_and_gradient_of_a_step_are_those_of_the_formula(alpha: float, beta: float) -> None:
    module = tiny_policy(value_head=False)
    expected = written_out(module, alpha=alpha, beta=beta, update=3)
    found = step_of(repnoise(alpha=alpha, beta=beta), module, pairs=PAIRS, update=3).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = gradients_of(expected, module)
    for name, gradient in gradients_of(found, module).items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-5, atol=1e-5)


def test_the_batch_of_the_mmd_is_measured() -> None:
    term = step_of(repnoise(), tiny_policy(value_head=False), pairs=PAIRS)
    assert term.metrics["defence/mmd_batch"] == 2.0
    assert set(term.metrics) == {
        "train/loss",
        "defence/mmd_batch",
        "defence/noise_mmd",
        "defence/log_unsafe_level",
    }


def test_refusals_count_where_they_differ_in_the_mode_of_the_authors_code() -> None:
    module = tiny_policy(value_head=False)
    term = step_of(repnoise(alpha=0.0, beta=0.0, mask="positionwise_diff"), module, pairs=PAIRS)
    # row 0: 14 15 2 against 10 11 12; row 1: its end against 11
    differs = torch.zeros(2, 6, dtype=torch.bool)
    differs[0, 2:5] = differs[1, 2] = True
    safe = replace(PAIRS.chosen, loss_mask=differs)
    logits = module.policy(safe.input_ids, attention_mask=safe.attention_mask).logits
    torch.testing.assert_close(term.loss, cross_entropy(logits, safe))


def test_its_settings_are_those_of_the_paper() -> None:
    config = RepNoise.Config()
    assert (config.learning_rate, config.num_steps, config.batch_size) == (4e-5, 877, 8)
    assert (config.alpha, config.beta, config.mask) == (1.0, 0.001, "response")


@pytest.mark.usefixtures("process_group")
def test_without_noise_and_ascent_it_is_sft_on_refusals(world_cache: Path, tmp_path: Path) -> None:
    policy = save_tiny_model(tmp_path / "policy", world_cache)

    def made(name: str, strength: float, *, sft: bool = False) -> dict[str, Tensor]:
        quick = {"num_steps": 4, "learning_rate": 1e-2, "alpha": strength, "beta": strength}
        settings = parse_tree(
            {
                "attack": "sft",
                "defence": {"name": "repnoise", **quick},
                "model": {"path": str(policy), "dtype": "bfloat16"},
            }
        )
        recipe = attacked_model(settings, world_cache)
        if sft:
            recipe = replace(recipe, defence=None)
        return weights(make(recipe, settings, tmp_path / name, world_cache=world_cache))

    sft = made("sft", 0.0, sft=True)
    assert are_equal(sft, made("zero", 0.0))
    assert not are_equal(sft, made("one", 1.0))
