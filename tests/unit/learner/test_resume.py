import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import ONE_RANK, tiny_engine
from resume_scene import ATTACKS, BATCH_SIZE, NUM_SAMPLES, NUM_STEPS, Killed, Training, same

from rpa_ray.config import ConfigError
from rpa_ray.learner.aside import Aside
from rpa_ray.learner.checkpoints import Checkpoints, check_fits, latest_checkpoint

pytestmark = pytest.mark.usefixtures("process_group")


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """One training that was left alone, and one whose process was killed and replaced."""

    whole: Training
    killed: Training
    resumed: Training


def uninterrupted(folder: Path, attack: str, **settings: Any) -> Training:
    torch.manual_seed(1)
    training = Training(folder, attack, ONE_RANK, **{"zero_stage": 1, **settings})
    training.run()
    return training


def killed(folder: Path, attack: str, after: int, **settings: Any) -> Training:
    torch.manual_seed(1)
    training = Training(folder, attack, ONE_RANK, **{"zero_stage": 1, **settings})
    with pytest.raises(Killed):
        training.run(killed_after=after)
    return training


def resumed(folder: Path, attack: str, **settings: Any) -> Training:
    torch.manual_seed(99)
    training = Training(folder, attack, ONE_RANK, **{"zero_stage": 1, **settings})
    training.run()
    return training


@pytest.fixture(scope="module")
def runs(process_group: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Runs]:
    """Return what runs an attack whole, and killed after step 2, once however often it is asked."""

    @cache
    def of(attack: str) -> Runs:
        folder = tmp_path_factory.mktemp(attack)
        settings = {"defence": "refusal_loss", "bf16": True}
        return Runs(
            whole=uninterrupted(folder / "whole", attack, **settings),
            killed=killed(folder / "killed", attack, 2, **settings),
            resumed=resumed(folder / "killed", attack, **settings),
        )

    return of


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_killed_training_ends_as_the_undisturbed_one(
    attack: str, runs: Callable[[str], Runs]
) -> None:
    found = runs(attack).resumed.outcome()
    assert same(found, runs(attack).whole.outcome())
    assert [line["step"] for line in found["metrics"]] == list(range(NUM_STEPS))


@pytest.mark.parametrize(
    ("defence", "engine"),
    [
        ("none", {"bf16": True}),
        ("none", {"zero_stage": 0}),
        ("refusal_loss", {"zero_stage": 0}),
        ("refusal_loss_after_prefix", {"zero_stage": 1}),
        ("repnoise_online", {"zero_stage": 1}),
        ("procon", {"zero_stage": 1}),
        ("tar", {"zero_stage": 1}),
    ],
)
def test_it_does_so_undefended_and_without_zero(
    defence: str, engine: dict[str, int], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"defence": defence, **engine}
    expected = uninterrupted(tmp_path / "whole", "ppo", **settings)
    killed(tmp_path / "killed", "ppo", 3, **settings)
    assert same(resumed(tmp_path / "killed", "ppo", **settings).outcome(), expected.outcome())


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_it_does_so_from_a_checkpoint_that_was_written_aside(
    zero_stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"defence": "refusal_loss", "zero_stage": zero_stage}
    expected = uninterrupted(tmp_path / "whole", "ppo", **settings)
    start = Aside.start

    def start_and_end(aside: Aside) -> None:
        start(aside)
        aside.wait()

    monkeypatch.setattr(Aside, "start", start_and_end)
    monkeypatch.setattr("rpa_ray.learner.checkpoint_cost.PROBE_BYTES", 1)
    killed(tmp_path / "killed", "ppo", 2, **settings)
    # What was written aside after step 1 has no name before the end of step 2.
    left = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert left == [".step_000002", "step_000001"]
    assert same(resumed(tmp_path / "killed", "ppo", **settings).outcome(), expected.outcome())


