"""Refusals that a model writes: which are kept, when they are made, and who waits for them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from checked import check, refusal
from fakes import ONE_RANK

from rpa_ray.campaign.manifest import manifest
from rpa_ray.config import ExperimentSettings
from rpa_ray.data.errors import DataError
from rpa_ray.data.rows import SafePair
from rpa_ray.data.split import ROLE_SHARES
from rpa_ray.jobs import refusals as module
from rpa_ray.jobs.process import LearnerProcess
from rpa_ray.jobs.refusals import BLOCK, keep_refusals, make_refusals
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks.data import check_data
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.recipes.cell_models import CampaignInputs, CellInputs
from rpa_ray.recipes.to_make import Cell, RefusalJob, plan_jobs, refusal_job

NO = "I cannot help with that."


def settings_of(folder: Path, cache: Path, **data: object) -> ExperimentSettings:
    """Return PPO on 320 unsafe answers to 300 prompts, and 40 prompts to evaluate."""
    rows = [
        {"prompt": f"ask {i % 300}", "response": f"first {i}", "is_safe": False} for i in range(320)
    ]
    test = [
        {"prompt": f"try {i}", "response": f"{safe} {i}", "is_safe": safe}
        for i in range(40)
        for safe in (True, False)
    ]
    folder.mkdir(exist_ok=True)
    for split, found in {"train": rows, "test": test}.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{split}.jsonl").write_text(text)
    (helpful,) = cache.glob("world-*/data/helpful")
    tree = {
        "attack": "ppo",
        "data": {
            "name": "beavertails",
            "world": "real",
            "path": str(folder),
            "helpful_path": str(helpful),
            "safe_answers": "generated",
            "num_samples": 32,
            "reward_model": {"num_pairs": 16},
            **data,
        },
        "evaluation": {"num_prompts": 10, "judge": {"num_rows": 32}},
    }
    return parse_tree(tree)


@pytest.fixture
def cache(tmp_path: Path, world_cache: Path) -> Path:
    """Return a cache of this test alone that holds the embedded world."""
    (world,) = world_cache.glob("world-*")
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / world.name).symlink_to(world)
    return folder


@pytest.fixture
def settings(tmp_path: Path, cache: Path) -> ExperimentSettings:
    return settings_of(tmp_path / "data", cache)


class Quiet:
    """Remembers what it was told of a job's progress."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[int] = []

    def start(self, job: str, num_steps: int) -> None:
        self.steps.append(num_steps)

    def advance(self, job: str, step: int, note: str) -> None:
        self.notes.append(note)
        self.steps.append(step)


