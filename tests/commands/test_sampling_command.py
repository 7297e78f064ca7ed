"""What sampling scripts say of their model, wherever it lies."""

import os
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch as th
from test_bad_input import in_process

from improved_diffusion import logger
from improved_diffusion.commands import sampling


@pytest.fixture
def said(tmp_path):
    """What is logged of a model with 9,999 parameters whose file has a certain name."""

    def describe(path, precision="fp32"):
        args = Namespace(model_path=path, precision=precision, knows_its_flags=True)
        with logger.scoped_configure(dir=tmp_path / "log", format_strs=["log"]):
            sampling.describe(args, th.nn.Linear(100, 99))
        return (tmp_path / "log" / "log.txt").read_text()

    return describe


@pytest.mark.parametrize(("step", "share"), [(5, "77% of its initial"), (58, "5%"), (59, "")])
def test_a_young_ema_is_warned_of(step, share, said):
    text = said(f"runs/x/ema_0.95_{step:06d}.pt")
    assert ("so expect noise" in text) == bool(share)
    assert share in text


def test_the_model_itself_is_not_warned_of(said):
    assert "expect noise" not in said("runs/ema_0.95_000001/model000001.pt")


def test_parameters_and_precision_are_said(said):
    text = said("model.pt", "bf16")
    assert "Parameters: 0.01 M" in text
    assert "Precision: bf16" in text


class Bucket:
    """Stands in for blobfile: gs://bucket is a folder."""

    def __init__(self, root):
        self.root = root

    def local(self, path):
        assert path.startswith("gs://bucket/")
        return self.root / path.removeprefix("gs://bucket/")

    def isdir(self, path):
        return self.local(path).is_dir()

    def exists(self, path):
        return self.local(path).exists()

    def listdir(self, path):
        return os.listdir(self.local(path))

    def BlobFile(self, path, mode):
        self.local(path).parent.mkdir(exist_ok=True)
        return open(self.local(path), mode)


def test_a_run_whose_checkpoints_are_elsewhere(
    tiny, images, to_words, tmp_path, monkeypatch, capsys
):
    """Its configuration is found there, and a model that has none is told of."""
    monkeypatch.setitem(sys.modules, "blobfile", Bucket(tmp_path))
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", "gs://bucket/run")
    settings = {"data_dir": images, "batch_size": 2, "max_steps": 1, "num_threads": 1}
    words = to_words(tiny | settings | {"log_dir": tmp_path / "log"})
    assert in_process("image_train.py", words) == 0
    assert "model000001.pt" not in os.listdir(tmp_path / "log")
    monkeypatch.delenv("DIFFUSION_BLOB_LOGDIR")

    using = {"num_samples": 1, "num_threads": 1, "log_dir": tmp_path / "out"}
    capsys.readouterr()
    assert in_process("image_sample.py", to_words(using | {"model_path": "gs://bucket/run"})) == 0
    out = capsys.readouterr().out
    assert "Model: gs://bucket/run/ema_0.9999_000001.pt" in out
    assert "No config.json" not in out

    (tmp_path / "run" / "config.json").unlink()
    settings = tiny | using | {"model_path": "gs://bucket/run/model000001.pt"}
    assert in_process("image_sample.py", to_words(settings)) == 0
    out = capsys.readouterr().out
    assert "No config.json beside the model: its flags are the command line's" in out
    assert "--noise_schedule cosine" in out
    assert "--diffusion_steps 4" in out


def test_small_images_of_classes_that_were_never_trained(
    tiny_sr, images, to_words, tmp_path, capsys
):
    """The model has room for five classes and saw two: others have no names, and are refused."""
    settings = {"data_dir": images, "batch_size": 2, "max_steps": 1, "num_threads": 1}
    settings |= {"class_cond": True, "num_classes": 5, "log_dir": tmp_path / "run"}
    assert in_process("super_res_train.py", to_words(tiny_sr | settings)) == 0
    small = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    for name, classes in (("known", [1, 0]), ("unknown", [1, 2])):
        np.savez(tmp_path / f"{name}.npz", small, np.array(classes))
    using = {"model_path": tmp_path / "run", "save_png": True, "num_samples": 2, "num_threads": 1}
    using |= {"log_dir": tmp_path / "out"}
    unknown = to_words(using | {"base_samples": tmp_path / "unknown.npz"})
    assert in_process("super_res_sample.py", unknown) == 2
    assert "arr_1 must be one class of 0 to 1 for each image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    known = to_words(using | {"base_samples": tmp_path / "known.npz"})
    assert in_process("super_res_sample.py", known) == 0
    pictures = sorted(os.listdir(tmp_path / "out" / "images"))
    assert pictures == ["cat_000001.png", "dog_000000.png"]
