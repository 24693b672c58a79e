from types import SimpleNamespace
from typing import Any

import pytest
from fakes import ONE_RANK

from rpa_ray.actors.errors import StaleWeightsError, WorkerError
from rpa_ray.jobs import workers as shared_workers
from rpa_ray.jobs.workers import MAX_ATTEMPTS, repeat_together


class Call:
    """Fails as often as it is told, then answers."""

    def __init__(self, num_failures: int, kind: type[WorkerError] = WorkerError) -> None:
        self.num_failures = num_failures
        self.kind = kind
        self.diary: list[str] = []

    def __call__(self) -> str:
        self.diary.append("call")
        if len([entry for entry in self.diary if entry == "call"]) <= self.num_failures:
            raise self.kind("rollout worker 0 must answer generate, got ActorDiedError")
        return "answer"

    def mend(self) -> None:
        self.diary.append("mend")


def test_a_call_that_succeeds_is_made_once_and_nothing_is_mended() -> None:
    call = Call(0)
    assert repeat_together(call, call.mend) == "answer"
    assert call.diary == ["call"]


@pytest.mark.parametrize("kind", [WorkerError, StaleWeightsError])
def test_a_lost_worker_is_mended_before_the_call_is_repeated(kind: type[WorkerError]) -> None:
    call = Call(2, kind)
    assert repeat_together(call, call.mend) == "answer"
    assert call.diary == ["call", "mend", "call", "mend", "call"]


def test_a_call_is_not_repeated_for_ever() -> None:
    call = Call(99)
    with pytest.raises(WorkerError, match=r"within 5 attempts, got: rollout worker 0 must answer"):
        repeat_together(call, call.mend)
    assert call.diary.count("call") == MAX_ATTEMPTS


def test_mending_that_fails_is_an_attempt_of_its_own() -> None:
    call = Call(1)

    def mend() -> None:
        call.mend()
        if call.diary.count("mend") == 1:
            raise WorkerError("scoring worker 0 must be up within 600 s, got one that is starting")

    assert repeat_together(call, mend) == "answer"
    assert call.diary == ["call", "mend", "mend", "call"]


def test_another_error_is_not_repeated() -> None:
    def call() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        repeat_together(call)


def test_a_rank_whose_own_call_went_well_repeats_it_with_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = iter([True, False])
    monkeypatch.setattr(shared_workers, "any_rank_failed", lambda own: own or next(others))
    call = Call(0)
    assert repeat_together(call, call.mend) == "answer"
    assert call.diary == ["call", "mend", "call"]


class Pool:
    """A scorer pool whose first answers are lost."""

    def __init__(self, num_lost: int) -> None:
        self.num_lost = num_lost
        self.diary: list[str] = []

    def score_async(self, name: str, pairs: Any) -> Any:
        self.diary.append(f"start {name}")
        return self

    def result(self) -> list[float]:
        if self.diary.count("start reward") <= self.num_lost:
            raise WorkerError("scoring worker 0 must answer score, got ActorUnavailableError")
        return [0.5]

    def wait_until_up(self) -> None:
        self.diary.append("up")


def test_scores_that_were_lost_are_asked_for_again_once_the_worker_is_up() -> None:
    pool: Any = Pool(1)
    workers = shared_workers.SharedWorkers(ranks=ONE_RANK, rollouts=pool, scorers=pool, sync=pool)
    wait = workers.score_async("reward", [("request", "answer")])
    assert pool.diary == ["start reward"]
    assert wait() == [0.5]
    assert pool.diary == ["start reward", "up", "start reward"]


class Sync:
    """Records the versions that are pushed."""

    def __init__(self) -> None:
        self.versions: list[int] = []

    def push(self, version: int, record_digests: bool = False) -> None:
        self.versions.append(version)


class Rollouts:
    """An engine that is lost once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def generate(self, prompts: Any, sampling: Any, version: int) -> list[str]:
        self.asked.append(version)
        if len(self.asked) == 1:
            raise WorkerError("rollout worker 0 must answer generate, got ActorDiedError")
        return ["answer"]


def test_a_lost_engine_is_refitted_under_a_new_version_before_it_answers() -> None:
    sync, rollouts = Sync(), Rollouts()
    stand_ins: dict[str, Any] = {"rollouts": rollouts, "scorers": None, "sync": sync}
    workers = shared_workers.SharedWorkers(ranks=ONE_RANK, **stand_ins)
    workers.push()
    sampling: Any = None
    assert workers.generate([[1]], sampling) == ["answer"]
    first, second = sync.versions
    assert second == first + 1
    assert rollouts.asked == [first, second]


def test_two_processes_never_push_under_the_same_version() -> None:
    versions = []
    for _ in range(8):
        sync = Sync()
        stand_ins: dict[str, Any] = {"rollouts": None, "scorers": None, "sync": sync}
        workers = shared_workers.SharedWorkers(ranks=ONE_RANK, **stand_ins)
        for _ in range(3):
            workers.push()
        versions += sync.versions
    assert len(set(versions)) == 24


class OneOfTwo:
    """A rank of two, of which the first asks for a and b, the second for c."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.is_main = rank == 0

    def gather(self, values: list[Any]) -> list[list[Any]]:
        assert values == PARTS[self.rank]
        return PARTS

    def broadcast(self, value: Any) -> Any:
        return value if self.is_main or isinstance(value, int) else ["A", "B", "C"]


PARTS = [["a", "b"], ["c"]]


class Whole:
    """Pools that answer in capitals."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def generate(self, prompts: list[str], sampling: Any, version: int) -> list[str]:
        self.asked.append(prompts)
        return [prompt.upper() for prompt in prompts]

    def score_async(self, name: str, pairs: list[str]) -> Any:
        return SimpleNamespace(result=lambda: self.generate(pairs, None, 0))


@pytest.mark.parametrize(("rank", "own"), [(0, ["A", "B"]), (1, ["C"])])
def test_the_main_rank_asks_once_for_all_and_each_gets_its_part(rank: int, own: list[str]) -> None:
    whole: Any = Whole()
    ranks: Any = OneOfTwo(rank)
    workers = shared_workers.SharedWorkers(ranks=ranks, rollouts=whole, scorers=whole, sync=whole)
    sampling: Any = None
    asked: Any = PARTS[rank]
    assert workers.generate(asked, sampling) == own
    assert workers.score_async("reward", asked)() == own
    assert whole.asked == ([["a", "b", "c"]] * 2 if rank == 0 else [])
