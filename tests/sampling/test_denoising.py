"""Denoising: the noise's estimate, its timestep, the cleaned picture, and the script."""

import math
import re

import numpy as np
import pytest
import torch as th
from in_process import in_process
from PIL import Image
from toy_models import ideal_noise

from improved_diffusion.errors import InputError
from improved_diffusion.sampling import denoising
from improved_diffusion.script_util import create_gaussian_diffusion


def scene(size=32, angle=0.5):
    """Colours that change slowly, and a disc with a sharp edge: [3, size, size] in [-0.7, 0.7]."""
    y, x = th.meshgrid(th.linspace(-1, 1, size), th.linspace(-1, 1, size), indexing="ij")
    slope = 0.5 * (math.cos(angle) * x + math.sin(angle) * y)
    disc = 0.5 * ((x - 0.2) ** 2 + y**2 < 0.3)
    return th.stack([slope, slope.flip(0), 0.3 * x * y]) * 0.6 + disc * th.tensor(
        [[[0.6]], [[-0.6]], [[0.3]]]
    )


def noise_like(image, seed=0):
    return th.randn(image.shape, generator=th.Generator().manual_seed(seed))


# --- how strong the noise is


@pytest.mark.parametrize("sigma", [10, 25, 50])
def test_the_noise_of_a_scene_is_estimated(sigma):
    found = []
    for seed in range(8):
        clean = scene(angle=seed)
        found.append(denoising.estimate_sigma(clean + sigma / 127.5 * noise_like(clean, seed)))
    assert np.mean(found) * 127.5 == pytest.approx(sigma, rel=0.12)
    assert np.std(found) < 0.06 * np.mean(found)


def test_whole_numbers_are_on_another_scale():
    with pytest.raises(InputError, match=r"must be floats in \[-1, 1\] here, not torch.uint8"):
        denoising.estimate_sigma(th.zeros(3, 8, 8, dtype=th.uint8))


def test_the_estimate_survives_8_bits_where_the_picture_is_not_dark():
    """Half the picture is black, where the file cuts half of the noise off."""
    clean = th.zeros(3, 32, 64)
    clean[..., 32:] = -1
    noisy = denoising.to_picture((clean + 40 / 127.5 * noise_like(clean))[None])
    found = denoising.estimate_sigma(denoising.to_tensor(noisy)[0])
    assert found * 127.5 == pytest.approx(40, rel=0.08)


def test_a_flat_picture_has_the_noise_of_rounding():
    assert denoising.estimate_sigma(th.zeros(3, 8, 8)) == denoising.ROUNDING
    assert denoising.estimate_sigma(th.full((1, 3, 3), -1.0)) == denoising.ROUNDING
    ramp = th.linspace(-1, 1, 1000).expand(1, 1000, 1000) + 0.01 * th.rand(1, 1000, 1)
    rounded = (ramp * 127.5).round() / 127.5
    assert (rounded - ramp).std() == pytest.approx(denoising.ROUNDING, rel=0.01)


def test_a_picture_of_extremes_is_estimated_from_all_of_it():
    image = 0.9 + 0.02 * noise_like(th.zeros(3, 32, 32))
    assert denoising.estimate_sigma(image) == pytest.approx(0.02, rel=0.1)


# --- where it enters


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_timestep_has_the_noise(schedule):
    diffusion = create_gaussian_diffusion(noise_schedule=schedule)
    signal = np.cumprod(1 - diffusion.betas)
    levels = np.sqrt((1 - signal) / signal)
    for t in (0, 1, 50, 500, 998, 999):
        assert denoising.matching_timestep(diffusion, levels[t]) == t
    for t in (0, 1, 50, 500):
        above, below = (levels[t] + (levels[t + 1] - levels[t]) * f for f in (0.51, 0.49))
        assert denoising.matching_timestep(diffusion, above) == t + 1
        assert denoising.matching_timestep(diffusion, below) == t
    assert denoising.matching_timestep(diffusion, 1e-9) == 0


@pytest.mark.parametrize("sigma", [0.0, -0.1, math.nan, math.inf, 1e9])
def test_noise_that_no_timestep_has(sigma):
    with pytest.raises(InputError, match="sigma"):
        denoising.matching_timestep(create_gaussian_diffusion(), sigma)


