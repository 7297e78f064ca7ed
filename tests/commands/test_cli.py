import errno
import signal
import warnings

import pytest
from in_process import ENDING
from PIL import Image
from torch import OutOfMemoryError

from improved_diffusion import dist_util
from improved_diffusion.commands import cli
from improved_diffusion.errors import DivergedError, InputError


def outcome(main, capsys):
    """Exit status and lines on stderr of a script with this main function."""
    with pytest.raises(SystemExit) as raised:
        cli.run(main)
    return raised.value.code, capsys.readouterr().err.splitlines()


def raiser(error):
    def main():
        raise error

    return main


def test_a_script_looks_at_the_size_of_pictures_itself(tmp_path, capsys, monkeypatch):
    Image.new("L", (5, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # of which Pillow warns
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert outcome(lambda: Image.open(tmp_path / "a.png").close(), capsys) == (0, [])
    assert not heard


def test_of_several_processes_an_error_of_talking_is_that_one_is_gone(capsys, monkeypatch):
    error = RuntimeError("[gloo] Connection closed by peer")
    with pytest.raises(RuntimeError, match="gloo"):
        cli.run(raiser(error))
    monkeypatch.setattr(dist_util, "world_size", lambda: 2)
    status, (line,) = outcome(raiser(error), capsys)
    assert status == 1
    assert line.endswith("another process of this run is gone")


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_a_script_ends_with_what_its_main_returns(returned, status, capsys):
    assert outcome(lambda: returned, capsys) == (status, [])


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("wrong\n  flag"), 2, "error: wrong flag"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (DivergedError("training diverged"), 1, "training diverged"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "not enough memory, take a smaller batch or model"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "take a smaller batch"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), 1, "take a smaller batch"),
        (RuntimeError("Storage size calculation overflowed with sizes=[1]"), 1, "take a smaller"),
        (OutOfMemoryError("CUDA out of memory."), 1, "take a smaller batch"),
    ],
)
def test_an_expected_end_is_one_line(error, status, said, capsys):
    code, lines = outcome(raiser(error), capsys)
    assert code == status
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_other_signals_end_a_script_as_orderly_as_ctrl_c(name, status, capsys):
    if not hasattr(signal, name):
        pytest.skip("this system does not have the signal")
    number, closed = getattr(signal, name), []
    before = {n: signal.getsignal(n) for n in ENDING}

    def main():
        try:
            signal.raise_signal(number)
        finally:
            closed.append(True)

    try:
        assert outcome(main, capsys) == (status, [])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert closed


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 // 0)
