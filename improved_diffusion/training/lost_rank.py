"""What a rank saves on its own, when another one is gone."""

import contextlib
import os
from collections.abc import Iterable

from filelock import FileLock

from .. import dist_util
from ..system.files import LOCK_NAME, is_local
from .checkpoints import Part, complete_steps, save_parts

PATIENCE = 60  # seconds that a rank waits for another one to let go of the folder


def save_alone(folder: str, step: int, parts: Iterable[Part], is_whole: bool) -> str:
    """Save a checkpoint without the help of a rank that is gone, unless another rank has.

    :param is_whole: whether the state has what every rank is to go on with. Otherwise nothing can
        go on exactly: the weights are saved then, but no state, so that ``auto`` goes on from the
        checkpoint before.
    :return: what is saved, in words.
    :raises OSError: if it cannot be written, or nobody lets go of the folder.
    """
    saved, without = "saved", ""
    if not is_whole:
        saved, without = "saved the weights only, from which auto does not go on, of", "state"
    # Rank 0 holds the folder of a run anyway; others wait until it, or who came before, lets go.
    held = dist_util.rank() == 0 or not is_local(folder)
    lock = FileLock(os.path.join(folder, LOCK_NAME), timeout=PATIENCE)
    with contextlib.nullcontext() if held else lock:
        if step not in complete_steps(folder):
            save_parts(folder, step, [part for part in parts if part.prefix != without])
    return f"{saved} {step} updates"
