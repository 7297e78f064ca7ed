"""Importing any module changes nothing in the process that imports it."""

import json
import os
import pkgutil
import subprocess
import sys

import pytest

import improved_diffusion

NEEDED = ("PATH", "PYTHONPATH", "SYSTEMROOT", "TEMP")
PROGRAM = """
import importlib, json, os, signal, sys

print(f"started as {{os.getpid()}}", file=sys.stderr, flush=True)
{first}

def state():
    torch = sys.modules.get("torch")
    return {{
        "hook": str(sys.excepthook),
        "handlers": {{number: str(signal.getsignal(number)) for number in signal.valid_signals()}},
        "environment": dict(os.environ),
        "threads": torch.get_num_threads() if {torch_is_there} else None,
    }}

before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = state()
print(json.dumps([os.getpid(), [key for key in before if before[key] != after[key]]]))
"""


def modules():
    """The names of all modules of the package."""
    found = pkgutil.walk_packages(improved_diffusion.__path__, f"{improved_diffusion.__name__}.")
    return [improved_diffusion.__name__, *(module.name for module in found)]


@pytest.mark.parametrize("first", ["", "import torch\ntorch.set_num_threads(3)"])
@pytest.mark.slow
def test_importing_changes_nothing(first, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(first=first, torch_is_there=bool(first)))
    process = subprocess.Popen(
        [sys.executable, str(program), *modules()],
        # Nothing that this process's imports may have set.
        env={name: os.environ[name] for name in NEEDED if name in os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said, starts = process.communicate(timeout=100)
    assert process.returncode == 0, starts
    assert json.loads(said) == [process.pid, []]
    assert starts.count("started as") == 1


def test_all_modules_are_among_them():
    name = improved_diffusion.__name__
    assert {f"{name}.logger", f"{name}.system.cpu", f"{name}.commands.cli"} < set(modules())
