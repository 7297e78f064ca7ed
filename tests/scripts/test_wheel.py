"""The package as others install it: from a wheel, without the project's folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from improved_diffusion.options.command_line import as_words

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = PROJECT / "improved_diffusion"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that the wheel was unpacked into."""
    pytest.importorskip("setuptools")
    root = tmp_path_factory.mktemp("wheel")
    shutil.copytree(PACKAGE, root / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, root)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, *offline, "--wheel-dir", root, root], check=True)
    (wheel,) = root.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root / "site")
    return root / "site"


def test_it_holds_the_package(installed):
    def files(root):
        kinds = (path for path in root.rglob("*") if path.suffix in (".py", ".typed"))
        return sorted(str(path.relative_to(root)) for path in kinds)

    assert files(installed / PACKAGE.name) == files(PACKAGE)


def test_runs_go_to_the_working_folder(installed, images, tiny, tmp_path):
    flags = tiny | {"data_dir": images, "batch_size": 2, "max_steps": 1}
    script = PROJECT / "scripts" / "image_train.py"
    subprocess.run(
        [sys.executable, script, *as_words(flags)],
        env=os.environ | {"PYTHONPATH": str(installed)},
        cwd=tmp_path,
        check=True,
    )
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "model000001.pt").is_file()
    assert not (installed / "runs").exists()
