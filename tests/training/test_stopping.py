import os
import signal
import threading
import time

import pytest

from improved_diffusion.training.stopping import StopSignals


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)  # Python delivers it between two instructions of the main thread


@pytest.mark.parametrize("number", StopSignals.NUMBERS)
def test_the_first_signal_is_only_noted(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.received == 0
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert signal.getsignal(number) is before


def test_the_second_signal_acts():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_other_threads_leave_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    inside = []

    def work():
        with StopSignals() as stop:
            inside.append((stop.received, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [(0, before)]
