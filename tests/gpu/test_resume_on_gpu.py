"""A training on a GPU that was cut off ends with the bits of one that was not."""

from pathlib import Path

import pytest
import torch
from gpu_scene import one_rank
from resume_scene import NUM_STEPS, Killed, Training, same

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("rank_on_gpu")]


@pytest.mark.parametrize("zero_stage", [1, 3])
@pytest.mark.parametrize("defence", ["lisa", "refusal_loss"])
def test_a_killed_training_ends_as_the_undisturbed_one_on_the_gpu(
    zero_stage: int, defence: str, place: torch.device, tmp_path: Path
) -> None:
    """SFT in bfloat16 under a defence with a state, cut off after its third step and gone on with.

    Shows that a checkpoint holds all that a GPU holds, and that it comes back to the GPU: weights,
    masters, optimizer and defence are equal to the last bit.
    """

    def training(folder: Path, seed: int) -> Training:
        torch.manual_seed(seed)
        settings = {"zero_stage": zero_stage, "defence": defence, "bf16": True}
        return Training(folder, "sft", one_rank(place), **settings)

    whole = training(tmp_path / "whole", 1)
    whole.run()
    with pytest.raises(Killed):
        training(tmp_path / "killed", 1).run(killed_after=2)
    resumed = training(tmp_path / "killed", 99)
    resumed.run()
    assert resumed.num_steps_done == NUM_STEPS
    assert same(resumed.outcome(), whole.outcome())
