"""Inpainting: the schedule of its jumps, what stays and what joins it, and the script."""

import itertools

import numpy as np
import pytest
import torch as th
from in_process import in_process
from PIL import Image
from tiny_runs import save_run

from improved_diffusion import logger
from improved_diffusion.data.image_grid import make_grid, to_uint8
from improved_diffusion.errors import InputError
from improved_diffusion.options.using import ImageSampling, InpaintingOptions
from improved_diffusion.sampling.inpainting import (
    Inpainting,
    descents,
    noisier,
    read_inpainting,
)
from improved_diffusion.sampling.samplers import SAMPLERS, draw
from improved_diffusion.sampling.samples import Order, Samples, make_samples, save_samples
from improved_diffusion.script_util import create_gaussian_diffusion

# --- the schedule


def test_the_walk_jumps_up_at_every_so_many_timesteps():
    ranges = descents(6, jump_length=2, resamplings=3)
    assert [list(r) for r in ranges] == [[5, 4, 3], [4, 3], [4, 3, 2, 1], [2, 1], [2, 1, 0]]


@pytest.mark.parametrize(("count", "length", "times"), [(250, 10, 10), (20, 5, 4), (7, 1, 2)])
def test_jumps_are_as_long_and_as_many_as_is_said(count, length, times):
    ranges = descents(count, length, times)
    assert ranges[0].start == count - 1
    assert ranges[-1].stop == -1
    jumps = [(r.stop, after.start) for r, after in itertools.pairwise(ranges)]
    assert {above - below for below, above in jumps} == {length}
    assert [below for below, _ in jumps].count(0) == times - 1
    steps = [t for r in ranges for t in r]
    assert all(steps.count(t) == times for t in range(1, (count - 1) // length * length - length))
    assert len(steps) == Inpainting(*[None] * 2, length, times).steps(count)


def test_no_jumps():
    assert descents(6, 2, 1) == descents(6, 10, 1) == [range(5, -1, -1)]
    for length, times in ((6, 2), (0, 1)):
        with pytest.raises(InputError, match=f"jumps of {length} timesteps do not fit into a walk"):
            descents(6, length, times)


def test_a_jump_adds_the_noise_of_its_steps():
    diffusion = create_gaussian_diffusion(steps=50, noise_schedule="cosine")
    th.manual_seed(0)
    x_start = th.full((1, 1, 300, 300), 0.8)
    x_t = diffusion.q_sample(x_start, th.tensor([10]))
    later = noisier(diffusion, x_t, 10, 30, th.randn_like)
    mean, variance, _ = diffusion.q_mean_variance(x_start, th.tensor([30]))
    assert float(later.mean()) == pytest.approx(float(mean.mean()), abs=0.01)
    assert float(later.var()) == pytest.approx(float(variance.mean()), rel=0.02)


# --- what is drawn

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
LEFT = np.tile(np.arange(16) < 8, (16, 1))


def guess(x, t, y=None):
    """A model whose output depends on all that it is given."""
    return 0.9 * x + 0.01 * t.view(-1, 1, 1, 1) * x.roll(1, dims=3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_known_stays_to_the_pixel(sampler):
    diffusion = create_gaussian_diffusion(steps=12, noise_schedule="cosine")
    for mask in (LEFT, ~LEFT):
        task = Inpainting(LEVELS, mask, jump_length=3, resamplings=2)
        x = draw(sampler, diffusion, guess, (3, 1, 16, 16), device="cpu", route=task.walk)
        pixels = to_uint8(x).numpy()
        assert (pixels[:, ~mask] == LEVELS[~mask]).all()
        made = pixels[:, mask]
        assert len(np.unique(made.reshape(3, -1), axis=0)) == 3
        assert (made != LEVELS[mask]).mean() > 0.5


class OneColour:
    """The best prediction of the noise, where images are of one colour from N(0, 0.5^2)."""

    def __init__(self, diffusion):
        self.signal = th.from_numpy(diffusion.alphas_cumprod)

    def __call__(self, x, t):
        signal = self.signal[t].view(-1, 1, 1, 1).float()
        share = signal.sqrt() * 0.25 / (signal * 0.25 + (1 - signal) / x[0].numel())
        x_start = share * x.mean(dim=(1, 2, 3), keepdim=True)
        return (x - signal.sqrt() * x_start) / (1 - signal).sqrt()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_made_takes_the_colour_of_what_is_known(sampler):
    """The more so the more often the walk jumps up."""
    diffusion = create_gaussian_diffusion(steps=30, noise_schedule="cosine")
    picture = np.full((8, 8, 1), 200, dtype=np.uint8)
    mask = np.ones((8, 8), dtype=bool)
    mask[:, :2] = False
    errors = []
    for resamplings in (1, 6):
        th.manual_seed(0)
        task = Inpainting(picture, mask, jump_length=5, resamplings=resamplings)
        settings = {"device": "cpu", "route": task.walk}
        x = draw(sampler, diffusion, OneColour(diffusion), (32, 1, 8, 8), **settings)
        errors.append(float((x[..., 2:] - x[..., :2].mean()).square().mean().sqrt()))
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.15


def test_what_is_known_is_as_noisy_as_each_timestep():
    th.manual_seed(0)
    diffusion = create_gaussian_diffusion(steps=12, noise_schedule="cosine")
    task = Inpainting(np.full((16, 16, 1), 255, dtype=np.uint8), LEFT, 3, 2)
    seen = []
    settings = {"device": "cpu", "callback": seen.append, "route": task.walk}
    draw("ddpm", diffusion, guess, (20, 1, 16, 16), **settings)
    assert len(seen) == task.steps(12)
    for out in seen[1:]:  # the walk begins with noise alone
        t, known = int(out["t"][0]), out["x_t"][..., 8:]
        assert float(known.mean()) == pytest.approx(diffusion.sqrt_alphas_cumprod[t], abs=0.06)
        wanted = diffusion.sqrt_one_minus_alphas_cumprod[t]
        assert float(known.std()) == pytest.approx(wanted, rel=0.08)


def condition(indices, noise):
    return {"y": th.full((len(indices),), -1)}


def test_versions_do_not_depend_on_the_batch_size(tmp_path):
    diffusion = create_gaussian_diffusion(steps=12, noise_schedule="cosine")
    task = Inpainting(LEVELS, LEFT, jump_length=3, resamplings=2)
    made = []
    for size in (2, 5):
        order = Order(5, (1, 16, 16), size, 3, "ddpm", film=True, inpainting=task)
        made.append(Samples())
        make_samples(made[-1], order, guess, diffusion, condition)
    (one, classes), (other, _) = (samples.arrays() for samples in made)
    assert np.array_equal(one, other)
    assert classes is None
    assert (one[:, ~LEFT] == LEVELS[~LEFT]).all()
    assert len(made[0].process) == 11, "moments of the walk, of which some timesteps come twice"
    with logger.scoped_configure(dir=tmp_path, format_strs=[]):
        save_samples(str(tmp_path), made[0], single=True, before=task.masked_picture())
    with Image.open(tmp_path / "samples_5x16x16x1.png") as grid:
        wanted = make_grid(np.stack([task.masked_picture(), *one]))
        assert np.array_equal(np.array(grid), wanted[..., 0])


# --- files


def saved(path, picture):
    Image.fromarray(picture).save(path)
    return str(path)


def test_white_is_to_be_made(tmp_path):
    grey = np.zeros((16, 16), dtype=np.uint8)
    grey[:4], grey[4:8] = 128, 127
    picture = saved(tmp_path / "a.png", LEVELS[..., 0])
    task = read_inpainting(picture, saved(tmp_path / "m.png", grey), 1, 16, 3, 2)
    assert task.mask[:4].all()
    assert not task.mask[4:].any()
    assert (task.jump_length, task.resamplings) == (3, 2)
    shown = task.masked_picture()
    assert shown.dtype == np.uint8
    assert (shown[:4] == 128).all()
    assert (shown[4:] == LEVELS[4:]).all()


def test_a_mask_with_a_transparent_hole_is_refused(tmp_path):
    """Some editors mark so what is to be made, but in black and white it would say the opposite."""
    picture = saved(tmp_path / "a.png", LEVELS[..., 0])
    mask = np.full((16, 16, 4), 255, dtype=np.uint8)
    whole = mask.copy()
    whole[:4, :, :3] = 0
    assert read_inpainting(picture, saved(tmp_path / "m.png", whole), 1, 16, 3, 2).mask.any()
    mask[4:8] = 0
    with pytest.raises(InputError, match=r"m\.png is transparent in places.*; paint white"):
        read_inpainting(picture, saved(tmp_path / "m.png", mask), 1, 16, 3, 2)


@pytest.mark.parametrize(("level", "said"), [(0, "black everywhere"), (255, "white everywhere")])
def test_a_mask_that_leaves_nothing(level, said, tmp_path):
    picture = saved(tmp_path / "a.png", LEVELS[..., 0])
    mask = saved(tmp_path / "m.png", np.full((16, 16), level, dtype=np.uint8))
    with pytest.raises(InputError, match=rf"m\.png is {said}: .*; paint white"):
        read_inpainting(picture, mask, 1, 16, 3, 2)


# --- the script


@pytest.fixture
def fill(tmp_path, capsys):
    """Run the script on a picture of noise whose upper half is to be made."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:8] = 255

    def run(name, **flags):
        common = {"input": saved(tmp_path / "a.png", picture), "num_threads": 1}
        common |= {"mask": saved(tmp_path / "m.png", mask), "log_dir": tmp_path / name}
        common |= {"model_path": tmp_path / "run", "num_samples": 3, "sampling_steps": 4}
        status = in_process("image_inpaint.py", common | flags)
        assert status == 0, capsys.readouterr().err
        return tmp_path / name, picture, capsys.readouterr().out

    return run


def test_the_sampler_is_the_one_that_is_asked_for():
    def chosen(kind, **flags):
        return kind(**flags).chosen_sampler.name

    given = {"input": "a.png", "mask": "b.png"}
    assert chosen(InpaintingOptions, **given) == "dpmpp"
    assert chosen(InpaintingOptions, **given, use_ddim=True) == "ddim"
    assert chosen(InpaintingOptions, **given, sampler="ddpm") == "ddpm"
    assert chosen(ImageSampling) == "ddpm"
    assert chosen(ImageSampling, use_ddim=True) == "ddim"


@pytest.mark.slow
def test_the_script_fills_the_upper_half(tiny, tmp_path, fill):
    save_run(tmp_path / "run", tiny, class_cond=True, num_classes=2, data={"classes": ["a", "b"]})
    jumps = {"jump_length": 2, "resamplings": 3}
    folder, picture, out = fill("out", label="b", batch_size=2, **jumps)
    assert "Sampling 3 images in 8 steps of dpmpp" in out
    with np.load(folder / "samples_3x16x16x3.npz") as file:
        images, classes = file["arr_0"], file["arr_1"]
    assert classes.tolist() == [1, 1, 1]
    assert (images[:, 8:] == picture[8:]).all()
    assert (images[:, :8] != picture[:8]).mean() > 0.5
    for i, image in enumerate(images):
        with Image.open(folder / "images" / f"b_{i:06d}.png") as one:
            assert np.array_equal(np.array(one), image)
    with Image.open(folder / "samples_3x16x16x3.png") as grid:
        first = np.array(grid)[2:130, 2:130][::8, ::8]
    assert (first[:8] == 128).all()
    assert (first[8:] == picture[8:]).all()


@pytest.mark.slow
def test_the_script_without_a_class(tiny, tmp_path, fill):
    flags = {"class_cond": True, "num_classes": 2, "label_dropout": 0.1}
    save_run(tmp_path / "run", tiny, **flags)
    folder, _, _ = fill("out", save_gif=True, resamplings=1)
    with np.load(folder / "samples_3x16x16x3.npz") as file:
        assert file.files == ["arr_0"]
    assert (folder / "images" / "000002.png").exists()
    with Image.open(folder / "process.gif") as film:
        assert film.n_frames == 5
