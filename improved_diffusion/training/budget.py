"""How many updates a budget of time has room for, measured over the first ones."""

from collections.abc import Iterable

from .. import logger
from ..errors import InputError

UNMEASURED = 5  # first updates of a process, in which memory is fetched and code compiled
FEWEST = 20  # updates to measure after them, at least
SHARE = 0.05  # of the budget to measure them for, at least


class Pace:
    """Measures updates until it can tell how many fit into a budget.

    :param minutes: the budget, of which earlier processes of a run have used a part.
    """

    def __init__(self, minutes: float):
        self.minutes = minutes
        self._updates = 0
        self._measured = 0
        self._seconds = 0.0  # of the measured ones

    @property
    def name(self) -> str:
        """The minutes in words: the key of the planned number of updates in a checkpoint."""
        return f"{self.minutes:g}"

    def add(self, seconds: float) -> None:
        """Take in the duration of one update."""
        self._updates += 1
        if self._updates > UNMEASURED:
            self._measured += 1
            self._seconds += seconds

    def is_known(self, elapsed: float, left: int | None = None, before: float = 0.0) -> bool:
        """Whether enough updates are measured.

        :param elapsed: seconds of the budget that are over.
        :param left: updates after which another limit ends the run.
        :param before: seconds that an update took in earlier processes, if there were any.
        :raises InputError: if the budget ends before that.
        """
        each = self._seconds / self._measured if self._measured else before
        missing = max(0, UNMEASURED + FEWEST - self._updates)
        unmeasured = max(0.0, SHARE * 60 * self.minutes - self._seconds)
        ahead = max(missing * each, unmeasured)
        if left is not None:
            ahead = min(ahead, left * each)
        if elapsed + ahead >= 60 * self.minutes:
            raise InputError(
                f"time_budget {self.name} is too short to measure how fast updates are: "
                f"{elapsed:.0f} seconds of it are over, and of {UNMEASURED + FEWEST} updates that "
                f"are needed {self._updates} were made here; give more minutes, or --max_steps"
            )
        return not (missing or unmeasured)

    def fitting(self, elapsed: float, pauses: Iterable[tuple[int, float]], last: float) -> int:
        """How many further updates the budget has room for.

        :param elapsed: seconds of it that are over.
        :param pauses: what interrupts updates: every so many of them, for so many seconds.
        :param last: seconds of what else is to come.
        :raises InputError: if there is no room for one.
        """
        pausing = sum(seconds / every for every, seconds in pauses)
        each = self._seconds / self._measured + pausing
        fitting = int((60 * self.minutes - elapsed - last) / each)
        if fitting < 1:
            raise InputError(
                f"time_budget {self.name} has no room for another update beside what is drawn, "
                f"judged and saved, {elapsed:.0f} seconds of it being over; give more minutes, or "
                "--max_steps"
            )
        return fitting

    def say(self, updates: int) -> None:
        """Say how many updates were planned."""
        logger.log(f"Training: {updates} updates in the time budget of {self.name} minutes")
