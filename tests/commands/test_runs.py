import json
import os
import subprocess
import sys

import pytest
import torch as th

from improved_diffusion import dist_util, logger
from improved_diffusion.commands import runs
from improved_diffusion.errors import InputError
from improved_diffusion.options.training import ImageTraining, RunningOptions
from improved_diffusion.sampling.samples import RESULTS
from improved_diffusion.system import cpu


def at(folder):
    return RunningOptions(log_dir=folder)


def test_the_default_folder_lies_in_the_project(monkeypatch):
    folder = runs.default_log_dir("image_train")
    assert os.path.dirname(folder) == str(runs.home() / "runs")
    assert os.path.basename(folder).startswith("image_train-20")
    monkeypatch.setenv("OPENAI_LOGDIR", "/somewhere")
    assert runs.default_log_dir("image_train") == "/somewhere"


def test_data_of_the_project_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "home", lambda: tmp_path)
    assert runs.find_data_dir("given") == "given"
    with pytest.raises(InputError, match=r"datasets/cifar10\.py.*datasets/digits\.py"):
        runs.find_data_dir("")
    with pytest.raises(InputError, match=r"no --reference given.* give --reference$"):
        runs.find_data_dir("", "cifar_test", "reference")
    (tmp_path / "datasets" / "cifar_train").mkdir(parents=True)
    assert runs.find_data_dir("") == str(tmp_path / "datasets" / "cifar_train")


def test_an_open_run_has_its_folder_and_says_it(tmp_path, capsys):
    with runs.open_run("image_train", at(str(tmp_path / "a" / "b")), trains=True) as folder:
        assert folder == str(tmp_path / "a" / "b") == logger.get_dir()
        first = capsys.readouterr().out
        logger.logkv("step", 0)
        logger.dumpkvs()
    assert folder in first
    assert folder in capsys.readouterr().out.splitlines()[-1]
    assert {"log.txt", "progress.csv"} <= set(os.listdir(folder))


@pytest.mark.parametrize(
    ("error", "made", "is_said"),
    [(OSError, True, True), (OSError, False, False), (InputError, True, False)],
)
def test_the_folder_of_a_run_that_fails_is_said_last_where_it_has_results(
    error, made, is_said, tmp_path, capsys
):
    def fail():
        with runs.open_run("image_train", at(str(tmp_path / "run"))):
            if made:
                (tmp_path / "run" / "model000001.pt").write_text("x")
            raise error("no")

    with pytest.raises(error, match="no"):
        fail()
    said = f"Results are in {tmp_path / 'run'}" in capsys.readouterr().out.splitlines()
    assert said == is_said


def test_one_folder_is_for_one_run_at_a_time(tmp_path):
    folder = str(tmp_path / "run")
    with (
        runs.open_run("image_train", at(folder)),
        pytest.raises(InputError, match="another run is writing"),
        runs.open_run("image_train", at(folder)),
    ):
        pass
    with runs.open_run("image_train", at(folder)):
        pass


def test_threads_device_and_seed_reach_the_process(monkeypatch):
    seen = []
    monkeypatch.setattr(cpu, "configure_cpu", seen.append)
    monkeypatch.setattr(dist_util, "use_device", seen.append)
    monkeypatch.setattr(dist_util, "setup_dist", lambda: None)
    monkeypatch.setattr(runs, "seed_everything", seen.append)
    runs.prepare(RunningOptions(num_threads=3, device="cpu", seed=7))
    assert seen == [3, "cpu", 7]


@pytest.mark.slow
def test_a_killed_run_frees_its_folder(tmp_path):
    program = (
        "import os, signal\n"
        "from improved_diffusion.commands import runs\n"
        "from improved_diffusion.options.training import RunningOptions\n"
        f"with runs.open_run('image_train', RunningOptions(log_dir={str(tmp_path)!r})):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode < 0
    (tmp_path / ".model000001.pt.x.improved_diffusion.tmp").touch()
    with runs.open_run("image_train", at(str(tmp_path))):
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
    with runs.open_run("image_train", at(str(run)), trains=True):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in others)


@pytest.mark.parametrize("place", ["checkpoints", "link", "run"])
def test_the_folder_of_checkpoints_is_held_too(place, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "checkpoints")
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", str(tmp_path / "checkpoints"))
    with runs.open_run("image_train", at(str(tmp_path / "run")), trains=True):
        monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", str(tmp_path / place))
        with (
            pytest.raises(InputError, match=r"another run .* give another DIFFUSION_BLOB_LOGDIR"),
            runs.open_run("image_train", at(str(tmp_path / "other")), trains=True),
        ):
            pass
        with runs.open_run("image_sample", at(str(tmp_path / "samples"))):
            pass  # writes no checkpoints
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", str(tmp_path / "run"))
    with runs.open_run("image_train", at(str(tmp_path / "run")), trains=True):
        pass  # one folder for both


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_in_the_way_of_the_folder(tmp_path, inside):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="cannot write to the log directory"),
        runs.open_run("image_train", at(str(tmp_path / "file" / inside))),
    ):
        pass


def test_the_configuration_describes_the_run(tmp_path):
    runs.write_config(str(tmp_path), "image_train", ImageTraining(lr=0.5), data={"images": 3})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["script"] == "image_train"
    assert config["flags"] == ImageTraining(lr=0.5).as_dict()
    assert config["data"] == {"images": 3}
    assert {"torch", "numpy", "python", "improved_diffusion"} <= config["versions"].keys()
    assert config["processor"]
    assert config["started"].startswith("20")


def test_the_configuration_lies_beside_the_checkpoints_too(tmp_path, monkeypatch):
    (blobs := tmp_path / "blobs").mkdir()
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", str(blobs))
    runs.write_config(str(tmp_path), "image_train", ImageTraining(lr=0.5))
    texts = {(folder / "config.json").read_text() for folder in (tmp_path, blobs)}
    assert len(texts) == 1


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


