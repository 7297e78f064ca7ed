import numpy as np
import pytest
import torch as th
from PIL import Image

from improved_diffusion import dist_util, logger
from improved_diffusion.nn import NO_LABEL
from improved_diffusion.sampling import samples
from improved_diffusion.sampling.samples import Order, Samples, make_samples, save_samples
from improved_diffusion.script_util import create_gaussian_diffusion

SHAPE = (3, 8, 8)


@pytest.fixture
def diffusion():
    return create_gaussian_diffusion(steps=12, noise_schedule="cosine")


def guess(x, t, y=None):
    """A model whose output depends on all that it is given, each image by itself."""
    shift = 0 if y is None else y.view(-1, 1, 1, 1).float() / 10
    return 0.9 * x + 0.01 * t.view(-1, 1, 1, 1) * x.roll(1, dims=3) - shift


def order(num_samples=5, batch_size=2, **changes):
    settings = {"shape": SHAPE, "seed": 3, "sampler": "ddpm", **changes}
    return Order(num_samples=num_samples, batch_size=batch_size, **settings)


def classes(indices, noise):
    return {"y": noise.randint(4)}


def make(diffusion, wanted, condition=classes, model=guess):
    made = Samples()
    make_samples(made, wanted, model, diffusion, condition)
    return made


@pytest.mark.parametrize(
    ("sampler", "eta"), [("ddpm", None), ("ddim", 0), ("ddim", 1), ("dpmpp", 0), ("dpmpp", 0.5)]
)
def test_images_and_classes_do_not_depend_on_the_batch_size(sampler, eta, diffusion):
    one, other = (
        make(diffusion, order(batch_size=size, sampler=sampler, eta=eta)).arrays()
        for size in (2, 5)
    )
    assert one[0].shape == (5, 8, 8, 3)
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])
    assert len(np.unique(one[0].reshape(5, -1), axis=0)) == 5


def test_more_samples_begin_with_the_same_ones(diffusion):
    few, many = (make(diffusion, order(num_samples=n)).arrays()[0] for n in (3, 5))
    assert np.array_equal(few, many[:3])


