import contextlib
import os

import pytest
import torch as th

from improved_diffusion.errors import InputError
from improved_diffusion.training import checkpoints

PARTS = ("model", "ema_0.9_", "ema_0.999_", "opt", "state")


def save(folder, step, value=0.0):
    content = {name: {"value": th.tensor(value)} for name in PARTS}
    return checkpoints.save_checkpoint(str(folder), step, content)


def files_of(folder, step):
    return sorted(name for name in os.listdir(folder) if f"{step:06d}" in name)


def test_the_newest_is_the_one_with_most_updates(tmp_path):
    assert checkpoints.newest_checkpoint(str(tmp_path)) is None
    assert checkpoints.newest_checkpoint(str(tmp_path / "none")) is None
    for step in (5, 1000000, 40):
        save(tmp_path, step)
    assert checkpoints.complete_steps(str(tmp_path)) == [5, 40, 1000000]
    assert checkpoints.newest_checkpoint(str(tmp_path)) == str(tmp_path / "model1000000.pt")


@pytest.mark.parametrize("missing", ["state", "model"])
def test_without_its_state_or_model_it_does_not_count(tmp_path, missing):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / f"{missing}000002.pt").unlink()
    assert checkpoints.newest_checkpoint(str(tmp_path)) == str(tmp_path / "model000001.pt")


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3]), (1, [3]), (2, [2, 3]), (9, [1, 2, 3])])
def test_older_checkpoints_are_removed_whole(tmp_path, keep, left):
    (tmp_path / "results000001.pt").touch()
    for step in (1, 2, 3):
        save(tmp_path, step)
    checkpoints.remove_older_checkpoints(str(tmp_path), keep)
    assert checkpoints.complete_steps(str(tmp_path)) == left
    files = {step: len(files_of(tmp_path, step)) for step in (2, 3)}
    assert files == {step: 5 if step in left else 0 for step in (2, 3)}
    assert (tmp_path / "results000001.pt").exists()


def test_what_is_left_of_torn_older_checkpoints_is_removed(tmp_path):
    """Of the names of a checkpoint's files only, and only with a number of checkpoints to keep."""
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    (tmp_path / "state000001.pt").unlink()  # killed while it was removed
    for name in ("model", "ema_0.9_", "opt"):  # of these only a state and an EMA are left
        (tmp_path / f"{name}000003.pt").unlink()
    (tmp_path / "state000005.pt").unlink()  # of the newest, which is still being written
    foreign = ["model1.pt", "model0000001.pt", "ema_best_000001.pt", "opt000001.pt.old", "a.pt"]
    for name in foreign:
        (tmp_path / name).touch()
    everything = set(os.listdir(tmp_path))
    checkpoints.remove_older_checkpoints(str(tmp_path), 0)
    assert set(os.listdir(tmp_path)) == everything
    checkpoints.remove_older_checkpoints(str(tmp_path), 2)
    wanted = {name for step in (2, 4, 5) for name in files_of(tmp_path, step)}
    assert len(wanted) == 14
    assert set(os.listdir(tmp_path)) == wanted | set(foreign)


@pytest.mark.parametrize("removals", range(12))
def test_a_removal_that_is_killed_leaves_nothing_that_counts(tmp_path, monkeypatch, removals):
    for step in (1, 2, 3):
        save(tmp_path, step)
    remove, left = os.unlink, [None] * removals

    def die(path):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        remove(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", die)
        with contextlib.suppress(KeyboardInterrupt):
            checkpoints.remove_older_checkpoints(str(tmp_path), 1)
    for step in checkpoints.complete_steps(str(tmp_path)):
        assert len(files_of(tmp_path, step)) == 5
    checkpoints.remove_older_checkpoints(str(tmp_path), 1)
    assert sorted(os.listdir(tmp_path)) == files_of(tmp_path, 3)


def test_an_incomplete_checkpoint_is_not_counted_among_those_to_keep(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "state000002.pt").unlink()
    checkpoints.remove_older_checkpoints(str(tmp_path), 1)
    assert checkpoints.complete_steps(str(tmp_path)) == [1]


def make_files(folder, *names):
    for name in names:
        (folder / name).touch()


def emas(step, *rates):
    return [f"ema_{rate}_{step:06d}.pt" for rate in rates]


def chosen(folder):
    return os.path.basename(checkpoints.choose_ema(str(folder)))


def test_the_newest_complete_checkpoints_ema_is_chosen(tmp_path):
    for step in (5, 40):
        save(tmp_path, step)
    make_files(tmp_path, *emas(90, 0.9), "model000090.pt")  # its state is missing
    assert chosen(tmp_path) == "ema_0.9_000040.pt"
    (tmp_path / "state000005.pt").unlink()
    for name in emas(40, 0.9, 0.999):
        (tmp_path / name).unlink()
    assert chosen(tmp_path) == "ema_0.9_000090.pt"


@pytest.mark.parametrize(
    ("step", "rate"), [(10, 0.9), (28, 0.9), (29, 0.9), (298, 0.9), (299, 0.99), (40000, 0.9999)]
)
def test_of_several_rates_the_highest_settled_one_is_chosen(step, rate, tmp_path):
    make_files(tmp_path, *emas(step, 0.9, 0.99, 0.9999), f"model{step:06d}.pt")
    make_files(tmp_path, f"state{step:06d}.pt")
    assert chosen(tmp_path) == f"ema_{rate}_{step:06d}.pt"
    assert checkpoints.initial_part(chosen(tmp_path), correct=False).share == rate**step


def test_a_folder_without_any_state_has_its_emas(tmp_path):
    """As the published code leaves it; numbers are compared as numbers."""
    make_files(tmp_path, *emas(990000, 0.9999), *emas(1000000, 0.9999), "model1000000.pt")
    make_files(tmp_path, "ema_best_2000000.pt", "opt1000000.pt", "old_ema_0.9_3000000.pt")
    assert chosen(tmp_path) == "ema_0.9999_1000000.pt"


def test_a_folder_without_an_ema_is_refused(tmp_path):
    make_files(tmp_path, "model000001.pt", "state000001.pt", "ema_best_000001.pt")
    with pytest.raises(InputError, match=r"has no ema_\*\.pt: name a model\*\.pt in it"):
        checkpoints.choose_ema(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "share"),
    [
        ("ema_0.5_000002.pt", 0.25),
        ("gs://bucket/run/ema_0.5_000001.pt", 0.5),
        ("/runs/ema_0.5_000001.pt/model000001.pt", 0),
        ("ema_best_000001.pt", 0),
        ("schema_0.5_000001.pt", 0),
    ],
)
def test_the_share_of_the_initial_weights_stands_in_the_name(path, share):
    assert checkpoints.initial_part(path, correct=False) == (share, None)