def resume(saved, given):
    """Compare the flags of a checkpoint with those of a run that goes on from it."""
    before = ImageTraining(**{"log_dir": "a"} | saved).as_dict()
    runs.check_resumed_flags(before, ImageTraining(**{"log_dir": "b"} | given))


@pytest.mark.parametrize(
    ("flag", "before", "now"),
    [("num_channels", 32, 64), ("noise_schedule", "cosine", "linear"), ("seed", 1, 2)],
)
def test_flags_that_shape_the_numbers_must_stay(flag, before, now):
    with pytest.raises(InputError, match=f"--{flag} was {before} and is {now} now"):
        resume({flag: before}, {flag: now})


def test_all_changed_flags_are_named_at_once():
    saved, given = {"seed": 1, "batch_size": 4, "lr": 1}, {"seed": 2, "batch_size": 8, "lr": 2}
    with pytest.raises(InputError, match="--batch_size was 4 and is 8 now; --seed was 1") as raised:
        resume(saved, given)
    assert "--lr" not in str(raised.value)


@pytest.mark.parametrize("flag", ["max_steps", "log_interval", "save_interval", "sample_interval"])
def test_flags_that_may_change_are_taken_and_logged(flag, silent_log, tmp_path):
    with logger.scoped_configure(dir=tmp_path, format_strs=["log"]):
        resume({flag: 1}, {flag: 2})
    text = (tmp_path / "log.txt").read_text()
    assert f"--{flag} 2 (was 1)" in text
    assert "--log_dir" not in text


def test_a_flag_that_is_younger_than_the_checkpoint_had_its_default():
    saved = ImageTraining().as_dict()
    del saved["poly_power"]
    runs.check_resumed_flags(saved, ImageTraining())
    with pytest.raises(InputError, match=r"--poly_power was 2.0 and is 3.0 now"):
        runs.check_resumed_flags(saved, ImageTraining(poly_power=3.0))


def test_the_command_to_continue(monkeypatch):
    words = ["--lr", "0.1", "--log_dir", "old", "--resume_checkpoint=x", "--data_dir", "a b"]
    monkeypatch.setattr(sys, "argv", ["scripts/image_train.py", *words])
    assert runs.command_to_continue("/run") == (
        "python scripts/image_train.py --lr 0.1 --data_dir 'a b' "
        "--log_dir /run --resume_checkpoint auto"
    )
    monkeypatch.setattr(runs.dist_util, "world_size", lambda: 2)
    command = runs.command_to_continue("/run", "/run/model000003.pt")
    assert command.startswith(
        "torchrun --standalone --nproc_per_node 2 scripts/image_train.py --lr"
    )
    assert command.endswith("--log_dir /run --resume_checkpoint /run/model000003.pt")
    monkeypatch.setattr(runs.dist_util, "world_size", lambda: 1)
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", "/large disk")
    command = runs.command_to_continue("/run")
    assert command.startswith("DIFFUSION_BLOB_LOGDIR='/large disk' python scripts/image_train.py")
    monkeypatch.setattr(os, "name", "nt")  # cmd.exe knows double quotes only
    command = runs.command_to_continue("C:\\my runs")
    assert command.startswith('set "DIFFUSION_BLOB_LOGDIR=/large disk" && python scripts/image_tr')
    assert command.endswith('--data_dir "a b" --log_dir "C:\\my runs" --resume_checkpoint auto')


def test_a_package_without_its_project_writes_to_the_working_folder(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "improved_diffusion" / "commands" / "runs.py"
    monkeypatch.setattr(runs, "__file__", str(installed))
    monkeypatch.chdir(tmp_path)
    assert runs.home() == tmp_path
    assert runs.default_log_dir("image_train").startswith(str(tmp_path / "runs" / "image_train-"))


def test_a_checkpoint_that_kept_no_flags_goes_on():
    runs.check_resumed_flags({}, ImageTraining(seed=3, num_channels=32))


def test_an_empty_value_is_seen_in_the_message():
    with pytest.raises(InputError, match="--attention_resolutions was '' and is 16,8 now"):
        resume({"attention_resolutions": ""}, {})


def overwrite(folder):
    """Replace earlier results in a folder by one file."""
    with runs.new_results(str(folder), RESULTS, overwrite=True):
        (folder / "samples_2x2x2x3.npz").touch()


def test_pictures_that_others_made_stay(tmp_path, capsys):
    """Any in images/, if there are no samples beside it, and those of other names in any case."""
    (tmp_path / "images").mkdir()
    numbered, named = (tmp_path / "images" / name for name in ("IMG_000001.png", "holiday.png"))
    named.touch()
    with runs.new_results(str(tmp_path), RESULTS, overwrite=False):
        pass
    numbered.touch()
    refused = pytest.raises(InputError, match=r"results of this script already \(IMG_000001.png\)")
    with refused, runs.new_results(str(tmp_path), RESULTS, overwrite=False):
        pass
    overwrite(tmp_path)
    assert (numbered.exists(), named.exists(), capsys.readouterr().out) == (True, True, "")
    (tmp_path / "samples_2x2x2x3.npz").rename(tmp_path / "samples_1x2x2x3.npz")
    overwrite(tmp_path)
    assert (numbered.exists(), named.exists()) == (False, True)
    assert [path.name for path in tmp_path.glob("*.npz")] == ["samples_2x2x2x3.npz"]


def test_a_log_directory_behind_a_url_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = pytest.raises(InputError, match="gs://bucket/run must be a local folder")
    with refused, runs.open_run("image_train", at("gs://bucket/run")):
        pass
    assert not any(tmp_path.iterdir())
