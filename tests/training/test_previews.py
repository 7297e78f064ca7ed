import os

import numpy as np
import pytest
import torch as th
from in_process import in_process
from PIL import Image
from tiny_runs import make_model

from improved_diffusion import logger
from improved_diffusion.data.image_grid import save_grid
from improved_diffusion.diffusion.guidance import Guidance
from improved_diffusion.system.precision import Precision
from improved_diffusion.training import state
from improved_diffusion.training.averages import Average
from improved_diffusion.training.previews import Preview, newest_picture, save_film


@pytest.fixture
def trained(tiny):
    """A model with weights that say something, its diffusion, and EMAs of other weights."""
    model, diffusion = make_model(0.05, **tiny, dropout=0.5)
    other = {name: th.randn_like(p) * 0.05 for name, p in model.named_parameters()}
    return model, diffusion, other


def draw(trained, folder, step=100, weights=None, share=0.0, precision="fp32", **settings):
    model, diffusion, other = trained
    settings = {"batch_size": 3, **settings}
    preview = Preview(diffusion, (4, 3, 16, 16), **settings)
    average = Average(0.9, weights or other, share, corrected=False)
    with logger.scoped_configure(dir=folder, format_strs=[]), Precision(precision).autocast():
        preview.draw(str(folder), step, model, average)
    return {path.name: np.asarray(Image.open(path)) for path in (folder / "samples").iterdir()}


def test_a_settled_ema_is_drawn_alone(trained, tmp_path):
    assert list(draw(trained, tmp_path)) == ["000100.png"]


def test_a_young_ema_is_drawn_beside_the_model(trained, tmp_path):
    pictures = draw(trained, tmp_path, 5, share=0.6)
    assert set(pictures) == {"000005.png", "000005_model.png"}
    assert not np.array_equal(*pictures.values())


def test_the_noise_is_fixed_and_the_batch_size_does_not_matter(trained, tmp_path):
    one = draw(trained, tmp_path / "a")["000100.png"]
    other = draw(trained, tmp_path / "b", batch_size=4)["000100.png"]
    assert np.abs(one.astype(int) - other).max() <= 1
    assert not np.array_equal(one, draw(trained, tmp_path / "c", seed=1)["000100.png"])


def test_samples_are_guided(tiny, tmp_path):
    """As much as is said, and nowhere but in the interval of noise levels."""
    model, diffusion = make_model(**tiny, class_cond=True, num_classes=3)
    own = {name: p.detach() for name, p in model.named_parameters()}
    labels = {"model_kwargs": {"y": th.arange(4) % 3}}
    made = [
        draw((model, diffusion, own), tmp_path / str(i), **labels, guidance=guidance)
        for i, guidance in enumerate((Guidance(), Guidance(4.0), Guidance(4.0, low=1e9)))
    ]
    plain, guided, beyond = (pictures["000100.png"] for pictures in made)
    assert not np.array_equal(plain, guided)
    assert np.array_equal(plain, beyond)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.slow
def test_nothing_of_the_training_is_disturbed(precision, trained, tmp_path):
    model, _, other = trained
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    emas = {name: value.clone() for name, value in other.items()}
    numbers = state.random_state()
    draw(trained, tmp_path, share=0.6, precision=precision)
    assert model.training
    assert all(th.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(th.equal(value, emas[name]) for name, value in other.items())
    after = state.random_state()
    assert th.equal(numbers["torch"], after["torch"])
    assert th.equal(numbers["numpy"][1], after["numpy"][1])
    assert all(p.requires_grad for p in model.parameters())
    x = th.randn(2, 3, 16, 16)
    model(x, th.zeros(2, dtype=th.int64)).sum().backward()  # no inference tensors were left behind


@pytest.mark.slow
def test_a_run_that_draws_is_the_run_that_does_not(tiny, images, tmp_path):
    """Bit for bit, with all that draws random numbers while training."""
    killing = pytest.importorskip("killing", exc_type=ImportError)
    settings = {"data_dir": images, "batch_size": 4, "max_steps": 4, "log_interval": 1}
    settings |= {"dropout": 0.3, "random_flip": True, "num_threads": 1, "ema_rate": "0.1,0.9"}
    for name, interval in (("drawing", 1), ("not", 0)):
        words = {"log_dir": tmp_path / name, "sample_interval": interval}
        words |= {"save_gif": bool(interval)}
        assert in_process("image_train.py", tiny | settings | words) == 0
    assert (tmp_path / "drawing" / "samples" / "000004.png").exists()
    with Image.open(tmp_path / "drawing" / "progress.gif") as film:
        assert film.n_frames == 4
    assert killing.differences(tmp_path / "drawing", tmp_path / "not", 4) == []


def test_the_newest_picture(tmp_path):
    assert newest_picture(str(tmp_path)) is None
    folder = tmp_path / "samples"
    folder.mkdir()
    names = ["000200.png", "000300.png", "000300_model.png", "samples_4x8x8x3.png"]
    for age, name in enumerate([*names, "process.png", "notes.txt", "grid.png"]):
        (folder / name).touch()
        os.utime(folder / name, (age, age))
        expected = name if name in names else names[-1]
        assert newest_picture(str(tmp_path)) == str(folder / expected)


def save_grids(folder, **levels):
    """Grids of one level each, by name."""
    (folder / "samples").mkdir(exist_ok=True)
    for name, level in levels.items():
        images = np.full((16, 32, 32, 3), level, dtype=np.uint8)
        save_grid(folder / "samples" / f"{name.removeprefix('of_')}.png", images)


def levels_of(path):
    with Image.open(path) as film:
        found = []
        for number in range(film.n_frames):
            film.seek(number)
            found.append(film.convert("L").getpixel((20, 20)))
        return found, film.size


def test_a_film_shows_what_is_newest_of_each_step(tmp_path):
    """Not what image_sample.py put there, nor what comes later in a run that went back."""
    save_grids(tmp_path, of_000100=10, of_000100_model=50, of_000200=90, of_999999=130)
    save_grids(tmp_path, samples_4x8x8x3=200, process=200, of_1000000=170)
    save_film(str(tmp_path), 200)
    levels, size = levels_of(tmp_path / "progress.gif")
    assert levels == [50, 90]
    assert size == (261, 261)
    save_film(str(tmp_path), 1000000)
    assert levels_of(tmp_path / "progress.gif")[0] == [50, 90, 130, 170]


def test_a_film_of_many_grids_leaves_some_out(tmp_path):
    save_grids(tmp_path, **{f"of_{step:06d}": step for step in range(100)})
    save_film(str(tmp_path), 99)
    levels, _ = levels_of(tmp_path / "progress.gif")
    assert len(levels) == 40
    assert (levels[0], levels[-1]) == (0, 99)
