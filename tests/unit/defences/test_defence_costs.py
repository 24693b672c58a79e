"""How benchmarks/defence_costs.py counts the passes that a defence makes."""

import runpy
from pathlib import Path

import pytest
import torch

SCRIPT = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "defence_costs.py"))
NUM_ROWS, WIDTH = 4, 3
PRODUCT = 2 * NUM_ROWS * WIDTH * WIDTH
"""Operations of one layer's forward pass: a multiplication and an addition for each weight."""


class TwoLayers:
    """A learner whose step differentiates by the weights, or by what is between the layers."""

    def __init__(self, by: str) -> None:
        self.by = by
        # No nn.Linear: an engine under ZeRO 3 gives those of its process another backward.
        self.first, self.second = (torch.ones(WIDTH, WIDTH, requires_grad=True) for _ in range(2))

    def step(self, batch: torch.Tensor) -> None:
        with torch.set_grad_enabled(self.by != "nothing"):
            between = batch @ self.first
            loss = (between @ self.second).sum()
        if self.by == "weights":
            loss.backward()
        if self.by == "activations":
            torch.autograd.grad(loss, [between])


@pytest.mark.parametrize(
    ("by", "num_products"),
    [
        ("nothing", 2),
        # The first layer's input needs no gradient: two products by weights, one by activations.
        ("weights", 2 + 3),
        ("activations", 2 + 1),
    ],
)
def test_only_the_products_that_are_made_count(by: str, num_products: int) -> None:
    counted = SCRIPT["operations"](TwoLayers(by), torch.ones(NUM_ROWS, WIDTH), 3)
    assert counted == num_products * PRODUCT


def test_without_trainings_on_the_clock_the_passes_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = {("sft", "none"): 4.0, ("sft", "vaccine"): 6.64}
    SCRIPT["report"](work, [])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| sft | none | - | - | 1.00 | - | - |",
        "| sft | vaccine | - | - | 1.66 | - | - |",
    ]


def test_excess_is_the_ratio_of_the_times_over_that_of_the_passes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = {("sft", "none"): 4.0, ("sft", "vaccine"): 6.0}
    timed = [
        {
            ("sft", "none"): {"step_s": 1.0, "memory": 2.0},
            ("sft", "vaccine"): {"step_s": seconds, "memory": 3.0},
        }
        for seconds in (1.2, 9.0, 1.0)
    ]
    SCRIPT["report"](work, timed)
    assert capsys.readouterr().out.splitlines()[3] == (
        "| sft | vaccine | 1.20 | 1.20 | 1.50 | 0.80 | 1.50 |"
    )