# --- the cleaned picture

MU, DEVIATION = 0.2, 0.1


class Exact:
    """The best prediction of the noise where data are N(MU, DEVIATION^2); remembers its calls."""

    def __init__(self, diffusion):
        self.predict = ideal_noise(diffusion, MU, DEVIATION)
        self.timesteps = []
        self.shapes = set()

    def __call__(self, x, t):
        self.timesteps.append(int(t[0]))
        self.shapes.add(tuple(x.shape[-2:]))
        return self.predict(x, t)


@pytest.fixture(params=["linear", "cosine"])
def exact(request):
    diffusion = create_gaussian_diffusion(noise_schedule=request.param)
    return diffusion, Exact(diffusion)


@pytest.fixture
def data():
    return MU + DEVIATION * noise_like(th.zeros(2, 3, 64, 64), seed=1)


@pytest.mark.parametrize("t", [30, 120])
def test_the_mean_is_as_good_as_theory_allows(t, exact, data):
    diffusion, model = exact
    sigma = float(diffusion.sqrt_recipm1_alphas_cumprod[t])
    noisy = data + sigma * noise_like(data, seed=2)
    cleaned = denoising.denoise(diffusion, model, noisy, sigma)
    share = DEVIATION**2 / (DEVIATION**2 + sigma**2)
    th.testing.assert_close(cleaned, MU + share * (noisy - MU), atol=1e-4, rtol=1e-4)
    errors = [float(((image - data) ** 2).mean()) for image in (cleaned, noisy)]
    assert errors[0] == pytest.approx(share * sigma**2, rel=0.05)
    assert errors[0] < errors[1]
    assert model.timesteps == [t]


def test_a_sample_looks_like_the_data_and_errs_twice_as_much(exact, data):
    diffusion, model = exact
    t = 100
    sigma = float(diffusion.sqrt_recipm1_alphas_cumprod[t])
    noisy = data + sigma * noise_like(data, seed=2)
    generator = th.Generator().manual_seed(3)
    settings = {"randn_like": lambda x: th.randn(x.shape, generator=generator)}
    drawn = denoising.denoise(diffusion, model, noisy, sigma, method="sample", **settings)
    assert model.timesteps == list(range(t, -1, -1))
    assert float(drawn.std()) == pytest.approx(DEVIATION, rel=0.05)
    expected = 2 * DEVIATION**2 * sigma**2 / (DEVIATION**2 + sigma**2)
    assert float(((drawn - data) ** 2).mean()) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("method", denoising.METHODS)
def test_other_sizes_are_mirrored_and_cut_back(method, exact):
    diffusion, model = exact
    noisy = noise_like(th.zeros(1, 3, 9, 20))
    cleaned = denoising.denoise(diffusion, model, noisy, 0.05, multiple=8, method=method)
    assert model.shapes == {(16, 24)}
    assert cleaned.shape == noisy.shape


def test_an_unknown_method(exact):
    with pytest.raises(InputError, match="unknown method 'best'; choose from mean, sample"):
        denoising.denoise(*exact, th.zeros(1, 3, 8, 8), 0.1, method="best")


# --- pictures


def test_psnr():
    clean = np.full((4, 4, 3), 100, dtype=np.uint8)
    assert denoising.psnr(clean, clean) == math.inf
    assert denoising.psnr(clean - 100, clean) == pytest.approx(20 * math.log10(255 / 100))
    assert denoising.psnr(clean, clean + 2) == denoising.psnr(clean + 2, clean)


