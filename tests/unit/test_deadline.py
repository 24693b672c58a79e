import threading

import pytest

from rpa_ray.deadline import answer_within


def test_what_is_answered_in_time_is_returned_and_an_error_raised() -> None:
    assert answer_within(5.0, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        answer_within(5.0, lambda: 1 / 0)


def test_what_takes_longer_is_left_behind() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError, match=r"^no answer within 0\.01 s$"):
        answer_within(0.01, never.wait)
    never.set()
