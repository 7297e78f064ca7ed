"""Running a script in this process, which saves the seconds of a new one."""

import runpy
import sys
from pathlib import Path

import torch.distributed as dist

from improved_diffusion import logger

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def in_process(script, words):
    """Run a script as ``python scripts/<script> <words>`` would; return its exit status."""
    before = sys.argv, sys.path
    sys.argv, sys.path = [str(SCRIPTS / script), *words], [str(SCRIPTS), *sys.path]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exit:
        return exit.code
    finally:
        sys.argv, sys.path = before
        logger.reset()
        if dist.is_initialized():
            dist.destroy_process_group()
    raise AssertionError("a script always exits")
