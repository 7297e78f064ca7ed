"""Scripts in this process, which saves the seconds of a new one, and programs in another."""

import os
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch as th
import torch.distributed as dist

from improved_diffusion import dist_util, logger
from improved_diffusion.options.command_line import as_words
from improved_diffusion.system import cpu

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
HANGS = 300  # seconds after which a program is not slow but waits for ever
SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def in_process(script, flags, *words):
    """Run a script as ``python scripts/<script> <words> <flags>`` would; return its status."""
    before = sys.argv, sys.path
    threads, handlers = th.get_num_threads(), {n: signal.getsignal(n) for n in ENDING}
    numbers = random.getstate(), np.random.get_state(), th.get_rng_state()
    machine = dist_util._device, cpu.configured
    sys.argv, sys.path = [str(SCRIPTS / script)], [str(SCRIPTS), *sys.path]
    sys.argv += [*map(str, words), *as_words(flags)]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exit:
        return exit.code
    finally:
        sys.argv, sys.path = before
        for number, handler in handlers.items():
            signal.signal(number, handler)
        th.set_num_threads(threads)
        th.set_flush_denormal(False)
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
        th.set_rng_state(numbers[2])
        dist_util._device, cpu.configured = machine
        logger.reset()
        if dist.is_initialized():
            dist.destroy_process_group()
    raise AssertionError("a script always exits")


def run_program(program, **environment):
    """Run Python's words in a process of its own; what it printed, once it has ended well."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
