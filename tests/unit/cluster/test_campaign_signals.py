import os
import signal
import threading

import pytest

from rpa_ray.cluster.session import interrupted_by


def test_a_signal_is_an_interruption_and_then_again_what_it_was() -> None:
    received = []
    before = signal.signal(signal.SIGUSR1, lambda *_: received.append("before"))
    try:
        with pytest.raises(KeyboardInterrupt), interrupted_by(signal.SIGUSR1):
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == ["before"]


def test_a_thread_leaves_signals_alone() -> None:
    found = []

    def enter() -> None:
        with interrupted_by(signal.SIGUSR1):
            found.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGUSR1)]
