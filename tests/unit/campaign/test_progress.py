import io
import time

from rich.console import Console

from rpa_ray.campaign.job_state import JobState
from rpa_ray.campaign.progress import MAX_ENDED_BARS, Expected, ProgressView
from rpa_ray.recipes.to_make import Stage


def plain() -> tuple[io.StringIO, Console]:
    text = io.StringIO()
    return text, Console(file=text, width=120)


def cell(label: str, seconds: float | None = None) -> Expected:
    return Expected(label=label, is_cell=True, seconds=seconds)


def test_a_plain_output_gets_one_line_when_a_job_is_done() -> None:
    text, console = plain()
    with ProgressView(console) as view:
        for status in ("", "ok", "ok"):
            view.show(
                [JobState(name="base", num_steps=5, num_done=5, note="loss 0.5", status=status)]
            )
    assert text.getvalue().count("base: done loss 0.5\n") == 1


def test_a_plain_output_is_told_now_and_then_how_long_a_job_still_takes() -> None:
    text, console = plain()
    begun = time.time() - 60
    with ProgressView(console) as view:
        for num_done in (1, 2, 3):
            job = JobState(
                name="cell", num_steps=11, num_done=num_done, note="loss 1", started=begun
            )
            view.show([job])
    assert text.getvalue() == "cell: 1/11 loss 1 (10 min left)\n"


def test_jobs_that_run_side_by_side_have_a_line_each() -> None:
    text, console = plain()
    with ProgressView(console) as view:
        view.show([JobState(name="one", num_steps=10), JobState(name="two", num_steps=10)])
    assert text.getvalue() == "one: 0/10\ntwo: 0/10\n"


def test_a_cell_is_called_by_what_differs_and_each_stage_is_told_once_with_its_time() -> None:
    text, console = plain()
    with ProgressView(console) as view:
        view.expect({"chat_ppo_1a2b": cell("ppo alpha=1")}, 1)
        job = JobState(name="chat_ppo_1a2b", num_steps=125, stage=Stage.BEFORE)
        for _ in range(2):
            view.show([job])
        job.stage, job.stages_s = Stage.ATTACK, {Stage.BEFORE: 9.2}
        view.show([job])
        job.stage, job.status = "", "ok"
        job.stages_s = {Stage.BEFORE: 9.2, Stage.ATTACK: 50.0}
        view.show([job])
    lines = text.getvalue().splitlines()
    assert lines == [
        "ppo alpha=1: evaluation before",
        "all cells: 0 of 1 cells done, 1 running, 0 failed",
        "ppo alpha=1: attack, step 0 of 125 (evaluation before took 9 s)",
        "ppo alpha=1: done, evaluation before 9 s, attack 50 s",
        "all cells: 1 of 1 cells done, 0 running, 0 failed",
    ]


def test_a_cell_that_failed_is_told_and_counted() -> None:
    text, console = plain()
    with ProgressView(console) as view:
        view.expect({"a": cell("a"), "b": cell("b"), "c": cell("c")}, 1)
        view.show(
            [
                JobState(name="a", num_steps=0, status="failed", note="ValueError: x must be y"),
                JobState(name="b", num_steps=0, status="sampling_failed"),
            ]
        )
    lines = text.getvalue().splitlines()
    assert lines[:2] == ["a: failed: ValueError: x must be y", "b: sampling failed"]
    # A policy that broke is a result; a failure is none.
    assert lines[2] == "all cells: 1 of 3 cells done, 0 running, 1 failed"


def test_what_is_left_is_corrected_by_what_the_finished_jobs_took() -> None:
    view = ProgressView(plain()[1])
    expected = {name: cell(name, 100.0) for name in "abc"}
    view.expect(expected, num_at_once=2)
    now = time.time()
    done = JobState(name="a", num_steps=1, status="ok", started=now - 200, ended=now)
    running = JobState(name="b", num_steps=1, started=now - 40)
    # (60 left of b and 100 of c) at the pace of a, twice as slow, two at a time
    assert view.overall([done, running]).endswith("0 failed, about 3 min left")
    assert view.overall([running]).endswith("0 failed, about 2 min left")


def test_all_cells_take_no_less_than_the_one_that_runs() -> None:
    text, console = plain()
    begun = time.time() - 300  # five times its estimate
    with ProgressView(console) as view:
        view.expect({"a": cell("a", 60.0)}, num_at_once=4)
        view.show([JobState(name="a", num_steps=15, num_done=5, started=begun)])
    one, every = text.getvalue().splitlines()
    assert one == "a: 5/15 (10 min left)"
    assert every.endswith("1 running, 0 failed, about 10 min left")


def test_what_an_earlier_run_did_is_no_measure_of_the_pace() -> None:
    text, console = plain()
    begun = time.time() - 60
    with ProgressView(console) as view:
        view.expect({"a": cell("a", 60.0)}, num_at_once=1)
        view.show([JobState(name="a", num_steps=20, num_done=10, first_step=8, started=begun)])
    assert text.getvalue().splitlines()[0] == "a: 10/20 (5 min left)"


def test_no_time_left_is_told_where_a_job_is_not_estimated() -> None:
    view = ProgressView(plain()[1])
    view.expect({"a": cell("a", 100.0), "b": cell("b")}, 1)
    assert view.overall([]) == "0 of 2 cells done, 0 running, 0 failed"


def test_a_line_of_its_own_is_neither_markup_nor_broken() -> None:
    text, console = plain()
    with ProgressView(console) as view:
        view.say("still starting: [worker] " + "x" * 200)
    assert text.getvalue() == "still starting: [worker] " + "x" * 200 + "\n"


def test_a_terminal_gets_a_bar_for_each_job_and_one_for_all_cells() -> None:
    text = io.StringIO()
    with ProgressView(Console(file=text, width=160, force_terminal=True)) as view:
        view.expect({"m": Expected(label="base", is_cell=False, seconds=None), "c": cell("ppo")}, 1)
        view.show([JobState(name="m", num_steps=5), JobState(name="c", num_steps=7)])
    for shown in ("base", "ppo", "0/7", "all cells", "0/1"):
        assert shown in text.getvalue()


def test_a_terminal_has_bars_of_what_runs_and_of_the_last_that_ended() -> None:
    text = io.StringIO()
    jobs = [JobState(name=f"c{i}", num_steps=1, status="ok", ended=float(i)) for i in range(50)]
    with ProgressView(Console(file=text, width=160, force_terminal=True)) as view:
        view.expect({job.name: cell(job.name) for job in jobs} | {"last": cell("last")}, 1)
        for num in (30, 50):
            view.show([*jobs[:num], JobState(name="last", num_steps=7)])
        bars = {task.description for task in view._progress.tasks}
        (note,) = [t.fields["note"] for t in view._progress.tasks if t.description == "all cells"]
    ended = {f"c{i}" for i in range(50 - MAX_ENDED_BARS, 50)}
    assert bars == ended | {"last", "all cells"}
    assert note.startswith("50 of 51 cells done, 1 running")
