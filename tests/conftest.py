"""What the tests share: a clean environment, tiny models, image folders, scripts as processes."""

import contextlib
import faulthandler
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

# Models this small are computed fastest by one thread, above all where others compute beside them;
# and bits depend on how many there are.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
from in_process import HANGS, in_process
from tiny_runs import write_images

from improved_diffusion import logger
from improved_diffusion.options.command_line import as_words

# Who started the tests may ignore signals, as nohup does: what is tested must not, nor end them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # which programs that are started do not inherit

# The same examples every time.
hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("same")

PROJECT = Path(__file__).resolve().parent.parent
VARIABLES = (
    "DIFFUSION_BLOB_LOGDIR",
    "DIFFUSION_TRAINING_TEST",
    "OMPI_COMM_WORLD_RANK",
    "OPENAI_LOGDIR",
    "OPENAI_LOG_FORMAT",
    "OPENAI_LOG_FORMAT_MPI",
    "PMI_RANK",
    "RANK",
    "WORLD_SIZE",
)


def pytest_collection_modifyitems(items):
    """Whole scripts are slow."""
    for item in items:
        if item.path.parent.name == "scripts":
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def silent_log(tmp_path):
    """A log directory whose logger writes a CSV file and nothing else."""
    folder = tmp_path / "log"
    with logger.scoped_configure(dir=folder, format_strs=["csv"]):
        yield folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Ten images of 32 x 32 in two classes."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def make_images():
    return write_images


TINY = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1"}
TINY |= {"attention_resolutions": "", "diffusion_steps": 4, "noise_schedule": "cosine"}
TINY_SR = {key: value for key, value in TINY.items() if key != "image_size"}
TINY_SR |= {"large_size": 16, "small_size": 8}


@pytest.fixture(scope="session")
def tiny():
    """Flags of the smallest image model that makes sense."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tiny_sr():
    """Flags of the smallest super-resolution model that makes sense."""
    return dict(TINY_SR)


class Scripts:
    """Runs scripts from a folder that is not the project's, here or in processes of their own."""

    def __init__(self, folder):
        self.folder = folder

    def start(self, script, *words, env=None, **flags):
        """Start ``scripts/<script>``, or the program at that path."""
        return subprocess.Popen(
            [sys.executable, str(PROJECT / "scripts" / script), *map(str, words), *as_words(flags)],
            cwd=self.folder,
            env=self.environment() | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script, *words, status=0, **flags):
        """Run a script here, expect that status, and return (stdout, stderr)."""
        out, err, before = io.StringIO(), io.StringIO(), os.getcwd()
        os.chdir(self.folder)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                ended = in_process(script, flags, *words)
        finally:
            faulthandler.cancel_dump_traceback_later()
            os.chdir(before)
        assert ended == status, f"{script} ended with {ended}:\n{err.getvalue()}"
        return out.getvalue(), err.getvalue()

    def run_process(self, script, *words, status=0, env=None, **flags):
        """The same in a process, where what a process does is the point, or its environment."""
        process = self.start(script, *words, env=env, **flags)
        out, err = process.communicate(timeout=HANGS)
        assert process.returncode == status, f"{script} ended with {process.returncode}:\n{err}"
        return out, err

    def stop(self, process, line_start, number=signal.SIGINT):
        """Send a signal once a line of output begins so; return (stdout, stderr)."""
        lines, waits = [], True
        late = threading.Timer(HANGS, process.kill)
        late.start()
        for line in process.stdout:  # to its end: communicate() would lose what is buffered here
            lines.append(line)
            if waits and line.startswith(line_start):
                process.send_signal(number)
                waits = False
        err = process.stderr.read()
        process.wait()
        late.cancel()
        return "".join(lines), err

    @staticmethod
    def environment():
        return {key: value for key, value in os.environ.items() if key not in VARIABLES}


@pytest.fixture(scope="session")
def scripts(tmp_path_factory):
    return Scripts(tmp_path_factory.mktemp("elsewhere"))
