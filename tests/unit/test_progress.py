import io
from dataclasses import dataclass

from rich.console import Console

from rpa_ray.progress import ProgressView


@dataclass(kw_only=True)
class Job:
    name: str
    num_steps: int
    num_done: int = 0
    note: str = ""
    started: float = 0.0


def test_a_plain_output_gets_one_line_when_a_job_is_done() -> None:
    text = io.StringIO()
    with ProgressView(Console(file=text, width=120)) as view:
        for num_done in (4, 5, 5):
            view.show([Job(name="model base", num_steps=5, num_done=num_done, note="loss 0.5")])
    assert text.getvalue().count("model base: 5/5 loss 0.5\n") == 1


def test_a_plain_output_is_told_now_and_then_how_long_a_job_still_takes() -> None:
    text = io.StringIO()
    with ProgressView(Console(file=text, width=120)) as view:
        for num_done in (1, 2, 3):
            view.show([Job(name="cell", num_steps=10, num_done=num_done, note="reward +1")])
    lines = [line for line in text.getvalue().splitlines() if line.startswith("cell: ")]
    assert len(lines) == 1
    assert lines[0].startswith("cell: 1/10 reward +1 (")
    assert lines[0].endswith(" s left)")


def test_jobs_that_run_side_by_side_have_a_line_each() -> None:
    text = io.StringIO()
    with ProgressView(Console(file=text, width=120)) as view:
        view.show([Job(name="one", num_steps=10), Job(name="two", num_steps=10)])
    assert text.getvalue() == "one: 0/10\ntwo: 0/10\n"


def test_no_time_is_told_before_the_first_step() -> None:
    text = io.StringIO()
    with ProgressView(Console(file=text, width=120)) as view:
        view.show([Job(name="cell", num_steps=10)])
    assert text.getvalue() == "cell: 0/10\n"


def test_a_terminal_gets_a_bar_for_each_job() -> None:
    text = io.StringIO()
    with ProgressView(Console(file=text, width=120, force_terminal=True)) as view:
        view.show([Job(name="model base", num_steps=5), Job(name="model chat", num_steps=7)])
    assert "model base" in text.getvalue()
    assert "0/7" in text.getvalue()