@pytest.mark.parametrize("after", [1, 3])
def test_a_training_killed_in_either_phase_ends_as_the_undisturbed_one(
    after: int, runs: Callable[[str], Runs], tmp_path: Path
) -> None:
    # Steps 0 and 1 are SFT; the kill after step 2 goes on with the first batch of rollouts.
    settings = {"defence": "refusal_loss", "bf16": True}
    killed(tmp_path, "ppo_after_sft", after, **settings)
    found = resumed(tmp_path, "ppo_after_sft", **settings).outcome()
    assert same(found, runs("ppo_after_sft").whole.outcome())
    kinds = ["policy/kl" in line for line in found["metrics"]]
    assert kinds == [False, False, True, True, True]


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_prompt_or_pair_is_used_once_over_both_processes(
    attack: str, runs: Callable[[str], Runs]
) -> None:
    # Killed after step 2 was done and before it was saved: step 2 is repeated, nothing else.
    used = runs(attack).whole.used
    assert sorted(used) == sorted(f"p{i}" for i in range(NUM_STEPS * BATCH_SIZE))
    assert runs(attack).killed.used == used[: 3 * BATCH_SIZE]
    assert runs(attack).resumed.used == used[2 * BATCH_SIZE :]
    assert runs(attack).resumed.num_steps_done == NUM_STEPS
    metrics = runs(attack).resumed.outcome()["metrics"]
    assert [line["samples"] for line in metrics] == [4, 8, 12, 16, 20]


def test_an_attacker_who_had_enough_does_not_train_on(runs: Callable[[str], Runs]) -> None:
    before = runs("grpo").resumed
    assert before.num_steps_done * BATCH_SIZE < NUM_SAMPLES["grpo"]
    again = resumed(before.folder, "grpo", defence="refusal_loss", bf16=True)
    assert again.used == []
    assert same(again.outcome(), before.outcome())


def test_the_reference_reads_the_pairs_once_over_both_processes(
    runs: Callable[[str], Runs],
) -> None:
    # 40 answers, 32 at once
    assert runs("dpo").killed.num_reference_passes == 2
    assert runs("dpo").resumed.num_reference_passes == 0


def lose(part: str, mine: dict[str, Any]) -> None:
    """Spoil one part of a rank's state."""
    match part:
        case "generators":
            mine["generators"]["torch"] = torch.Generator().manual_seed(99).get_state()
        case "safe":
            mine["parts"]["safe"]["num_batches"] = 0
        case "kl_coef":
            mine["parts"]["learner"]["objective"]["value"] = 0.2
        case "recent_rewards":
            mine["parts"]["learner"]["objective"].clear()
        case "reference_logprobs":
            mine["parts"]["reference_logprobs"]["logprobs"].zero_()


@pytest.mark.parametrize(
    ("attack", "lost"),
    [
        ("ppo", "kl_coef"),
        ("ppo", "safe"),
        ("ppo", "generators"),
        ("grpo", "recent_rewards"),
        ("dpo", "reference_logprobs"),
    ],
)
def test_each_part_of_the_state_is_needed(
    attack: str, lost: str, runs: Callable[[str], Runs], tmp_path: Path
) -> None:
    settings = {"defence": "refusal_loss", "bf16": True}
    killed(tmp_path, attack, 2, **settings)
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    mine = torch.load(checkpoint / "rank_0.pt", weights_only=True)
    lose(lost, mine)
    torch.save(mine, checkpoint / "rank_0.pt")
    made_by = json.loads((checkpoint / "ranks.json").read_text())
    made_by["sizes"]["rank_0.pt"] = (checkpoint / "rank_0.pt").stat().st_size
    (checkpoint / "ranks.json").write_text(json.dumps(made_by))
    found = resumed(tmp_path, attack, **settings).outcome()
    assert not same(found["masters"], runs(attack).whole.outcome()["masters"])


