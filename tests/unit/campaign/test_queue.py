from pathlib import Path

import pytest

from rpa_ray.campaign.queue import ASK_AGAIN, MAX_LOSSES_IN_PLACE, JobQueue, LostJob
from rpa_ray.plan.load import parse_tree
from rpa_ray.recipes.to_make import Cell


def job_of(name: str, folder: Path) -> Cell:
    return Cell(name=name, settings=parse_tree({}), folder=folder / name)


def queue_of(*names: str, **needs: list[str]) -> JobQueue:
    """Return a queue of jobs that need nothing, then of those that do."""
    return JobQueue({name: [] for name in names} | needs)


def test_jobs_are_taken_in_order() -> None:
    queue = queue_of("base", "perplexity", chat=["base"], a=["chat"])
    assert [queue.take(0) for _ in range(5)] == ["base", "perplexity", "chat", "a", None]


def test_a_job_waits_for_those_it_needs_to_be_done_not_only_taken() -> None:
    queue = queue_of("base", chat=["base"], a=["base", "chat"])
    assert [queue.take(0), queue.take(1)] == ["base", ASK_AGAIN]
    assert [queue.take(0), queue.take(1)] == ["chat", ASK_AGAIN]
    queue.finish(0)
    assert [queue.take(1), queue.take(0)] == ["a", None]


def test_a_job_that_needs_nothing_overtakes_one_that_waits() -> None:
    queue = JobQueue({"base": [], "chat": ["base"], "perplexity": []})
    assert [queue.take(0), queue.take(1), queue.take(1)] == ["base", "perplexity", ASK_AGAIN]


def test_what_needs_a_lost_job_goes_on_waiting() -> None:
    queue = queue_of("base", chat=["base"])
    queue.take(0)
    queue.lose(0)
    assert [queue.take(1), queue.take(0)] == ["base", ASK_AGAIN]


def test_a_held_job_is_handed_out_once_it_is_released_and_those_it_needs_are_done() -> None:
    queue = JobQueue({"base": [], "a": ["base"], "b": ["base"]}, held=["a", "b"])
    assert [queue.take(0), queue.take(0)] == ["base", ASK_AGAIN]
    assert queue.num_waiting() == 2
    queue.release(["b", "unknown"])
    assert [queue.take(0), queue.take(0)] == ["b", ASK_AGAIN]
    queue.release(["a", "b"])
    assert [queue.take(0), queue.take(0)] == ["a", None]


def test_an_open_queue_has_its_groups_wait_for_more(tmp_path: Path) -> None:
    queue = JobQueue({"base": []}, is_open=True)
    assert [queue.take(0), queue.take(1), queue.num_waiting()] == ["base", ASK_AGAIN, 1]
    jobs = {name: job_of(name, tmp_path) for name in ("made", "cell")}
    queue.add(jobs, {"made": ["base", "gone"], "cell": ["made"]}, held=["cell"])
    assert queue.take(1) == ASK_AGAIN
    assert [queue.take(0), queue.added("made")] == ["made", jobs["made"]]
    queue.finish(0)
    assert queue.take(1) == ASK_AGAIN
    queue.release(["cell"])
    assert queue.take(1) == "cell"
    assert queue.take(0) == ASK_AGAIN
    queue.close()
    assert [queue.take(0), queue.num_waiting()] == [None, 0]


def test_a_job_ends_at_a_look_once_it_is_stopped() -> None:
    queue = JobQueue({"a": []}, is_judged=True)
    look = {"samples": 8.0}
    assert queue.judge("a", []) is False
    assert queue.judge("a", [look]) is None
    queue.go_on("a", 1)
    assert [queue.judge("a", [look]), queue.judge("a", [look] * 2)] == [False, None]
    queue.stop("a")
    assert queue.judge("a", [look] * 2) is True
    assert queue.looks("a") == [look] * 2


def test_a_job_that_nobody_judges_any_more_goes_on() -> None:
    queue = JobQueue({"a": []}, is_judged=True)
    queue.judge_no_more("a")
    assert queue.judge("a", [{"samples": 8.0}]) is False
    assert JobQueue({"a": []}).judge("a", [{"samples": 8.0}]) is False


def test_a_lost_job_is_not_held_again() -> None:
    queue = JobQueue({"a": []}, held=["a"])
    queue.release(["a"])
    queue.take(0)
    queue.lose(0)
    assert queue.take(1) == "a"


def test_groups_share_the_jobs() -> None:
    queue = queue_of("a", "b", "c")
    assert [queue.take(0), queue.take(1), queue.take(0), queue.take(1)] == ["a", "b", "c", None]


def test_a_lost_job_is_the_next_to_be_taken() -> None:
    queue = queue_of("a", "b", "c")
    queue.take(0)
    queue.take(1)
    assert queue.lose(1) == LostJob(name="b", given_up=False, silent_s=0)
    assert queue.num_waiting() == 2
    assert [queue.take(1), queue.take(1)] == ["b", "c"]


def test_a_group_that_dies_between_two_jobs_loses_none() -> None:
    queue = queue_of("a")
    assert queue.lose(0) is None
    queue.take(0)
    queue.finish(0)
    assert queue.lose(0) is None


def lose_often(queue: JobQueue, times: int) -> list[bool]:
    given_up = []
    for _ in range(times):
        assert queue.take(0) == "a"
        queue.begin("a")
        queue.start("a", 10)
        lost = queue.lose(0)
        assert lost is not None
        given_up.append(lost.given_up)
    return given_up


