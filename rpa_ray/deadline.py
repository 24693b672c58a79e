"""A question with a limit in time, whatever its own limits leave out."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def answer_within(limit_s: float, ask: Callable[[], T]) -> T:
    """Return what ``ask`` returns, or raise what it raises.

    It is asked in a daemon thread: the limits of a request do not bound the look-up of a host name
    and add up over retries, and one that still waits must not hold up the end of the process.

    Raises:
        TimeoutError: There was no answer within ``limit_s`` seconds.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # whatever it is, the caller sees it
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {limit_s:g} s")
    return answers[0]
