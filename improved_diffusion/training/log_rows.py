"""Rows of a training's log, which all ranks write together, and the workbook that shows them."""

import os

from .. import dist_util, logger
from ..logs.tables import cut_csv, cut_json
from ..reports.run_workbook import export_workbook
from ..system import allocator
from .previews import newest_picture, survived
from .state import TrainState


def write_row_if_due(state: TrainState, interval: int, seconds: float) -> bool:
    """Write the line in hand where the last update ends an interval.

    :param interval: updates from row to row.
    :param seconds: of training so far.
    :return: whether it was due.
    """
    step = state.updates - 1
    if step <= state.last_row_step or step % interval != 0:
        return False
    _write_row(state, seconds)
    state.last_row_step = step
    return True


def write_unfinished_row(state: TrainState, seconds: float) -> None:
    """Write the last few updates' means too; a resumed run replaces them by a full line."""
    if "step" in logger.getkvs():  # a lone kid belongs to the row of the update that comes next
        _write_row(state, seconds)


def _write_row(state: TrainState, seconds: float) -> None:
    updates = int(logger.getkvs()["step"]) - state.last_row_step
    before = state.seconds[1]
    logger.logkv("wall_time", round(seconds, 3))
    took = max(seconds - before, 1e-3)  # some clocks stand still for longer
    logger.logkv("steps_per_second", round(updates / took, 4))
    with dist_util.agreeing():
        state.columns = sorted({*state.columns, *logger.dumpkvs()})
    state.seconds[1] = seconds


def cut_log(step: int) -> None:
    """Remove the log's rows from a step on, which this run is going to make; only rank 0 does."""
    folder = logger.get_dir()
    if folder and dist_util.rank() == 0:
        if removed := cut_csv(os.path.join(folder, "progress.csv"), step):
            said = f"of update {step} and later" if step else "of a run without a checkpoint"
            rows = "1 row" if removed == 1 else f"{removed} rows"
            logger.log(f"Moved {rows} {said}, to be made again, to progress.csv.bak")
        cut_json(os.path.join(folder, "progress.json"), step)


def export_results() -> None:
    """Write ``results.xlsx`` from the log, if there is one; only rank 0 does."""
    folder = logger.get_dir()
    progress = os.path.join(folder, "progress.csv") if folder else ""
    if folder and dist_util.rank() == 0 and os.path.exists(progress):
        with survived("workbook"):
            workbook = os.path.join(folder, "results.xlsx")
            if os.path.getsize(progress):
                export_workbook(progress, workbook, picture=newest_picture(folder))
        allocator.give_back_memory()  # a long log's workbook takes more than a step does
