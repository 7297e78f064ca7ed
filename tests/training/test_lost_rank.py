"""What a rank saves when another one is gone."""

import pytest
import torch as th
from filelock import FileLock, Timeout

from improved_diffusion import dist_util
from improved_diffusion.system.files import LOCK_NAME
from improved_diffusion.training import lost_rank
from improved_diffusion.training.checkpoints import Part, complete_steps

PARTS = [Part(prefix, dict, print, "") for prefix in ("model", "opt", "state")]


@pytest.fixture(params=[0, 1])
def rank(request, monkeypatch):
    monkeypatch.setattr(dist_util, "rank", lambda: request.param)
    return request.param


def saved(folder):
    return sorted(path.name for path in folder.glob("*.pt"))


def test_a_whole_state_is_a_checkpoint(tmp_path, rank):
    assert lost_rank.save_alone(str(tmp_path), 7, PARTS, True) == "saved 7 updates"
    assert complete_steps(str(tmp_path)) == [7]


def test_of_another_state_the_weights_are_saved_alone(tmp_path, rank):
    said = lost_rank.save_alone(str(tmp_path), 7, PARTS, False)
    assert said == "saved the weights only, from which auto does not go on, of 7 updates"
    assert saved(tmp_path) == ["model000007.pt", "opt000007.pt"]


def test_what_another_rank_has_saved_stays(tmp_path, rank):
    lost_rank.save_alone(str(tmp_path), 7, PARTS, True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}
    lost_rank.save_alone(
        str(tmp_path), 7, [Part("model", lambda: {"w": th.ones(1)}, print, "")], True
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")} == before


def test_others_wait_for_who_holds_the_folder(tmp_path, rank, monkeypatch):
    monkeypatch.setattr(lost_rank, "PATIENCE", 0)
    with FileLock(tmp_path / LOCK_NAME):
        if rank == 0:  # it holds the folder itself
            lost_rank.save_alone(str(tmp_path), 7, PARTS, True)
        else:
            with pytest.raises(Timeout):
                lost_rank.save_alone(str(tmp_path), 7, PARTS, True)
    assert complete_steps(str(tmp_path)) == ([7] if rank == 0 else [])
