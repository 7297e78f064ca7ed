"""Disks that fail in the middle of a file: the old one stays, nothing is left lying about."""

import errno
import os

import pytest
import torch as th

from improved_diffusion import checkpointing, cli
from improved_diffusion.files import atomic_write

FAULTS = [errno.ENOSPC, errno.EIO]


class Failing:
    """A stand-in for a function that fails from its n-th call on."""

    def __init__(self, original, number, after=0):
        self.original, self.number, self.calls, self.after = original, number, 0, after

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls > self.after:
            raise OSError(self.number, os.strerror(self.number))
        return self.original(*args, **kwargs)


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_call_leaves_the_old_file(call, number, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, Failing(getattr(os, call), number))
    with pytest.raises(OSError, match=os.strerror(number)) as caught, atomic_write(path) as file:
        file.write(b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"), atomic_write(path) as file:
        file.write(b"ne")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("after", range(6))
def test_a_checkpoint_that_fails_leaves_the_last_one(call, after, number, tmp_path, monkeypatch):
    """Whichever of the new checkpoint's files fails, the old one is found, whole."""

    def parts(value):
        tensors = {"w": th.full((3,), float(value))}
        return {"model": tensors, "ema_0.9_": tensors, "opt": tensors, "state": tensors}

    folder = str(tmp_path)
    checkpointing.save_checkpoint(folder, 1, parts(1))
    monkeypatch.setattr(os, call, Failing(getattr(os, call), number, after))
    per_file = 2 if call == "fsync" else 1  # of the file and of its folder
    if after >= 4 * per_file:
        checkpointing.save_checkpoint(folder, 2, parts(2))
        assert checkpointing.complete_steps(folder) == [1, 2]
        return
    with pytest.raises(OSError, match=os.strerror(number)):
        checkpointing.save_checkpoint(folder, 2, parts(2))
    assert checkpointing.complete_steps(folder) == [1]
    assert checkpointing.newest_checkpoint(folder) == str(tmp_path / "model000001.pt")
    monkeypatch.undo()
    for path in tmp_path.glob("*000001.pt"):
        assert th.equal(th.load(path, weights_only=True)["w"], th.ones(3))
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_ends_a_script_with_one_line_that_names_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "fsync", Failing(os.fsync, errno.ENOSPC))

    def main():
        checkpointing.save_file(str(tmp_path / "model000001.pt"), {})

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line
    assert "model000001.pt" in line
