"""Rows of the log: what is removed is said."""

import pytest

from improved_diffusion import logger
from improved_diffusion.training.log_rows import cut_log, write_unfinished_row
from improved_diffusion.training.state import TrainState

ROWS = "step,loss\n0,0.5\n10,0.4\n20,0.3\n"


def test_rows_that_are_cut_are_kept_and_told(tmp_path):
    with logger.scoped_configure(dir=tmp_path, format_strs=["log"]):
        for step, told in ((10, "Moved 2 rows of update 10 and later, to be"), (0, "Moved 3 rows")):
            (tmp_path / "progress.csv").write_text(ROWS)
            cut_log(step)
            assert told in (tmp_path / "log.txt").read_text()
            kept = (tmp_path / "progress.csv").read_text().splitlines()
            moved = (tmp_path / "progress.csv.bak").read_text().splitlines()
            assert kept[1:] + moved[1:] == ROWS.splitlines()[1:]
        (tmp_path / "log.txt").write_text("")
        cut_log(30)
        assert "Moved" not in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("updates", [13, 14])  # the last one did not end, or did
def test_a_row_before_its_time_counts_the_updates_in_it(updates, tmp_path):
    with logger.scoped_configure(dir=tmp_path, format_strs=["csv"]):
        logger.logkv("step", 13)
        write_unfinished_row(TrainState(updates=updates, last_row_step=10), seconds=1.5)
    assert "2.0" in (tmp_path / "progress.csv").read_text()


def test_what_is_found_before_the_next_update_is_no_row_yet(tmp_path):
    with logger.scoped_configure(dir=tmp_path, format_strs=["csv"]):
        logger.logkv("kid", 0.5)
        write_unfinished_row(TrainState(updates=3, last_row_step=2), seconds=1.5)
    assert (tmp_path / "progress.csv").read_text() == ""
