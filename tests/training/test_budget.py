"""The number of updates that a budget of time has room for."""

import pytest

from improved_diffusion.errors import InputError
from improved_diffusion.training.budget import FEWEST, SHARE, UNMEASURED, Pace


def pace(minutes, durations):
    made = Pace(minutes)
    for seconds in durations:
        made.add(seconds)
    return made


def test_the_first_updates_do_not_count():
    measured = pace(60, [100.0] * UNMEASURED + [2.0] * FEWEST)
    assert measured.fitting(0.0, [], 0.0) == 1800


def test_what_interrupts_and_what_follows_counts():
    measured = pace(60, [100.0] * UNMEASURED + [1.0, 3.0] * FEWEST)
    assert measured.fitting(1000.0, [(10, 1.0), (100, 40.0)], 100.0) == 2500 / (2 + 0.1 + 0.4)


def test_speed_is_known_after_a_share_of_the_budget_and_some_updates():
    for minutes, seconds in ((60, 0.25), (1, 0.25)):
        measured, count = Pace(minutes), 0
        while not measured.is_known(count * seconds):
            measured.add(seconds)
            count += 1
        assert count == UNMEASURED + max(FEWEST, SHARE * 60 * minutes / seconds)


@pytest.mark.parametrize(
    ("durations", "elapsed", "said"),
    [
        (
            [20.0] * 2,
            57.0,
            "time_budget 1 .*: 57 seconds of it are over, and of 25 updates .* 2 were made",
        ),
        ([2.0] * (UNMEASURED + 5), 30.0, ": 30 seconds of it are over, .* 10 were made here"),
    ],
)
def test_a_budget_that_ends_before_the_speed_is_known_is_refused(durations, elapsed, said):
    measured = pace(1, durations)
    measured.is_known(elapsed - 1)
    with pytest.raises(InputError, match=said):
        measured.is_known(elapsed)


def test_a_budget_without_room_for_an_update_is_refused():
    measured = pace(1, [1.0] * (UNMEASURED + FEWEST))
    assert measured.fitting(28.0, [], 31.0) == 1
    with pytest.raises(InputError, match="time_budget 1 has no room for another update"):
        measured.fitting(28.1, [], 31.0)
