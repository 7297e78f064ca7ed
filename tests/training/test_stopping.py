import os
import signal
import threading
import time

import pytest

if not hasattr(signal, "SIGHUP"):
    pytest.skip("os.kill ends a process of Windows", allow_module_level=True)

from improved_diffusion.training.stopping import StopSignals, exit_on_signals


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)  # Python delivers it between two instructions of the main thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_only_noted(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.received == 0
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert signal.getsignal(number) is before


def test_the_same_signal_again_acts():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_signals_that_come_in_the_midst_of_leaving_are_no_error():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        stop._receive(signal.SIGINT, None)  # as Python delivers one that came just before
        stop.__exit__()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_launcher_may_add_another_signal_and_a_shell_a_second_hang_up():
    with StopSignals() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.received == signal.SIGHUP


def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received == 0
        term = signal.getsignal(signal.SIGTERM)
        exit_on_signals()
        signal.signal(signal.SIGTERM, term)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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