def test_another_seed_makes_others(diffusion):
    one, other = (make(diffusion, order(seed=seed)).arrays()[0] for seed in (1, 2))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_noise_of_the_steps_is_taken(sampler, diffusion):
    one, other = (
        make(diffusion, order(sampler=sampler, eta=eta)).arrays()[0] for eta in (0.0, 0.5)
    )
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_ranks_share_the_images(count, monkeypatch):
    shares = []
    monkeypatch.setattr(dist_util, "world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(dist_util, "rank", lambda rank=rank: rank)
        shares.append(samples._rounds(order(num_samples=count, batch_size=2)))
    for rounds in zip(*shares, strict=True):
        assert len({len(share) for share in rounds}) == 1, "ranks could not gather"
    gathered = [index for rounds in zip(*shares, strict=True) for r in rounds for index in r]
    assert gathered[:count] == list(range(count))
    assert len(gathered) < count + 3


def test_what_an_interruption_leaves_is_kept(diffusion):
    calls = []

    def interrupted(x, t, y):
        calls.append(t)
        if len(calls) > 2 * diffusion.num_timesteps:
            raise KeyboardInterrupt
        return guess(x, t, y)

    made = Samples()
    with pytest.raises(KeyboardInterrupt):
        make_samples(made, order(), interrupted, diffusion, classes)
    whole = make(diffusion, order()).arrays()[0]
    assert np.array_equal(made.arrays()[0], whole[:4])


def test_files(diffusion, tmp_path):
    made = make(diffusion, order())
    with logger.scoped_configure(dir=tmp_path, format_strs=[]):
        save_samples(str(tmp_path), made, names=["a", "b/e", "c", ".."], single=True, process=True)
    with np.load(tmp_path / "samples_5x8x8x3.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
        assert file["classes"].tolist() == ["a", "b/e", "c", ".."]
    assert np.array_equal(images, made.arrays()[0])
    pictures = sorted((tmp_path / "images").iterdir(), key=lambda path: path.stem[-6:])
    assert [path.name for path in pictures] == [
        f"{['a', 'b-e', 'c', '..'][label]}_{i:06d}.png" for i, label in enumerate(labels)
    ]
    assert np.array_equal(np.asarray(Image.open(pictures[2])), images[2])
    assert (tmp_path / "samples_5x8x8x3.png").exists()
    assert (tmp_path / "process.png").exists()


def test_a_long_class_name_is_cut_in_the_files_name(diffusion, tmp_path):
    made = make(diffusion, order())
    with logger.scoped_configure(dir=tmp_path, format_strs=[]):
        save_samples(str(tmp_path), made, names=["é" * 300] * 4, single=True)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == [f"{'é' * 75}_{i:06d}.png" for i in range(5)]


def test_a_class_name_of_another_encoding_is_written_as_far_as_it_can_be(diffusion, tmp_path):
    made = make(diffusion, order())
    with logger.scoped_configure(dir=tmp_path, format_strs=[]):
        save_samples(str(tmp_path), made, names=["caf\udce9"] * 4, single=True)
    assert (tmp_path / "images" / "caf-_000000.png").exists()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_grey_and_alpha(channels, mode, diffusion, tmp_path):
    made = make(diffusion, order(shape=(channels, 8, 8)), lambda *_: {})
    assert made.arrays()[0].shape == (5, 8, 8, channels)
    with logger.scoped_configure(dir=tmp_path, format_strs=[]):
        save_samples(str(tmp_path), made, single=True, process=True)
    assert Image.open(tmp_path / "images" / "000004.png").mode == mode
    with np.load(tmp_path / f"samples_5x8x8x{channels}.npz") as file:
        assert file.files == ["arr_0"]


def test_the_process_goes_from_noise_to_the_sample(diffusion):
    made = make(diffusion, order(batch_size=5))
    assert len(made.process) == samples.SHOWN_MOMENTS
    first, last = made.process[0], made.process[-1]
    assert first.shape == (samples.SHOWN_IMAGES, 2, *SHAPE)
    assert abs(first[:, 0].std() - 1) < 0.1  # x_T is noise
    final = samples.to_uint8(last[:, 1])  # at t = 0 the sample is the predicted image
    assert np.array_equal(final.numpy(), made.arrays()[0][: samples.SHOWN_IMAGES])
    picture = samples.process_picture(made.process)
    assert picture.shape[0] < picture.shape[1]


def test_a_film_goes_from_noise_to_the_samples(diffusion, tmp_path):
    made = make(diffusion, order(batch_size=3, film=True), lambda *_: {})
    assert [len(images) for images in made.film] == [3] * 13, "of the first batch alone"
    assert (made.film[0] == 0).mean() > 0.1  # noise is often beyond the visible range
    assert np.array_equal(made.film[-1], made.arrays()[0][:3])
    with logger.scoped_configure(dir=tmp_path, format_strs=[]):
        save_samples(str(tmp_path), made)
    with Image.open(tmp_path / "process.gif") as film:
        assert film.n_frames == 13
    assert make(diffusion, order(), lambda *_: {}).film == []


def test_a_film_of_many_steps_leaves_some_out():
    diffusion = create_gaussian_diffusion(steps=100, noise_schedule="cosine")
    made = make(diffusion, order(num_samples=20, batch_size=20, film=True))
    assert len(made.film) == samples.FILM_MOMENTS + 1
    assert len(made.film[0]) == samples.FILM_IMAGES


def test_classes_that_only_some_images_have_are_left_out(diffusion):
    """They would belong to other images."""

    def some(indices, noise):
        return {"y": th.tensor([0 if index < 2 else NO_LABEL for index in indices])}

    images, labels = make(diffusion, order(num_samples=4), some).arrays()
    assert len(images) == 4
    assert labels is None