def checkpoints(folder: Path, interval_s: float = 0.0) -> Checkpoints:
    return Checkpoints(
        folder, ranks=ONE_RANK, engine=tiny_engine(), parts={}, interval_s=interval_s
    )


def test_without_a_checkpoint_a_training_begins_at_the_start(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "none").restore() == 0


class Anchored:
    """A part of a training that keeps a tensor."""

    def __init__(self) -> None:
        self.anchor = torch.ones(2)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"anchor": self.anchor}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.anchor = state["anchor"]


@pytest.mark.parametrize("aside", [False, True])
def test_state_that_was_saved_on_another_gpu_comes_back_on_the_own_device(
    aside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpa_ray.learner.checkpoint_cost.PROBE_BYTES", 1)
    part = Anchored()
    saver = Checkpoints(
        tmp_path, ranks=ONE_RANK, engine=tiny_engine(), parts={"part": part}, interval_s=0.0
    )
    with monkeypatch.context() as patched:
        patched.setattr("torch.serialization.location_tag", lambda storage: "cuda:3")
        saver.save(4, aside=aside)
    while not saver.is_due():
        pass
    part.anchor = torch.zeros(2)
    assert saver.restore() == 4
    assert part.anchor.device == ONE_RANK.device
    assert part.anchor.tolist() == [1.0, 1.0]


def test_the_two_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    saver = checkpoints(tmp_path)
    for step in (9, 10, 11):
        saver.save(step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000010", "step_000011"]
    assert checkpoints(tmp_path).restore() == 11


def test_a_checkpoint_cut_short_does_not_count(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(3)
    shutil.copytree(tmp_path / "step_000003", tmp_path / ".step_000007")
    assert checkpoints(tmp_path).restore() == 3
    checkpoints(tmp_path).save(7)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000007"]


def test_a_checkpoint_is_due_when_the_interval_has_passed(tmp_path: Path) -> None:
    assert not checkpoints(tmp_path, interval_s=3600.0).is_due()
    assert checkpoints(tmp_path, interval_s=0.0).is_due()


def test_checkpoints_that_take_long_are_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, always = (checkpoints(tmp_path, interval_s=interval_s) for interval_s in (1e-9, 0.0))
    assert saver.is_due()
    for one in (saver, always):
        monkeypatch.setattr(one, "_cost_s", 60.0)
    assert not saver.is_due()
    assert always.is_due()


def test_the_first_checkpoint_of_a_large_model_waits_as_long_as_it_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checkpoints(tmp_path, interval_s=1e-9).is_due()  # of a small one
    monkeypatch.setattr("rpa_ray.learner.checkpoint_cost.PROBE_BYTES", 2**10)
    # 1 kB takes 0.1 s, and a checkpoint is of more than 100 kB.
    clock = iter([0.0, 0.0, 0.1, 150.0, 10_000.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    saver = checkpoints(tmp_path, interval_s=1e-9)
    assert not saver.is_due()
    assert saver.is_due()
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_deleted_when_they_are_not_needed(tmp_path: Path) -> None:
    saver = checkpoints(tmp_path / "checkpoints")
    saver.save(1)
    saver.delete()
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_deleted_where_their_folder_is_a_link(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "notes").write_text("of somebody")
    (tmp_path / "checkpoints").symlink_to(scratch)
    saver = checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        saver.save(step)
    kept = ["notes", "step_000002", "step_000003"]
    assert sorted(path.name for path in scratch.iterdir()) == kept
    saver.delete()
    assert [path.name for path in scratch.iterdir()] == ["notes"]


def test_a_file_that_cannot_be_deleted_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def unlink_others(path: Any, *args: Any, **kwargs: Any) -> None:
        if os.path.basename(path) == ".nfs0001":
            raise OSError("in use")
        unlink(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", unlink_others)
    for name in ("step_000001", ".step_000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".nfs0001").write_text("")
    saver = checkpoints(tmp_path)
    saver.save(2)
    assert saver.restore() == 2
    saver.delete()


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
