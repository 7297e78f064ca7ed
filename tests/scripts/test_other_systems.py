"""The scripts where Python lacks the modules that only POSIX systems have."""

import pytest
from filelock import SoftFileLock
from in_process import SCRIPTS

# What Windows lacks. filelock then takes a file's existence for the lock.
WRAPPER = """
import atexit, runpy, sys

for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None

def say_which_lock():
    if "filelock" in sys.modules:
        print("locked by", sys.modules["filelock"].FileLock.__name__)

atexit.register(say_which_lock)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def run(scripts, tmp_path):
    """Run a script without those modules; its output."""
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text(WRAPPER)
    return lambda script, **settings: scripts.run_process(wrapper, SCRIPTS / script, **settings)


def test_training_sampling_and_export_work_without_posix(run, images, tiny, tmp_path):
    log_dir = tmp_path / "run"
    flags = tiny | {"data_dir": images, "log_dir": log_dir, "batch_size": 2, "max_steps": 2}
    out, _ = run("image_train.py", **flags)
    assert "Made 2 updates" in out
    assert "peak memory" not in out, "nobody could have said how much"
    assert "locked by SoftFileLock" in out
    out, _ = run("image_sample.py", model_path=log_dir, num_samples=2, log_dir=tmp_path / "made")
    assert (tmp_path / "made" / "samples_2x16x16x3.npz").exists()
    (log_dir / "results.xlsx").unlink()
    run("export_results.py", log_dir=log_dir)
    assert (log_dir / "results.xlsx").exists()
    with SoftFileLock(log_dir / ".lock"):
        _, said = run("image_train.py", status=2, **flags, resume_checkpoint="auto")
    assert "another run is writing to" in said
