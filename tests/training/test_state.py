"""What a state file holds, and random numbers that go on where they were."""

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch as th

from improved_diffusion.errors import InputError
from improved_diffusion.resample import UniformSampler
from improved_diffusion.script_util import create_gaussian_diffusion
from improved_diffusion.training import state
from improved_diffusion.training.state import RankState, TrainState


def some_state():
    rank = RankState(random=state.random_state(), sampler={}, data={"epoch": 2}, log_line={})
    return TrainState(updates=7, last_row_step=5, skipped=[3, 1], seconds=[9.5, 8.0], ranks=[rank])


def test_a_state_comes_back_from_its_file(tmp_path):
    th.save(some_state().as_file(), tmp_path / "state.pt")
    content = th.load(tmp_path / "state.pt", weights_only=True)
    found = TrainState.from_file(content, "state.pt")
    assert (found.updates, found.skipped, found.seconds) == (7, [3, 1], [9.5, 8.0])
    assert found.of_this_rank("state.pt").data == {"epoch": 2}


def test_a_field_that_is_younger_than_the_file_has_its_default():
    content = some_state().as_file()
    del content["skipped"]
    assert TrainState.from_file(content, "state.pt").skipped == [0, 0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 3}, "is of version 3, this program reads 2"),
        ({"ranks": None}, "no run's state"),
        ({"ranks": [3]}, "no run's state"),
        ({"ranks": [{"sampler": {}}]}, "no run's state"),
        ({"ranks": [{"random": {}, "data": th.ones(2)}]}, "no run's state"),
        ({"ranks": [th.ones(2)]}, "no run's state"),
        ({"averaged": {"0.9": "1"}}, "no run's state"),
        ({"precision": None}, "no run's state"),
        ({"version": th.ones(0)}, "no run's state"),
        ({"skipped": [0]}, "no run's state"),
        ({"seconds": ["1", "2"]}, "no run's state"),
        ({"seconds": [10**400, 0.0]}, "no run's state"),
        ({"planned": {"1": 10**400}}, "no run's state"),
        ({"columns": [1]}, "no run's state"),
        ({"flags": {"lr": th.ones(2)}}, "no run's state"),
    ],
)
def test_files_of_others(changes, said):
    content = {k: v for k, v in (some_state().as_file() | changes).items() if v is not None}
    with pytest.raises(InputError, match=said):
        TrainState.from_file(content, "state.pt")


def test_as_many_processes_must_go_on():
    two = some_state()
    two.ranks *= 2
    with pytest.raises(InputError, match="of a run of 2 processes, this one has 1"):
        two.of_this_rank("state.pt")


def draws():
    return random.random(), float(np.random.rand()), np.random.randn(), th.rand(2).tolist()


def test_random_numbers_go_on_where_they_were(tmp_path):
    state.seed_everything(3)
    np.random.randn()  # half of a pair: numpy keeps the other half
    draws()
    th.save(state.random_state(), tmp_path / "state.pt")
    wanted = draws()
    state.seed_everything(99)
    saved = th.load(tmp_path / "state.pt", weights_only=True)
    state.restore_random_state(saved)
    assert draws() == wanted


def test_a_seed_decides_all_random_numbers():
    seen = []
    for seed in (3, 3, 4):
        state.seed_everything(seed)
        seen.append(draws())
    assert seen[0] == seen[1]
    assert all(a != b for a, b in zip(seen[0], seen[2], strict=True))


class Stream:
    """Data at a place that has been saved without what came later."""

    def state_dict(self):
        return {"position": 3, "classes": None}

    def load_state_dict(self, state):
        self.state = state


def test_data_of_an_earlier_version_go_on():
    data, sampler = Stream(), UniformSampler(create_gaussian_diffusion(noise_schedule="cosine"))
    rank = RankState.now(sampler, data)
    earlier = replace(rank, data={"position": 2})
    earlier.restore(sampler, data, "state.pt")
    assert data.state == {"position": 2}
    with pytest.raises(InputError, match="no state of this run"):
        replace(rank, data={"position": "2"}).restore(sampler, data, "state.pt")


def test_a_field_that_is_younger_than_the_file_is_not_asked_of_it(monkeypatch):
    @dataclass
    class Younger(RankState):
        heat: dict | None = None

        @classmethod
        def now(cls, sampler, data):
            return cls(**vars(RankState.now(sampler, data)), heat={"degrees": 20})

    sampler = UniformSampler(create_gaussian_diffusion(noise_schedule="cosine"))
    monkeypatch.setattr(state, "RankState", Younger)
    whole = Younger.now(sampler, None)
    for known in (whole, replace(whole, heat=None)):
        known.restore(sampler, None, "state.pt")
    with pytest.raises(InputError, match="no state of this run"):
        replace(whole, heat={"degrees": "20"}).restore(sampler, None, "state.pt")
