"""The tests of tests/gpu on a CPU, as far as they go there."""

from pathlib import Path

import pytest
import torch
from device_scene import Case
from gpu_scene import ADAM, KEPT, adam_by_hand, adam_updates, sized, update_of
from pretended import CPU, stand_in

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.mark.parametrize("adapters", [False, True])
def test_one_update_of_a_case_is_that_of_the_stand_in(adapters: bool, tmp_path: Path) -> None:
    case = Case("ppo", "lisa", adapters=adapters)
    here = update_of(case, CPU, tmp_path)
    with stand_in(CPU):
        there = update_of(case, CPU, tmp_path)
    torch.testing.assert_close(here.weights, there.weights, rtol=1e-4, atol=1e-5)
    assert len(here.metrics) == 1


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_updates_are_those_of_the_formula_of_adam(zero_stage: int) -> None:
    engine, weights = adam_updates(CPU, zero_stage=zero_stage)
    torch.testing.assert_close(weights, adam_by_hand(), rtol=1e-4, atol=1e-5)
    (group, *_) = engine._base_optimizer.param_groups
    assert (group["fused"], group["weight_decay"]) == (True, ADAM.weight_decay)


def test_what_is_planned_counts_the_parameters_of_the_model() -> None:
    found = sized(width=64, num_layers=2, num_tokens=16)
    found.update(CPU, num_rows=2, num_tokens=8)
    assert found.engine.num_updates == 1
    # bfloat16 weights and gradients, fp32 masters and two moments
    assert found.planned_bytes(KEPT) == pytest.approx(16 * found.num_parameters)
