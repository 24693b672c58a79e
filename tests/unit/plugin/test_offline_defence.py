"""What an offline defence asks for reaches the steps of its training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hardening import attacked_model, make, save_tiny_model

from rpa_ray.defences import OFFLINE_DEFENCES
from rpa_ray.plan import parse_tree
from rpa_ray.plugin import Forward, Need, Objective, OfflineConfig, OfflineDefence, StepContext
from rpa_ray.plugin.objectives import LanguageModel
from rpa_ray.types import LossTerm, ModelOutputs, TokenBatch

SEEN: list[tuple[int, int, bool]] = []
ANSWERED: list[bool] = []
REFUSALS: list[tuple[list[list[int]], list[list[int]]]] = []


class Looking(LanguageModel):
    """Learns refusals, and looks at the other batches and at the frozen model."""

    def loss(
        self, forward: Forward[ModelOutputs], batch: TokenBatch, context: StepContext
    ) -> LossTerm:
        pairs, harmless = context.next_contrast_batch(), context.next_harmless_batch()
        with torch.no_grad():
            now = forward(batch.input_ids, batch.attention_mask).logits
        then = context.frozen(batch.input_ids, batch.attention_mask).logits
        width = batch.input_ids.shape[1]
        REFUSALS.append((batch.input_ids.tolist(), pairs.chosen.input_ids[:, :width].tolist()))
        ANSWERED.extend(harmless.loss_mask.any(dim=1).tolist())
        rows = len(pairs.rejected.input_ids), len(harmless.input_ids)
        SEEN.append((*rows, torch.equal(now.cpu(), then.cpu())))
        return super().loss(forward, batch, context)


class LooksAround(OfflineDefence):
    requires = frozenset({Need.CONTRAST_BATCH, Need.HARMLESS_BATCH})

    class Config(OfflineConfig):
        name: str = "looks_around"
        learning_rate: float = 1e-2
        num_steps: int = 3

    def objective(self) -> Objective[Any, Any]:
        return Looking()


@pytest.mark.usefixtures("process_group")
def test_batches_and_the_model_it_began_with_reach_every_step(
    world_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OFFLINE_DEFENCES, "looks_around", LooksAround)
    policy = save_tiny_model(tmp_path / "policy", world_cache)
    model = {"path": str(policy), "dtype": "bfloat16"}
    settings = parse_tree({"attack": "sft", "defence": "looks_around", "model": model})
    SEEN.clear()
    ANSWERED.clear()
    make(attacked_model(settings, world_cache), settings, tmp_path / "c", world_cache=world_cache)
    # eight rows of each; the first step's model is the one it began with, the last one's is not
    assert [seen[:2] for seen in SEEN] == [(8, 8)] * 3
    assert SEEN[0][2] and not SEEN[-1][2]
    # harmless rows have answers
    assert ANSWERED == [True] * 24
    # and the pairs are those whose refusals the objective learns
    assert all(learned == drawn for learned, drawn in REFUSALS)
