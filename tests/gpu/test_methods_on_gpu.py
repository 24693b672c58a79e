"""Numbers of a GPU are those of the CPU: methods and the optimizer."""

from pathlib import Path

import pytest
import torch
from device_scene import PAIRS, cases_of
from gpu_scene import adam_by_hand, adam_updates, update_of
from pretended import CPU, stand_in

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("rank_on_gpu")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(("attack", "defence"), PAIRS)
def test_an_update_on_the_gpu_is_that_of_the_cpu(
    attack: str, defence: str, models: Path, place: torch.device
) -> None:
    """One update of every attack under every defence, of all weights and of adapters.

    Shows that no tensor is left on the CPU and no kernel computes something else; on the GPU with
    DeepSpeed, on the CPU without.
    """
    for case in cases_of(attack, defence):
        here = update_of(case, place, models)
        with stand_in(CPU):
            there = update_of(case, CPU, models)
        torch.testing.assert_close(here.weights, there.weights, rtol=1e-3, atol=1e-4)
        for name, value in there.metrics[0].items():
            assert here.metrics[0][name] == pytest.approx(value, rel=1e-3, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_fused_adam_of_torch_makes_the_updates_of_the_formula(
    zero_stage: int, place: torch.device
) -> None:
    """Three updates with weight decay at every ZeRO stage, against AdamW worked out in fp64.

    Shows that torch's fused kernel runs on CUDA, so that DeepSpeed compiles none.
    """
    engine, weights = adam_updates(place, zero_stage=zero_stage)
    assert engine.device.type == "cuda"
    assert engine._base_optimizer.param_groups[0]["fused"]
    torch.testing.assert_close(weights, adam_by_hand(), rtol=1e-4, atol=1e-5)
