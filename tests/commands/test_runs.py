import argparse
import json
import os
import subprocess
import sys

import pytest
import torch as th

from improved_diffusion import dist_util, logger
from improved_diffusion.commands import runs
from improved_diffusion.errors import InputError
from improved_diffusion.system import cpu


def test_the_default_folder_lies_in_the_project(monkeypatch):
    folder = runs.default_log_dir("image_train")
    assert os.path.dirname(folder) == str(runs.PROJECT / "runs")
    assert os.path.basename(folder).startswith("image_train-20")
    monkeypatch.setenv("OPENAI_LOGDIR", "/somewhere")
    assert runs.default_log_dir("image_train") == "/somewhere"


def test_data_of_the_project_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PROJECT", tmp_path)
    assert runs.find_data_dir("given") == "given"
    with pytest.raises(InputError, match=r"datasets/cifar10\.py.*datasets/digits\.py"):
        runs.find_data_dir("")
    (tmp_path / "datasets" / "cifar_train").mkdir(parents=True)
    assert runs.find_data_dir("") == str(tmp_path / "datasets" / "cifar_train")


def test_an_open_run_has_its_folder_and_says_it(tmp_path, capsys):
    with runs.open_run("image_train", str(tmp_path / "a" / "b"), table=True) as folder:
        assert folder == str(tmp_path / "a" / "b") == logger.get_dir()
        first = capsys.readouterr().out
        logger.logkv("step", 0)
        logger.dumpkvs()
    assert folder in first
    assert folder in capsys.readouterr().out.splitlines()[-1]
    assert {"log.txt", "progress.csv"} <= set(os.listdir(folder))


def test_the_folder_is_said_last_although_the_run_fails(tmp_path, capsys):
    def fail():
        with runs.open_run("image_train", str(tmp_path / "run")):
            raise InputError("no")

    with pytest.raises(InputError, match="no"):
        fail()
    assert str(tmp_path / "run") in capsys.readouterr().out.splitlines()[-1]


def test_one_folder_is_for_one_run_at_a_time(tmp_path):
    folder = str(tmp_path / "run")
    with (
        runs.open_run("image_train", folder),
        pytest.raises(InputError, match="another run is writing"),
        runs.open_run("image_train", folder),
    ):
        pass
    with runs.open_run("image_train", folder):
        pass


def test_a_killed_run_frees_its_folder(tmp_path):
    program = (
        "import os, signal\n"
        "from improved_diffusion import runs\n"
        f"with runs.open_run('image_train', {str(tmp_path)!r}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode < 0
    (tmp_path / ".model000001.pt.x.improved_diffusion.tmp").touch()
    with runs.open_run("image_train", str(tmp_path)):
        assert not (tmp_path / ".model000001.pt.x.improved_diffusion.tmp").exists()


def test_what_killed_runs_left_is_removed_but_not_what_others_may_be_writing(tmp_path, monkeypatch):
    run, checkpoints = tmp_path / "run", tmp_path / "checkpoints"
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", str(checkpoints))
    left = [
        run / ".config.json.x.improved_diffusion.tmp",
        run / "samples" / ".000200.png.x.improved_diffusion.tmp",
        run / "samples" / ".000200_model.png.x.improved_diffusion.tmp",
        checkpoints / ".model000001.pt.x.improved_diffusion.tmp",
    ]
    others = [
        run / "samples" / ".samples_4x8x8x3.npz.x.improved_diffusion.tmp",  # by image_sample.py
        run / "samples" / ".000200.png.tmp",
    ]
    for path in (*left, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with runs.open_run("image_train", str(run), checkpoints=True):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in others)


@pytest.mark.parametrize("place", ["checkpoints", "link", "run"])
def test_the_folder_of_checkpoints_is_held_too(place, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "checkpoints")
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", str(tmp_path / "checkpoints"))
    with runs.open_run("image_train", str(tmp_path / "run"), checkpoints=True):
        monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", str(tmp_path / place))
        with (
            pytest.raises(InputError, match=r"another run .* give another DIFFUSION_BLOB_LOGDIR"),
            runs.open_run("image_train", str(tmp_path / "other"), checkpoints=True),
        ):
            pass
        with runs.open_run("image_sample", str(tmp_path / "samples")):
            pass  # writes no checkpoints
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", str(tmp_path / "run"))
    with runs.open_run("image_train", str(tmp_path / "run"), checkpoints=True):
        pass  # one folder for both


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_in_the_way_of_the_folder(tmp_path, inside):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="cannot write to the log directory"),
        runs.open_run("image_train", str(tmp_path / "file" / inside)),
    ):
        pass


