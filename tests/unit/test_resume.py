import json
import shutil
from pathlib import Path

import pytest
import torch
from fakes import ONE_RANK, tiny_engine
from resume_scene import BATCH_SIZE, NUM_STEPS, Killed, Training, same

from rpa_ray.config import ConfigError
from rpa_ray.resume import Checkpoints, check_fits, latest_checkpoint

pytestmark = pytest.mark.usefixtures("process_group")


def uninterrupted(folder: Path, defence: str, **engine: bool | int) -> Training:
    torch.manual_seed(1)
    training = Training(folder, defence, ONE_RANK, **{"zero_stage": 1, **engine})
    training.run()
    return training


def interrupted(folder: Path, defence: str, after: int, **engine: bool | int) -> list[Training]:
    """Return the training of the process that was killed and of the one that went on."""
    torch.manual_seed(1)
    first = Training(folder, defence, ONE_RANK, **{"zero_stage": 1, **engine})
    with pytest.raises(Killed):
        first.run(killed_after=after)
    torch.manual_seed(99)
    second = Training(folder, defence, ONE_RANK, **{"zero_stage": 1, **engine})
    second.run()
    return [first, second]


@pytest.mark.parametrize("engine", [{"bf16": True}, {"zero_stage": 0}])
@pytest.mark.parametrize("defence", ["none", "refusal_loss"])
def test_a_killed_training_ends_as_the_undisturbed_one(
    defence: str, engine: dict[str, int], tmp_path: Path
) -> None:
    expected = uninterrupted(tmp_path / "whole", defence, **engine)
    _, resumed = interrupted(tmp_path / "killed", defence, 3, **engine)
    assert same(resumed.outcome(), expected.outcome())
    assert [line["step"] for line in resumed.outcome()["metrics"]] == list(range(NUM_STEPS))


def test_every_prompt_is_used_once_over_both_processes(tmp_path: Path) -> None:
    # Killed after step 2 was done and before it was saved: step 2 is repeated, nothing else.
    first, second = interrupted(tmp_path, "none", 2)
    assert first.used == [f"p{i}" for i in range(3 * BATCH_SIZE)]
    assert second.used == [f"p{i}" for i in range(2 * BATCH_SIZE, NUM_STEPS * BATCH_SIZE)]
    metrics = second.outcome()["metrics"]
    assert [line["samples"] for line in metrics] == [4, 8, 12, 16, 20]


@pytest.mark.parametrize("lost", ["learner", "safe", "generators"])
def test_each_part_of_the_state_is_needed(lost: str, tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path / "whole", "refusal_loss")
    torch.manual_seed(1)
    first = Training(tmp_path / "killed", "refusal_loss", ONE_RANK, zero_stage=1)
    with pytest.raises(Killed):
        first.run(killed_after=3)
    checkpoint = latest_checkpoint(tmp_path / "killed" / "checkpoints")
    assert checkpoint is not None
    mine = torch.load(checkpoint / "rank_0.pt", weights_only=True)
    if lost == "generators":
        mine["generators"]["torch"] = torch.Generator().manual_seed(99).get_state()
    elif lost == "safe":
        mine["parts"]["safe"]["num_batches"] = 0
    else:
        mine["parts"]["learner"]["objective"]["value"] = 0.2
    torch.save(mine, checkpoint / "rank_0.pt")
    second = Training(tmp_path / "killed", "refusal_loss", ONE_RANK, zero_stage=1)
    second.run()
    assert not same(second.outcome()["weights"], expected.outcome()["weights"])


def checkpoints(folder: Path, interval_s: float = 0.0) -> Checkpoints:
    return Checkpoints(
        folder, ranks=ONE_RANK, engine=tiny_engine(), parts={}, interval_s=interval_s
    )


def test_without_a_checkpoint_a_training_begins_at_the_start(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "none").restore() == 0


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    saver = checkpoints(tmp_path)
    saver.save(9)
    saver.save(10)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000010"]
    assert checkpoints(tmp_path).restore() == 10


def test_a_checkpoint_cut_short_does_not_count(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(3)
    shutil.copytree(tmp_path / "step_000003", tmp_path / ".step_000007")
    assert checkpoints(tmp_path).restore() == 3
    checkpoints(tmp_path).save(7)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000007"]


def test_a_checkpoint_is_written_when_the_interval_has_passed(tmp_path: Path) -> None:
    checkpoints(tmp_path, interval_s=3600.0).save_if_due(1)
    assert latest_checkpoint(tmp_path) is None
    checkpoints(tmp_path, interval_s=0.0).save_if_due(1)
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000001"


def test_checkpoints_that_take_long_are_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = checkpoints(tmp_path, interval_s=1e-9)
    saver.save_if_due(1)
    monkeypatch.setattr(saver, "_cost_s", 60.0)
    saver.save_if_due(2)
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000001"
    always = checkpoints(tmp_path, interval_s=0.0)
    monkeypatch.setattr(always, "_cost_s", 60.0)
    always.save_if_due(3)
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000003"


def test_checkpoints_are_deleted_when_they_are_not_needed(tmp_path: Path) -> None:
    saver = checkpoints(tmp_path / "checkpoints")
    saver.save(1)
    saver.delete()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"num_ranks": 2, "zero_stage": 1}, r"^cluster.num_ranks must be 1, as in .*, got 2\. Set"),
        (
            {"num_ranks": 1, "zero_stage": 3},
            r"^cluster.zero_stage must be 1, as in .*, got 3\. Set",
        ),
    ],
)
def test_a_checkpoint_of_other_ranks_is_refused(
    ranks: dict[str, int], message: str, tmp_path: Path
) -> None:
    (tmp_path / "ranks.json").write_text(json.dumps({"num_ranks": 1, "zero_stage": 1}))
    check_fits(tmp_path, num_ranks=1, zero_stage=1)
    check_fits(tmp_path, num_ranks=1, zero_stage=None)
    with pytest.raises(ConfigError, match=message):
        check_fits(tmp_path, **ranks)
