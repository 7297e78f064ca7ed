"""A few changed files of each kind; ``make soak`` reads a hundred thousand."""

import os

import pytest

if not os.path.exists("/proc/self/statm"):
    pytest.skip("memory is bounded by what /proc tells", allow_module_level=True)
import fuzzing
from hypothesis import HealthCheck, Phase, given, settings

CASES = 15  # of each kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzing")


@pytest.fixture(scope="module")
def subjects(folder):
    yield fuzzing.subjects(folder)
    fuzzing.logger.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzzing.NAMES)
def test_changed_files_are_read_or_refused(subjects, folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    subject = subjects[name]
    outcomes = set()

    @settings(
        max_examples=CASES,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(subject.cases)
    def read(case):
        outcomes.add(fuzzing.is_read(subject, case, folder))

    read()
    assert outcomes == {True, False}, "nothing was read, or nothing refused"
    assert not list(folder.rglob("harm"))


@pytest.mark.parametrize("harm", range(3))
def test_harm_is_noticed(folder, monkeypatch, harm):
    """Or the test above could not fail."""
    monkeypatch.chdir(folder)
    actions = (
        lambda _: os.mkdir("../harm"),
        lambda _: eval("1 + 1"),
        lambda _: bytearray(4 * fuzzing.ROOM),  # the heap may have kept some
    )
    with pytest.raises((AssertionError, MemoryError)):
        fuzzing.is_read(fuzzing.Subject(None, actions[harm]), None, folder)
    assert not (folder.parent / "harm").exists()