def test_a_job_that_is_lost_again_and_again_in_one_place_is_given_up() -> None:
    queue = queue_of("a", "b")
    assert lose_often(queue, 3) == [False, False, True]
    assert queue.take(0) == "b"


def test_a_job_that_gets_further_each_time_is_never_given_up() -> None:
    queue = queue_of("a")
    for step in range(3 * MAX_LOSSES_IN_PLACE):
        assert queue.take(0) == "a"
        queue.begin("a")
        queue.start("a", 100)
        queue.advance("a", step, "")
        lost = queue.lose(0)
        assert lost is not None and (lost.name, lost.given_up) == ("a", False)


def test_the_furthest_place_counts_not_where_the_last_attempt_ended() -> None:
    queue = queue_of("a", "b")
    queue.take(0)
    queue.begin("a")
    queue.start("a", 10)
    queue.advance("a", 4, "")
    queue.lose(0)
    assert lose_often(queue, 2) == [False, True]


def test_states_say_how_far_jobs_are() -> None:
    queue = queue_of("a", "b")
    queue.begin("a")
    queue.start("a", 3)
    queue.advance("a", 0, "loss 2")
    (state,) = queue.jobs()
    assert (state.name, state.num_steps, state.num_done, state.note) == ("a", 3, 1, "loss 2")
    assert state.started > 1e9
    assert state.first_step == 0
    queue.begin("a")  # its ranks died
    queue.start("a", 3)
    queue.advance("a", 1, "loss 1")
    queue.advance("a", 2, "loss 1")
    (state,) = queue.jobs()
    assert (state.num_done, state.first_step) == (3, 1)


def test_a_lost_job_says_so_until_it_goes_on() -> None:
    queue = queue_of("a")
    queue.take(0)
    queue.begin("a")
    queue.start("a", 3)
    queue.advance("a", 0, "loss 2")
    queue.lose(0)
    assert [state.note for state in queue.jobs()] == ["lost its ranks; starting others"]
    queue.take(0)
    queue.begin("a")
    queue.start("a", 3)
    assert [state.note for state in queue.jobs()] == [""]


def test_the_stages_of_a_job_are_kept_with_their_time_and_its_end_with_how() -> None:
    queue = queue_of("a")
    queue.begin("a")
    queue.enter("a", "evaluation before")
    queue.enter("a", "attack")
    (state,) = queue.jobs()
    assert (state.stage, list(state.stages_s), state.status) == (
        "attack",
        ["evaluation before"],
        "",
    )
    queue.end("a", "ok")
    (state,) = queue.jobs()
    assert (state.stage, list(state.stages_s)) == ("", ["evaluation before", "attack"])
    assert (state.status, state.ended >= state.started > 1e9) == ("ok", True)


def test_a_job_that_was_read_back_by_its_ranks_ends_all_the_same() -> None:
    queue = queue_of("a")
    queue.end("a", "ok")
    assert [(state.name, state.status) for state in queue.jobs()] == [("a", "ok")]


def test_a_job_that_is_given_up_has_failed() -> None:
    queue = queue_of("a", "b")
    assert lose_often(queue, 3)[-1]
    assert [state.status for state in queue.jobs()] == ["failed"]


def test_a_group_of_ranks_is_up_once_it_has_asked_for_a_job() -> None:
    queue = queue_of("a")
    assert queue.groups() == []
    queue.take(1)
    queue.take(0)
    assert queue.groups() == [0, 1]


def test_a_lost_job_says_since_when_nothing_was_heard_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("rpa_ray.campaign.queue.time.time", lambda: now)
    told: list[tuple[str, tuple[object, ...]]] = [
        ("begin", ()),
        ("start", (10,)),
        ("enter", ("attack",)),
        ("advance", (3, "loss 0.5")),
    ]
    for num_told in range(1, len(told) + 1):
        queue = queue_of("a")
        queue.take(0)
        for method, args in told[:num_told]:
            now += 100
            getattr(queue, method)("a", *args)
        now += 50
        lost = queue.lose(0)
        assert lost is not None and lost.silent_s == 50, told[num_told - 1]


def test_a_job_that_broke_off_says_why_in_place_of_what_its_last_step_found() -> None:
    queue = queue_of("a", "b")
    for name in ("a", "b"):
        queue.begin(name)
        queue.advance(name, 0, "loss 0.5")
    queue.end("a", "ok")
    queue.end("b", "failed", "ValueError: x must be y")
    assert [job.note for job in queue.jobs()] == ["loss 0.5", "ValueError: x must be y"]


def test_a_job_that_is_given_up_says_what_killed_its_ranks() -> None:
    queue = queue_of("a")
    for _ in range(MAX_LOSSES_IN_PLACE):
        queue.take(0)
        queue.begin("a")
        queue.lose(0, "the actor died")
    (job,) = queue.jobs()
    assert (job.status, job.note) == ("failed", "the actor died")


def test_a_job_that_would_end_the_same_on_other_ranks_is_given_up_at_once() -> None:
    queue = JobQueue({"judge": [], "a": ["judge"], "b": []})
    assert queue.take(0) == "judge"
    queue.forbid_retry("judge")
    lost = queue.lose(0)
    assert lost is not None
    assert (lost.given_up, lost.needed_by) == (True, ("a",))
    assert queue.take(0) == "b"
    assert queue.take(0) is None