def test_pictures_survive_the_way_to_tensors_and_back():
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    tensor = denoising.to_tensor(picture)
    assert tensor.shape == (1, 1, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert (denoising.to_picture(tensor) == picture).all()
    assert denoising.to_picture(th.tensor([[[[-9.0, 9.0]]]])).ravel().tolist() == [0, 255]


@pytest.mark.parametrize(("channels", "size"), [(1, (9, 8)), (3, (20, 8)), (4, (8, 8))])
def test_pictures_are_read_as_large_as_they_are(channels, size, tmp_path):
    path = str(tmp_path / "a.png")
    Image.new("RGB", size, (10, 20, 30)).save(path)
    pixels = denoising.read_picture(path, channels, 8, 20)
    assert pixels.shape == (size[1], size[0], channels)
    assert pixels[0, 0, 0] == (18 if channels == 1 else 10)
    for smallest, largest in ((9, 20), (1, 7)):
        with pytest.raises(InputError, match=f"{size[0]} x {size[1]} pixels.*{smallest} to"):
            denoising.read_picture(path, channels, smallest, largest)


# --- the script

SCRIPT = "image_denoise.py"


@pytest.fixture(scope="module")
def trained(tiny, images, tmp_path_factory):
    """A model without classes that has learned of scenes, and one with, of one update."""
    root = tmp_path_factory.mktemp("runs")
    for angle in range(16):
        saved(root / "scenes" / f"{angle}.png", denoising.to_picture(scene(16, angle)[None]))
    settings = tiny | {"diffusion_steps": 100, "ema_rate": "0.9", "num_threads": 1}
    learned = {"data_dir": root / "scenes", "batch_size": 8, "lr": 3e-3, "max_steps": 60}
    classes = {"class_cond": True, "num_classes": 2, "data_dir": images}
    classes |= {"batch_size": 2, "max_steps": 1}
    for name, more in (("plain", learned), ("classes", classes)):
        assert in_process("image_train.py", settings | more | {"log_dir": root / name}) == 0
    return {"plain": root / "plain", "classes": root / "classes"}


def saved(path, picture):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder of two noisy pictures of different sizes, and one of what they were."""
    root = tmp_path_factory.mktemp("pair")
    for name, size in (("one.png", 16), ("two.png", 21)):
        clean = scene(size)[None]
        saved(root / "clean" / name, denoising.to_picture(clean))
        noisy = clean + 25 / 127.5 * noise_like(clean)
        saved(root / "noisy" / name, denoising.to_picture(noisy))
    return root / "noisy", root / "clean"


@pytest.mark.slow
def test_the_script_cleans_a_folder(trained, pair, scripts, tmp_path):
    noisy, clean = pair
    out, err = scripts.run_process(
        SCRIPT, input=noisy, clean=clean, model_path=trained["plain"], log_dir=tmp_path
    )
    assert err == ""
    names = {path.name for path in tmp_path.iterdir() if path.suffix == ".png"}
    assert names == {f"{s}_{kind}.png" for s in ("one", "two") for kind in ("denoised", "compared")}
    before, after = {}, {}
    for stem, size in (("one", 16), ("two", 21)):
        with Image.open(tmp_path / f"{stem}_denoised.png") as cleaned:
            assert cleaned.size == (size, size)
            after[stem] = denoising.psnr(np.array(cleaned), pixels(clean / f"{stem}.png"))
        before[stem] = denoising.psnr(pixels(noisy / f"{stem}.png"), pixels(clean / f"{stem}.png"))
        with Image.open(tmp_path / f"{stem}_compared.png") as row:
            assert row.width > 2.5 * row.height
        assert after[stem] > before[stem] + 6
        line = f"{stem}: PSNR {before[stem]:.2f} dB before, {after[stem]:.2f} dB after"
        assert line in out
        (sigma,) = re.findall(rf"{stem}: noise of sigma ([\d.]+)", out)
        assert 18 < float(sigma) < 35
    assert f"mean of 2: PSNR {np.mean(list(before.values())):.2f} dB before" in out


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def run_script(capsys):
    """Run the script in this process, which spares its start; return status, stdout, stderr."""

    def run(**flags):
        status = in_process(SCRIPT, flags | {"num_threads": 1})
        return status, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_the_script_samples_one_picture_of_a_class(trained, pair, run_script, tmp_path):
    flags = {"input": pair[0] / "one.png", "model_path": trained["classes"], "sigma": 30}
    results = []
    for number, extra in enumerate(({"label": "dog"}, {"label": 1}, {"label": 1, "seed": 5})):
        folder = tmp_path / str(number)
        status, out, _ = run_script(**flags, **extra, method="sample", log_dir=folder)
        assert status == 0
        assert "sigma 30.0" in out
        assert "PSNR" not in out
        results.append(pixels(folder / "one_denoised.png"))
    assert (results[0] == results[1]).all()
    assert (results[1] != results[2]).any()
