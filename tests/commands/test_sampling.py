"""Guided samples by the script: what is said, what is refused, and that they differ."""

import json
import shutil

import numpy as np
import pytest
import torch as th
from in_process import in_process
from tiny_runs import save_run

from improved_diffusion.commands.trained import Trained, options_of_guide
from improved_diffusion.errors import InputError
from improved_diffusion.nn import NO_LABEL
from improved_diffusion.options.using import InterpolationOptions
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.sampling.samplers import draw

CLASSES = {"class_cond": True, "num_classes": 2}


@pytest.fixture
def sample(tmp_path, capsys):
    """Sample from a run's folder by the script; its status, images, and what it said."""

    def run(**flags):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        flags = {"num_samples": 2, "num_threads": 1, "log_dir": out} | flags
        capsys.readouterr()
        status = in_process("image_sample.py", flags)
        made = [np.load(path)["arr_0"] for path in out.glob("*.npz")]
        return status, made[0] if made else None, "".join(capsys.readouterr())

    return run


def test_samples_are_guided_by_the_model_without_labels(tiny, tmp_path, sample):
    model, diffusion = save_run(tmp_path / "run", tiny, **CLASSES, label_dropout=0.1)
    common = {"model_path": tmp_path / "run", "classes": "1", "sampler": "ddim"}
    _, plain, _ = sample(**common)
    status, guided, said = sample(**common, guidance=3)
    assert status == 0
    assert "Guidance 3 away from its samples without a class\n" in said
    assert not np.array_equal(plain, guided)

    def pair(x, t, y):
        better, worse = model(x, t, y), model(x, t, th.full_like(y, NO_LABEL))
        return worse + 3 * (better - worse)

    settings = {"randn_like": ImageNoise(0, range(2)).randn_like, "device": "cpu"}
    settings["model_kwargs"] = {"y": th.tensor([1, 1])}
    wanted = draw("ddim", diffusion, pair, (2, 3, 16, 16), **settings)
    pixels = ((wanted + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(guided.astype(int) - pixels).max() <= 1

    status, beyond, said = sample(**common, guidance=3, guidance_low=10**6)
    assert "for sigma in (1e+06, inf]" in said
    assert np.array_equal(beyond, plain)


def test_an_unknown_training_is_warned_of(tiny, tmp_path, sample):
    save_run(tmp_path / "run", tiny, **CLASSES)
    (tmp_path / "run" / "config.json").unlink()
    flags = tiny | CLASSES | {"model_path": tmp_path / "run", "guidance": 3}
    status, made, said = sample(**flags)
    assert status == 0
    assert made is not None
    assert "No config.json says that the model was trained with --label_dropout" in said


def test_a_model_without_classes_is_guided_by_a_smaller_one(tiny, tmp_path, sample):
    save_run(tmp_path / "run", tiny)
    save_run(tmp_path / "guide", tiny | {"channel_mult": "1", "learn_sigma": True})
    common = {"model_path": tmp_path / "run"}
    guided_by = {"guidance": 2, "guide_model": tmp_path / "guide"}
    status, guided, said = sample(**common, **guided_by)
    assert status == 0, said
    assert f"Guidance 2 away from {tmp_path / 'guide'}" in said
    assert not np.array_equal(sample(**common)[1], guided)
    save_run(tmp_path / "twin", tiny)
    by_its_twin = sample(**common, guidance=2, guide_model=tmp_path / "twin")
    plain = sample(**common)
    assert np.array_equal(by_its_twin[1], plain[1])
    status, _, said = sample(**common, guidance=2, guide_model=tmp_path / "run")
    assert status == 2
    assert "is the model itself; name a worse one" in said


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_guide_must_do_without_a_label_as_well(share, tiny, tmp_path):
    save_run(tmp_path / "run", tiny | CLASSES | {"label_dropout": 0.1})
    save_run(tmp_path / "guide", tiny | CLASSES | {"label_dropout": share})
    trained = Trained({}, True, 2)
    ends = {"first": "1", "last": "2", "guidance": 2.0, "guide_model": str(tmp_path / "guide")}
    model = tiny | CLASSES | {"label_dropout": 0.1, "model_path": str(tmp_path / "run" / "x.pt")}
    known = InterpolationOptions.flags()
    options = InterpolationOptions(**ends, **{k: v for k, v in model.items() if k in known})
    if share:
        options_of_guide(options, trained)
    else:
        with pytest.raises(InputError, match=r"has not learned to do without a label"):
            options_of_guide(options, trained)


@pytest.mark.parametrize(
    ("flags", "differing"),
    [
        ({"image_size": 32}, "image_size is 32 there and 16 here"),
        ({"in_channels": 1}, "in_channels is 1 there and 3 here"),
        ({"diffusion_steps": 8}, "diffusion_steps is 8 there and 4 here"),
        ({"predict_v": True}, "predict_v is True there and False here"),
        ({"rescale_timesteps": False}, "rescale_timesteps is False there and True here"),
        (CLASSES, "class_cond is True there and False here"),
    ],
)
def test_a_guide_of_other_images_or_another_process(flags, differing, tiny, tmp_path, sample):
    save_run(tmp_path / "run", tiny)
    save_run(tmp_path / "guide", tiny | flags)
    guided_by = {"guidance": 2, "guide_model": tmp_path / "guide"}
    status, made, said = sample(model_path=tmp_path / "run", **guided_by)
    assert status == 2
    assert made is None
    assert f"cannot guide this model: {differing}; give a model of the same images" in said


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"num_classes": 3}, "num_classes is 3 there and 2 here"),
        ({}, "its classes are frog, cat, and here cat, dog"),
    ],
)
def test_a_guide_of_other_classes(changes, differing, tiny, tmp_path, sample):
    for name, flags, classes in (("run", {}, ["cat", "dog"]), ("guide", changes, ["frog", "cat"])):
        save_run(tmp_path / name, tiny | CLASSES | flags)
        path = tmp_path / name / "config.json"
        data = {} if changes else {"data": {"classes": classes}}
        path.write_text(json.dumps(json.loads(path.read_text()) | data))
    guided_by = {"guidance": 2, "guide_model": tmp_path / "guide"}
    status, _, said = sample(model_path=tmp_path / "run", **guided_by)
    assert (status, differing in said) == (2, True), said
