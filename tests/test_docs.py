"""The pages: flags as the code has them, links that lead somewhere, a short front door."""

import re
import runpy
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (PROJECT / page).read_text("utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [link for link in links if link and "://" not in link]
    assert [link for link in local if not (PROJECT / page).parent.joinpath(link).exists()] == []