@pytest.mark.parametrize("state", [b"torn", {"step": 2}])
def test_without_what_the_state_knows_the_share_is_that_of_the_name(state, tmp_path):
    """The state is damaged, or older than the count of averaged updates; nothing was kept."""
    beside = tmp_path / "state000002.pt"
    beside.write_bytes(state) if isinstance(state, bytes) else th.save(state, beside)
    (tmp_path / "ema_0.5_000002.pt").touch()
    assert checkpoints.initial_part(str(tmp_path / "ema_0.5_000002.pt")) == (0.25, None)


def test_companions_lie_beside_the_model(tmp_path, monkeypatch):
    path = save(tmp_path, 7)
    found = checkpoints.companion(path, "ema_0.9_", 7)
    assert found == str(tmp_path / "ema_0.9_000007.pt")
    assert checkpoints.companion(path, "ema_0.5_", 7) is None
    assert checkpoints.companion(path, "opt", 8) is None
    monkeypatch.chdir(tmp_path)
    assert os.path.samefile(checkpoints.companion("model000007.pt", "opt", 7), "opt000007.pt")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("model000123.pt", 123),
        ("/a/model000001/model1234567.pt", 1234567),
        ("gs://bucket/run/model020000.pt", 20000),
        ("ema_0.9999_020000.pt", 0),
        ("weights.pt", 0),
        ("model.pt", 0),
    ],
)
def test_the_step_stands_in_the_name(name, step):
    assert checkpoints.parse_resume_step_from_filename(name) == step


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state": {}, "param_groups": []}, "is an optimizer's file"),
        ({"version": 1, "updates": 5}, "is a run's state"),
        ({"a": 1}, "holds no model weights"),
        ([th.ones(1)], "holds no model weights"),
        (th.ones(1), "holds no model weights"),
        ({"a": th.ones(1, device="meta")}, "holds no model weights"),
        ({"a": th.ones(2).to_sparse()}, "holds no model weights"),
        ({"a": th.ones(1).expand(2**40)}, "holds no model weights"),
        ({1: th.ones(1), "a": th.ones(1)}, "holds no model weights"),
    ],
)
def test_other_files_are_not_taken_for_a_model(tmp_path, content, said):
    th.save(content, tmp_path / "file.pt")
    with pytest.raises(InputError, match=said):
        checkpoints.load_model_file(str(tmp_path / "file.pt"))


def test_load_into_says_what_does_not_fit(tmp_path):
    th.save(th.nn.Linear(2, 4).state_dict(), tmp_path / "model000001.pt")
    with pytest.raises(InputError, match=r"2 entries differ, first bias.*\[4\] there, \[3\] here"):
        checkpoints.load_into(th.nn.Linear(2, 3), str(tmp_path / "model000001.pt"))


@pytest.mark.parametrize(
    "state",
    [3, {0: 0.5}, {0: {"exp_avg": "x"}}, {0: {"exp_avg": th.ones(1, device="meta")}}],
)
def test_an_optimizers_file_has_moments_by_parameter(tmp_path, state):
    th.save({"state": state, "param_groups": [{"params": [0]}]}, tmp_path / "opt.pt")
    with pytest.raises(InputError, match=r"opt\.pt is no optimizer's file"):
        checkpoints.load_optimizer_file(str(tmp_path / "opt.pt"))


@pytest.mark.parametrize("lacking", ["step", "exp_avg", "exp_avg_sq"])
def test_moments_that_are_not_all_there_are_for_another_optimizer(lacking):
    moments = {"step": th.ones(()), "exp_avg": th.ones(2), "exp_avg_sq": th.ones(2)}
    groups = [{"params": [0]}]
    assert checkpoints.is_for([th.ones(2)], {"state": {0: moments}, "param_groups": groups})
    del moments[lacking]
    assert not checkpoints.is_for([th.ones(2)], {"state": {0: moments}, "param_groups": groups})