def test_the_configuration_describes_the_run(tmp_path):
    runs.write_config(str(tmp_path), "image_train", {"lr": 0.5}, data={"images": 3})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["script"] == "image_train"
    assert config["flags"] == {"lr": 0.5}
    assert config["data"] == {"images": 3}
    assert {"torch", "numpy", "python", "improved_diffusion"} <= config["versions"].keys()
    assert config["processor"]
    assert config["started"].startswith("20")


def test_the_configuration_lies_beside_the_checkpoints_too(tmp_path, monkeypatch):
    blobs = tmp_path / "new" / "blobs"
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", str(blobs))
    runs.write_config(str(tmp_path), "image_train", {"lr": 0.5})
    texts = {(folder / "config.json").read_text() for folder in (tmp_path, blobs)}
    assert len(texts) == 1
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot make DIFFUSION_BLOB_LOGDIR .*set another"):
        runs.write_config(str(tmp_path), "image_train", {"lr": 0.5})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_says_what_computes(device, tmp_path, monkeypatch):
    monkeypatch.setattr(dist_util, "dev", lambda: th.device(device))
    monkeypatch.setattr(cpu, "has_native_bfloat16", lambda: True)
    cpu.configure_cpu(1)
    with logger.scoped_configure(dir=tmp_path, format_strs=["log"]):
        runs.say_what_computes("fp32")
    text = (tmp_path / "log.txt").read_text()
    assert ("Device: cuda" in text) == (device == "cuda")
    assert "1 threads" in text
    assert ("--precision bf16 is about" in text) == (device == "cpu")


@pytest.mark.parametrize("flag", ["num_channels", "noise_schedule", "batch_size", "seed"])
def test_flags_that_shape_the_numbers_must_stay(flag):
    with pytest.raises(InputError, match=f"--{flag} was 1 and is 2 now"):
        runs.check_resumed_flags({flag: 1}, {flag: 2})


def test_all_changed_flags_are_named_at_once():
    saved, given = {"seed": 1, "batch_size": 4, "lr": 1}, {"seed": 2, "batch_size": 8, "lr": 2}
    with pytest.raises(InputError, match="--batch_size was 4 and is 8 now; --seed was 1") as raised:
        runs.check_resumed_flags(saved, given)
    assert "--lr" not in str(raised.value)


@pytest.mark.parametrize("flag", ["max_steps", "log_interval", "save_interval", "precision"])
def test_flags_that_may_change_are_taken_and_logged(flag, tmp_path):
    with logger.scoped_configure(dir=tmp_path, format_strs=["log"]):
        runs.check_resumed_flags({flag: "1", "seed": 0}, {flag: "2", "seed": 0, "new": 5})
    assert f"--{flag} 2 (was 1)" in (tmp_path / "log.txt").read_text()


TRAINED = {"image_size": 16, "dropout": 0.1, "lr": 1.0}


def adopt(tmp_path, given=(), content=None, **values):
    text = json.dumps({"flags": TRAINED}) if content is None else content
    (tmp_path / "config.json").write_text(text)
    args = argparse.Namespace(**{"image_size": 64, "dropout": 0.0} | values)
    found = runs.adopt_config(
        args, set(given), str(tmp_path / "model.pt"), {"image_size": 0, "dropout": 0}.keys()
    )
    return vars(args), found


def test_flags_that_are_not_given_come_from_the_configuration(tmp_path):
    assert adopt(tmp_path) == ({"image_size": 16, "dropout": 0.1}, {})


def test_a_flag_that_contradicts_the_configuration_is_named_with_both_values(tmp_path):
    with pytest.raises(InputError, match="--image_size is 32, trained with 16"):
        adopt(tmp_path, given={"image_size"}, image_size=32)


def test_flags_that_using_a_model_may_change(tmp_path):
    flags, _ = adopt(tmp_path, given={"dropout", "image_size"}, dropout=0.5, image_size=16)
    assert flags == {"image_size": 16, "dropout": 0.5}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"flags": 3}', "\xff"])
def test_another_files_configuration(tmp_path, content):
    with pytest.raises(InputError, match=r"config\.json is not a run's configuration"):
        adopt(tmp_path, content=content)


def test_a_model_without_a_configuration(tmp_path):
    args = argparse.Namespace(image_size=64)
    assert not runs.adopt_config(args, set(), str(tmp_path / "model.pt"), {"image_size"})
    assert args.image_size == 64


def test_the_command_to_continue(monkeypatch):
    words = ["--lr", "0.1", "--log_dir", "old", "--resume_checkpoint=x", "--data_dir", "a b"]
    monkeypatch.setattr(sys, "argv", ["scripts/image_train.py", *words])
    assert runs.command_to_continue("/run") == (
        "python scripts/image_train.py --lr 0.1 --data_dir 'a b' "
        "--log_dir /run --resume_checkpoint auto"
    )
