"""The scripts as their users run them, with tiny models and real image files."""

import json
import re
import shlex
import signal
import zipfile

import killing
import numpy as np
import pytest
from openpyxl import load_workbook
from PIL import Image
from tiny_runs import rows_of

from improved_diffusion.evaluation import bits_per_dim

# --- images: training, going on, sampling, bits/dim, the workbook


@pytest.fixture(scope="module")
def flags(tiny, images):
    """Flags of a class-conditional training."""
    return tiny | {
        "class_cond": True,
        "num_classes": 2,
        "learn_sigma": True,
        "data_dir": images,
        "batch_size": 4,
        "microbatch": 2,
        "log_interval": 1,
        "save_interval": 2,
        "ema_rate": "0.5,0.9",
        "lr": 1e-3,
        "num_threads": 1,
    }


@pytest.fixture(scope="module")
def trained(flags, scripts, tmp_path_factory):
    """A run of three updates, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    out, err = scripts.run_process("image_train.py", **flags, max_steps=3, log_dir=folder)
    assert err == ""
    return folder, out


def test_a_training_leaves_its_files(trained):
    folder, _ = trained
    kinds = ("model", "ema_0.5_", "ema_0.9_", "opt", "state")
    checkpoints = {f"{kind}{step:06d}.pt" for kind in kinds for step in (2, 3)}
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    others = {"config.json", "log.txt", "model000000.pt", "progress.csv", "results.xlsx"}
    assert names == checkpoints | others
    config = json.loads((folder / "config.json").read_text())
    assert config["flags"]["num_channels"] == 32
    assert config["data"]["images"] == 10
    assert config["data"]["classes"] == ["cat", "dog"]
    assert {"summary", "charts"} <= {*load_workbook(folder / "results.xlsx").sheetnames}


def test_a_training_says_what_it_does(trained):
    folder, out = trained
    lines = out.splitlines()
    assert str(folder) in lines[0]
    assert str(folder) in lines[-1]
    assert "Images: 10" in out
    assert "2 classes" in out
    assert "3 updates, 1.20 epochs" in out
    assert "M parameters" in out
    assert len([line for line in lines if line.startswith("step ")]) == 3
    assert "Saving checkpoint 000002" in (folder / "log.txt").read_text()


def test_a_run_goes_on_with_auto(trained, flags, scripts, tmp_path):
    folder, _ = trained
    other = tmp_path / "other"
    settings = flags | {"log_dir": other, "resume_checkpoint": "auto"}
    out, _ = scripts.run("image_train.py", **settings, max_steps=1)
    assert "starting fresh" in out
    before = json.loads((other / "config.json").read_text())
    out, _ = scripts.run("image_train.py", **settings, max_steps=3)
    assert f"Loading model from {other / 'model000001.pt'}" in out
    assert killing.differences(folder, other, 3) == []
    after = json.loads((other / "config.json").read_text())
    assert after["started"] == before["started"]
    assert "resumed" in after
    assert "resumed" not in before
    assert after["flags"]["resume_checkpoint"] == "auto"


def test_ctrl_c_saves_and_says_how_to_go_on(flags, scripts, tmp_path):
    folder = tmp_path / "stopped run"
    settings = flags | {"save_interval": 10**6, "log_dir": folder}
    process = scripts.start("image_train.py", **settings)
    out, err = scripts.stop(process, "step 3 ")
    assert process.returncode == 130
    assert "Traceback" not in err
    (state,) = folder.glob("state*.pt")
    updates = int(state.stem[-6:])
    assert updates >= 4
    assert (folder / "results.xlsx").exists()
    (command,) = (line for line in out.splitlines() if line.startswith("Go on with: "))
    words = shlex.split(command.removeprefix("Go on with: "))
    assert words[1].endswith("image_train.py")
    goes_on, _ = scripts.run("image_train.py", *words[2:], max_steps=updates + 1)
    assert f"Loading model from {folder}/model{updates:06d}.pt" in goes_on
    steps = [int(row["step"]) for row in killing.rows(folder)]
    assert steps == list(range(updates + 1))


def arrays(folder):
    (path,) = folder.glob("*.npz")
    with np.load(path) as file:
        return path, {name: file[name] for name in file.files}


def test_sampling_needs_the_model_alone(trained, scripts, tmp_path):
    run, _ = trained
    common = {"num_samples": 5, "batch_size": 2, "num_threads": 1}
    out, _ = scripts.run("image_sample.py", model_path=run, log_dir=tmp_path / "a", **common)
    path, content = arrays(tmp_path / "a")
    assert path.name == "samples_5x16x16x3.npz"
    assert content["arr_0"].shape == (5, 16, 16, 3)
    assert content["arr_0"].dtype == np.uint8
    assert content["arr_1"].shape == (5,)
    assert set(content["arr_1"]) <= {0, 1}
    assert str(tmp_path / "a") in out.splitlines()[-1]
    with Image.open(path.with_suffix(".png")) as picture:
        assert min(picture.size) >= 32

    made = {}
    for name, eta in (("usual", {}), ("half", {"eta": 0.5}), ("none", {"eta": 0})):
        flags = {"sampler": "dpmpp", "sampling_steps": 3, "log_dir": tmp_path / name, **eta}
        out, _ = scripts.run("image_sample.py", model_path=run, **flags, **common)
        made[name] = arrays(tmp_path / name)[1]["arr_0"]
    assert "in 3 steps of dpmpp, eta 0" in out
    assert (made["usual"] == made["half"]).all()
    assert (made["usual"] != made["none"]).any()

    by_flags = {"model_path": run / "ema_0.5_000003.pt", "use_ddim": True, "seed": 7}
    by_flags |= {"timestep_respacing": "ddim2", "precision": "bf16", "allow_slow_bf16": True}
    out, _ = scripts.run("image_sample.py", log_dir=tmp_path / "b", **by_flags, **common)
    assert "in 2 steps" in out


def test_samples_of_chosen_classes_one_by_one(trained, scripts, tmp_path):
    run, _ = trained
    settings = {"model_path": run, "num_samples": 5, "batch_size": 2, "num_threads": 1}
    settings |= {"classes": "dog,0,dog", "save_png": True, "show_process": True}
    scripts.run("image_sample.py", log_dir=tmp_path, **settings)
    assert arrays(tmp_path)[1]["arr_1"].tolist() == [1, 0, 1, 1, 0]
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["cat_000001.png", "cat_000004.png", *(f"dog_00000{i}.png" for i in (0, 2, 3))]
    assert (tmp_path / "process.png").exists()
    _, err = scripts.run("image_sample.py", **settings | {"classes": "cow"}, status=2)
    assert "the model knows no class 'cow'; it knows cat, dog" in err


def test_interrupted_sampling_keeps_what_it_has_made(trained, scripts, tmp_path):
    run, _ = trained
    settings = {"model_path": run, "num_samples": 10**6, "batch_size": 1, "num_threads": 1}
    process = scripts.start("image_sample.py", log_dir=tmp_path, **settings)
    out, err = scripts.stop(process, "created 2 of", signal.SIGTERM)
    assert process.returncode == 143
    assert "Traceback" not in err
    path, content = arrays(tmp_path)
    made = len(content["arr_0"])
    assert made >= 2
    assert f"Saved {made} samples to {path}" in out


def test_an_interrupted_bound_keeps_what_it_has(trained, images, scripts, tmp_path, monkeypatch):
    run, _ = trained
    images_of, calls = bits_per_dim.estimate_bpd, []

    def until_the_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return images_of(*args, **kwargs)

    monkeypatch.setattr(bits_per_dim, "estimate_bpd", until_the_third)
    settings = {"num_samples": 10, "batch_size": 1, "data_dir": images, "num_threads": 1}
    flags = settings | {"model_path": run, "log_dir": tmp_path}
    out, err = scripts.run("image_nll.py", **flags, status=130)
    assert "interrupted" in err
    assert out.count("done ") == 2
    assert json.loads((tmp_path / "bits_per_dim.json").read_text())["images"] == 2


def test_bits_per_dimension_of_a_folder(trained, images, scripts, tmp_path):
    run, _ = trained
    settings = {"num_samples": 99, "batch_size": 4, "data_dir": images, "log_dir": tmp_path}
    settings |= {"num_threads": 1}
    out, _ = scripts.run("image_nll.py", model_path=run / "model000003.pt", **settings)
    values = [float(value) for value in re.findall(r"bpd=([\d.]+)", out)]
    assert len(values) == 3
    assert all(0 < value < 100 for value in values)
    table = rows_of(tmp_path / "bits_per_dim.csv")
    for name in ("vb", "mse", "xstart_mse"):
        with np.load(tmp_path / f"{name}_terms.npz") as file:
            told = [float(row[name]) for row in table]
            np.testing.assert_allclose(file["arr_0"], told[::-1], rtol=1e-6)
    assert "done 10 samples" in out, "all images, each once"
    assert [row["images"] for row in table] == ["10"] * 4


@pytest.mark.parametrize(("channels", "size"), [(1, 12), (4, 8)])
def test_images_of_any_kind_and_size(channels, size, tiny, images, scripts, tmp_path):
    """Grey or with alpha, of a size without defaults, with flips, as many classes as there are."""
    settings = tiny | {"in_channels": channels, "image_size": size, "num_threads": 1}
    settings |= {"class_cond": True, "num_classes": "auto", "random_flip": True}
    settings |= {"data_dir": images, "batch_size": 2, "max_steps": 2, "sample_interval": 1}
    run = tmp_path / "run"
    out, _ = scripts.run("image_train.py", log_dir=run, ema_rate="0.01,0.9", **settings)
    flags = json.loads((run / "config.json").read_text())["flags"]
    assert (flags["num_classes"], flags["in_channels"]) == (2, channels)
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["000001.png", "000002.png"]
    assert "Drew samples/000002.png from the EMA of rate 0.01" in out
    assert "samples" in load_workbook(run / "results.xlsx").sheetnames

    common = {"model_path": run, "num_threads": 1}
    scripts.run("image_sample.py", log_dir=tmp_path / "out", num_samples=2, **common)
    assert arrays(tmp_path / "out")[1]["arr_0"].shape == (2, size, size, channels)
    settings = {"num_samples": 2, "data_dir": images, "log_dir": tmp_path / "nll"}
    out, _ = scripts.run("image_nll.py", **settings, **common)
    assert "done 2 samples: bpd=" in out


def test_a_run_with_a_preset_says_how_to_sample(tiny, images, scripts, tmp_path):
    run = tmp_path / "run"
    small = tiny | {"data_dir": images, "batch_size": 2, "time_budget": 0, "max_steps": 1}
    small |= {"sample_interval": 0, "log_dir": run, "precision": "fp32", "guidance": 2}
    scripts.run("image_train.py", preset="cifar10_hour", **small)
    flags = {"model_path": run, "num_samples": 2, "sampling_steps": 2, "log_dir": tmp_path / "out"}
    out, _ = scripts.run("image_sample.py", **flags)
    assert "Sampling 2 images in 2 steps of dpmpp" in out
    assert "Guidance 2 away from its samples without a class" in out
    assert re.search(r"config\.json recommends: --guidance 2\.0 .*--sampler dpmpp", out)


def test_other_places_of_images_than_folders(tiny, tiny_sr, images, scripts, tmp_path):
    """The same training from a .zip as from the folder; bits/dim and enlarging from an .npz."""
    packed, arrays = tmp_path / "images.zip", tmp_path / "images.npz"
    names = sorted(path.name for path in images.iterdir())
    with zipfile.ZipFile(packed, "w") as archive:
        for name in names:
            archive.write(images / name, f"{name.split('_')[0]}/{name}")
    pixels = [np.asarray(Image.open(images / name)) for name in names]
    np.savez(arrays, np.stack(pixels), np.array([name.startswith("dog") for name in names], int))
    flags = {**tiny, "class_cond": True, "num_classes": "auto", "batch_size": 4}
    for name, data in (("folder", images), ("zip", packed)):
        to = flags | {"data_dir": data, "log_dir": tmp_path / name, "resume_checkpoint": "auto"}
        scripts.run("image_train.py", **to, max_steps=1)
        out, _ = scripts.run("image_train.py", **to, max_steps=3)
    assert f"Images: 10 in {packed}, 2 classes by folder" in out
    logs = [killing.rows(tmp_path / name) for name in ("folder", "zip")]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    model = {"model_path": tmp_path / "zip", "batch_size": 4, "num_samples": 10}
    bits = []
    for name, data in (("in_folder", images), ("in_zip", packed)):
        scripts.run("image_nll.py", **model, data_dir=data, log_dir=tmp_path / name)
        bits.append(json.loads((tmp_path / name / "bits_per_dim.json").read_text())["bits/dim"])
    assert bits[0] == bits[1]
    message = "images.npz has the classes 0, 1; the model was trained on cat, dog"
    _, err = scripts.run("image_nll.py", **model, data_dir=arrays, status=2)
    assert message in err
    (tmp_path / "zip" / "config.json").unlink()  # then no name is known, and classes are numbers
    np.savez(arrays, np.stack(pixels), np.arange(len(names)))
    bare = {**model, **tiny, "data_dir": arrays, "class_cond": True, "num_classes": 2}
    _, err = scripts.run("image_nll.py", **bare, status=2)
    assert "images.npz has images of class 2; the model knows 0 to 1" in err
    np.savez(arrays, np.stack(pixels), np.array([name.startswith("dog") for name in names], int))
    large = tiny_sr | {"data_dir": arrays, "batch_size": 4, "max_steps": 1}
    scripts.run("super_res_train.py", **large, log_dir=tmp_path / "large")
    assert (tmp_path / "large" / "model000001.pt").exists()


# --- super-resolution


def test_super_resolution(tiny_sr, make_images, scripts, tmp_path):
    tiny_sr = tiny_sr | {"num_threads": 1}
    settings = {"data_dir": make_images(tmp_path / "large", count=4, size=20)}
    settings |= {"batch_size": 2, "max_steps": 2, "log_interval": 1, "log_dir": tmp_path / "run"}
    scripts.run("super_res_train.py", **tiny_sr, **settings)
    assert len(killing.rows(tmp_path / "run")) == 2
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["script"] == "super_res_train"

    small = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", small)
    settings = {"num_samples": 4, "batch_size": 2, "base_samples": tmp_path / "small.npz"}
    settings |= {"model_path": tmp_path / "run" / "model000002.pt", "log_dir": tmp_path / "out"}
    settings |= {"sampler": "dpmpp", "sampling_steps": 3, "save_gif": True}
    out, _ = scripts.run("super_res_sample.py", num_threads=1, **settings)
    assert "Sampling 4 images in 3 steps of dpmpp, eta 0.5" in out
    _, content = arrays(tmp_path / "out")
    assert content["arr_0"].shape == (4, 16, 16, 3)
    assert list(content) == ["arr_0"]
    assert (tmp_path / "out" / "process.gif").exists()


def test_super_resolution_with_classes_draws_while_training(tiny_sr, images, scripts, tmp_path):
    settings = {"data_dir": images, "batch_size": 2, "max_steps": 2, "sample_interval": 1}
    settings |= {"class_cond": True, "num_classes": "auto", "in_channels": 1, "num_threads": 1}
    run = tmp_path / "run"
    out, _ = scripts.run("super_res_train.py", **tiny_sr, **settings, log_dir=run)
    assert "Drew samples/000002.png" in out
    assert Image.open(run / "samples" / "000002.png").mode == "L"


def test_a_run_that_diverges_ends_with_one_line(tiny, images, scripts, tmp_path):
    """A learning rate that makes the weights overflow at once."""
    settings = {"data_dir": images, "batch_size": 2, "lr": 1e38, "max_skipped": 2}
    settings |= {"num_threads": 1}
    process = scripts.start("image_train.py", **tiny, **settings, log_dir=tmp_path / "run")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1
    assert "training diverged" in err