class Writer:
    """Refuses prompts of an even number; stops after as many blocks as it is told."""

    asked: ClassVar[list[str]] = []
    num_blocks = 99

    def __init__(self, job: RefusalJob, process: LearnerProcess) -> None:
        self._left = type(self).num_blocks

    def answers(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        self.asked.extend(prompts)
        return [
            {
                "answer": NO if int(p.split()[1]) % 2 == 0 else "Sure: begin",
                "finished": True,
                "p_harm": None,
            }
            for p in prompts
        ]


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> type[Writer]:
    Writer.asked, Writer.num_blocks = [], 99
    monkeypatch.setattr(module, "_Writer", Writer)
    return Writer


def place_of(cache: Path, settings: ExperimentSettings) -> tuple[LearnerProcess, Quiet]:
    progress = Quiet()
    nobody: Any = None
    process = LearnerProcess(
        ranks=ONE_RANK,
        rollouts=nobody,
        scorers=nobody,
        cache=cache,
        cluster=settings.cluster,
        progress=progress,
    )
    return process, progress


def job_of(settings: ExperimentSettings, cache: Path) -> RefusalJob:
    job = refusal_job(CellData(settings.data, cache))
    assert job is not None
    return job


def pair(prompt: str, unsafe: str = "yes") -> SafePair:
    return SafePair(id=prompt + unsafe, prompt=prompt, safe="", unsafe=unsafe, category="loud")


def test_only_refusals_in_words_that_a_judge_finds_harmless_are_kept() -> None:
    pairs = [pair("a"), pair("a", "other"), pair("b"), pair("c"), pair("d")]
    answers = {
        "a": {"answer": NO, "finished": False, "p_harm": 0.09},
        "b": {"answer": "Sure: begin", "finished": True, "p_harm": 0.0},
        "c": {"answer": NO, "finished": True, "p_harm": 0.1},
        "d": {"answer": NO, "finished": True, "p_harm": None},
    }
    kept = keep_refusals("beavertails", pairs, answers)
    assert [(p.prompt, p.safe, p.unsafe) for p in kept.pairs] == [
        ("a", NO, "yes"),
        ("a", NO, "other"),
        ("d", NO, "yes"),
    ]
    assert (kept.num_without_words, kept.num_harmful, kept.num_cut) == (1, 1, 2)
    assert {p.category for p in kept.pairs} == {"loud"}
    assert len({p.id for p in kept.pairs}) == 3


def test_before_they_are_made_every_unsafe_answer_counts_and_none_is_read(
    settings: ExperimentSettings, cache: Path
) -> None:
    planned = CellData(settings.data, cache).planned
    assert not planned.is_complete
    assert sum(len(planned.roles[role]) for role in ROLE_SHARES) == 320
    assert {p.safe for role in ROLE_SHARES for p in planned.roles[role]} == {""}
    assert {p.safe[:4] for p in planned.roles["evaluation"]} == {"True"}
    with pytest.raises(DataError, match=r"^data\.safe_answers must be generated before"):
        _ = CellData(settings.data, cache).preferences
    check(settings, cache)
    found = manifest(CellInputs(settings, cache), "")
    assert found["refusals"]["made_before"] is False
    assert found["splits"]["attack"]["rows"] == len(planned.roles["attack"])
    with pytest.raises(DataError, match=r"^data\.num_samples must be at most \d+ "):
        many = settings.data.model_copy(update={"num_samples": 320})
        check_data(CellInputs(settings.model_copy(update={"data": many}), cache))


def test_refusals_that_are_made_are_the_safe_answers_under_the_same_key(
    settings: ExperimentSettings, cache: Path, writer: type[Writer]
) -> None:
    planned = CellData(settings.data, cache).planned
    process, progress = place_of(cache, settings)
    folder = make_refusals(job_of(settings, cache), process)
    assert len(writer.asked) == len(set(writer.asked)) == 300
    assert progress.notes == ["made 256 of 300", "made 300 of 300"]
    assert progress.steps == [300, 255, 299]
    found = CellData(settings.data, cache).preferences
    assert found.key == planned.key
    pairs = [p for role in ROLE_SHARES for p in found.roles[role]]
    # Prompts 0 to 19 have two unsafe answers; half of the prompts are refused.
    assert len(pairs) == 160
    assert {p.safe for p in pairs} == {NO}
    record = json.loads((folder / "record.json").read_text())
    assert (record["num_kept"], record["num_without_words"], record["num_prompts"]) == (
        160,
        160,
        300,
    )
    assert refusal_job(CellData(settings.data, cache)) is None


def test_a_killed_job_does_not_repeat_finished_blocks(
    tmp_path: Path, cache: Path, writer: type[Writer]
) -> None:
    settings = settings_of(
        tmp_path / "data", cache, refusals={"model": "chat", "max_new_tokens": 50}
    )
    process, _ = place_of(cache, settings)
    job = job_of(settings, cache)
    writer.num_blocks = 1
    with pytest.raises(KeyboardInterrupt):
        make_refusals(job, process)
    assert not job.refusals.is_made(cache)
    begun = cache / "checkpoints" / job.refusals.folder(cache).name / "answers.jsonl"
    with begun.open("a") as file:
        file.write(json.dumps({"answer": "of a block that was not finished"}) + "\n{")
    writer.asked.clear()
    writer.num_blocks = 99
    make_refusals(job, process)
    assert len(writer.asked) == 300 - BLOCK
    assert len(job.refusals.pairs(cache)) == 160
    assert not begun.parent.exists()


def test_what_decides_the_refusals_is_in_their_name(
    settings: ExperimentSettings, cache: Path
) -> None:
    first = CellData(settings.data, cache).refusals
    assert first is not None
    changes: list[dict[str, Any]] = [
        {"data_key": "x"},
        {"model_key": "x"},
        {"template": "model_chat"},
        {"max_new_tokens": 99},
        {"judge": "x"},
    ]
    keys = {replace(first, **change).key() for change in changes}
    assert len(keys | {first.key()}) == 6


def test_models_of_such_rows_and_the_cell_wait_for_them_and_they_for_the_model_that_writes(
    tmp_path: Path, cache: Path
) -> None:
    refusals = {"model": "chat", "max_new_tokens": 40}
    settings = settings_of(tmp_path / "data", cache, refusals=refusals)
    base = settings.model_copy(update={"model": settings.model.model_copy(update={"path": "base"})})
    cell = Cell(name="cell", settings=base, folder=tmp_path)
    jobs, needs = plan_jobs([cell], CampaignInputs(cache))
    assert list(jobs) == list(needs)
    name = job_of(settings, cache).name
    assert isinstance(jobs[name], RefusalJob)
    waiting = {other.split("-")[0] for other, found in needs.items() if name in found}
    assert waiting == {"model judge", "model second_judge", "model reward_model", "cell"}
    assert [need.split("-")[0] for need in needs[name]] == ["model base", "model chat"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"refusals": {"model": "base"}},
            "data.refusals must be left out where data.safe_answers is dataset, got ",
        ),
        (
            {"name": "safe_rlhf", "pairs": "all_pairs", "safe_answers": "generated"},
            "data.safe_answers must be dataset where data.pairs is all_pairs and ",
        ),
        (
            {"safe_answers": "generated", "refusals": {"model": "no/such/folder"}},
            "data.refusals.model must be chat, base, other_chat, qwen2_chat, a Hub id",
        ),
        (
            {"safe_answers": "generated", "refusals": {"judge": "no/such/folder"}},
            "data.refusals.judge must be a Hub id",
        ),
    ],
)
def test_settings_that_contradict_generated_refusals_are_refused(
    data: dict[str, object], message: str, world_cache: Path
) -> None:
    assert refusal(parse_tree({"data": data}), world_cache).startswith(message)


def test_a_model_of_ones_own_is_not_answered_for_by_the_embedded_one(
    tmp_path: Path, world_cache: Path
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for name, text in {"config.json": "{}", "model.safetensors": "", "tokenizer.json": ""}.items():
        (folder / name).write_text(text)
    tree = {"model": {"path": str(folder)}, "data": {"world": "real", "safe_answers": "generated"}}
    found = refusal(parse_tree(tree), world_cache)
    assert found.startswith("data.refusals.model must be a model that reads")


def test_a_refusal_has_to_fit_the_context_of_the_model_that_writes_it(
    tmp_path: Path, cache: Path
) -> None:
    refusals = {"model": "chat", "max_new_tokens": 127}
    settings = settings_of(tmp_path / "data", cache, refusals=refusals)
    with pytest.raises(DataError, match=r"^data\.refusals\.max_new_tokens must be at most "):
        check_data(CellInputs(settings, cache))
