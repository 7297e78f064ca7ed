"""Interpolation: the arc, the way to noise and back, and the script."""

import math
import re

import numpy as np
import pytest
import torch as th
from in_process import in_process
from PIL import Image
from tiny_runs import save_run
from toy_models import ideal_noise

from improved_diffusion.sampling.denoising import psnr
from improved_diffusion.sampling.interpolation import arc, invert, slerp
from improved_diffusion.sampling.samplers import draw
from improved_diffusion.script_util import create_gaussian_diffusion

# --- the arc


def test_the_arc_of_a_quarter_circle():
    a, b = th.tensor([[2.0, 0.0]]), th.tensor([[0.0, 2.0]])
    for share in (0, 0.25, 0.5, 1):
        angle = share * math.pi / 2
        wanted = th.tensor([[2 * math.cos(angle), 2 * math.sin(angle)]])
        th.testing.assert_close(slerp(a, b, share), wanted)


def test_all_points_between_two_noises_are_as_long_as_noise():
    a, b = th.randn(2, 3, 32, 32, generator=th.Generator().manual_seed(0))
    points = arc(a, b, 5)
    assert points.shape == (5, 3, 32, 32)
    th.testing.assert_close(points[0], a)
    th.testing.assert_close(points[-1], b)
    lengths = points.flatten(1).norm(dim=1)
    assert (lengths / lengths[0] - 1).abs().max() < 0.03
    steps = (points[1:] - points[:-1]).flatten(1).norm(dim=1)
    assert steps.max() / steps.min() < 1.03


def test_where_there_is_no_arc_there_is_a_line():
    a = th.ones(2, 2)
    th.testing.assert_close(slerp(a, 3 * a, 0.25), 1.5 * a)
    th.testing.assert_close(slerp(a, a, 0.5), a)


# --- to noise and back


def test_the_way_to_noise_and_back_errs_less_with_more_timesteps():
    x_start = 0.2 + 0.3 * th.randn(1, 3, 64, 64, generator=th.Generator().manual_seed(0))
    errors, seen = [], []
    for steps in (20, 80):
        diffusion = create_gaussian_diffusion(steps=steps, noise_schedule="cosine")
        model, settings = ideal_noise(diffusion, 0.2, 0.3), {"clip_denoised": False}
        noise = invert(diffusion, model, x_start, seen.append, **settings)
        back = draw("ddim", diffusion, model, x_start.shape, noise=noise, eta=0.0, **settings)
        errors.append(float((back - x_start).square().mean().sqrt()))
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert [int(out["t"][0]) for out in seen] == [*range(19), *range(79)]
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.02


def test_one_timestep_leaves_the_image():
    x_start = th.ones(1, 1, 2, 2)
    diffusion = create_gaussian_diffusion(steps=1, noise_schedule="cosine")
    assert th.equal(invert(diffusion, ideal_noise(diffusion), x_start), x_start)


# --- the script


@pytest.fixture
def go(tmp_path, capsys):
    """Run a script on the run of a tiny model; return its folder and what it said."""

    def run(script, name, **flags):
        common = {"model_path": tmp_path / "run", "log_dir": tmp_path / name, "num_threads": 1}
        status = in_process(script, common | flags)
        assert status == 0, capsys.readouterr().err
        return tmp_path / name, capsys.readouterr().out

    return run


def pictures(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for name in ("a.png", "b.png"):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        found.append((tmp_path / name, pixels))
    return found


@pytest.mark.slow
def test_the_script_goes_from_picture_to_picture(tiny, tmp_path, go):
    save_run(tmp_path / "run", tiny)
    (first, a), (last, b) = pictures(tmp_path)
    flags = {"first": first, "last": last, "num_samples": 14, "batch_size": 5}
    folder, out = go("image_interpolate.py", "out", **flags)
    strip = np.array(Image.open(folder / "strip.png"))
    side = (strip.shape[0] - 2) - 2
    assert strip.shape[1] == 12 * (side + 2) + 2
    scale = side // 16
    for path, picture, left in ((first, a, 2), (last, b, 2 + 11 * (side + 2))):
        image = strip[2 : 2 + side : scale, left : left + side : scale]
        assert f"{path}: PSNR {psnr(image, picture):.2f} dB after the way to noise and back" in out
    with Image.open(folder / "interpolation.gif") as film:
        assert film.n_frames == 26
        assert film.info["duration"] > 1000
        film.seek(1)
        assert film.info["duration"] < 1000
        film.seek(13)
        assert film.info["duration"] > 1000


@pytest.mark.slow
def test_numbers_are_those_of_samples(tiny, tmp_path, go):
    classes = {"class_cond": True, "num_classes": 2, "label_dropout": 0.1}
    save_run(tmp_path / "run", tiny, **classes)
    common = {"seed": 3, "guidance": 2, "sampling_steps": 3, "clip_denoised": True}
    drawn, _ = go("image_sample.py", "s", num_samples=8, classes=1, sampler="ddim", **common)
    ends = {"first": 7, "last": 2, "num_samples": 2, "label": 1}
    folder, out = go("image_interpolate.py", "out", **ends, **common)
    assert "PSNR" not in out
    assert re.search("Guidance 2 away from its samples without a class", out)
    with np.load(drawn / "samples_8x16x16x3.npz") as file:
        images = file["arr_0"].astype(int)
    strip = np.array(Image.open(folder / "strip.png")).astype(int)
    side = strip.shape[0] - 4
    for number, left in ((7, 2), (2, 4 + side)):
        image = strip[2 : 2 + side : side // 16, left : left + side : side // 16]
        assert np.abs(image - images[number]).max() <= 1
