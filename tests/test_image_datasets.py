import random
import subprocess
import sys
import threading
import warnings
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch as th
from PIL import Image
from tiny_runs import noise_picture

from improved_diffusion.errors import InputError
from improved_diffusion.image_datasets import BadImageWarning, ImageDataset, load_data
from improved_diffusion.system import files

SIZE = 8


@pytest.fixture
def folder(tmp_path):
    """Ten images whose one colour is their number, in two classes and a folder inside."""
    for number in range(10):
        place = tmp_path / "more" if number >= 8 else tmp_path
        place.mkdir(exist_ok=True)
        colour = Image.new("RGB", (SIZE, SIZE), (number, 0, 255))
        colour.save(place / f"{'cat' if number % 2 else 'ant'}_{number:02d}.png")
    return tmp_path


def stream(folder, batch_size=3, **options):
    return load_data(data_dir=folder, batch_size=batch_size, image_size=SIZE, **options)


def numbers(batch):
    """The number of each image in a batch, from its colour."""
    return [round(value) for value in ((batch[:, 0, 0, 0] + 1) * 127.5).tolist()]


def take(data, count):
    return [(batch.clone(), cond.get("y")) for batch, cond in islice(data, count)]


assert_same = partial(th.testing.assert_close, rtol=0, atol=0)


def test_batches_are_float_images_in_reading_order_with_labels(folder):
    batch, cond = next(stream(folder, 10, deterministic=True, class_cond=True))
    assert batch.dtype == th.float32
    assert batch.shape == (10, 3, SIZE, SIZE)
    assert numbers(batch) == [0, 2, 4, 6, 1, 3, 5, 7, 8, 9]  # by name, folders in their place
    assert batch[:, 1].eq(-1).all()
    assert batch[:, 2].eq(1).all()
    assert cond["y"].dtype == th.int64
    assert cond["y"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]
    assert next(stream(folder))[1] == {}


def test_summary(folder):
    data = stream(folder)
    summary = {"folder": str(folder), "images": 10, "classes": ["ant", "cat"]}
    assert data.summary() == summary | {"classes_by": "name", "image_size": SIZE}
    assert data.batches_per_epoch == 3
    (folder / "ant_00.png").rename(folder / "ant.png")
    assert stream(folder).summary()["classes"] is None


def test_every_epoch_is_another_order_of_all_images(folder):
    data = stream(folder, 5)
    epochs = [numbers(th.cat([next(data)[0], next(data)[0]])) for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert_same(take(stream(folder, seed=1), 4), take(stream(folder, seed=1), 4))
    assert numbers(next(stream(folder, 10, seed=1))[0]) != numbers(next(stream(folder, 10))[0])


def test_incomplete_batches_are_dropped_or_kept(folder):
    sizes = [len(batch) for batch, _ in islice(stream(folder, 4), 4)]
    assert sizes == [4, 4, 4, 4]
    sizes = [len(batch) for batch, _ in islice(stream(folder, 4, drop_last=False), 4)]
    assert sizes == [4, 4, 2, 4]


def test_shards_are_disjoint_and_equally_long(folder):
    ranks = [stream(folder, 2, shard=rank, num_shards=3, seed=5) for rank in range(3)]
    assert [rank.batches_per_epoch for rank in ranks] == [1, 1, 1]
    first = [numbers(next(rank)[0]) for rank in ranks]
    assert len({*first[0], *first[1], *first[2]}) == 6
    whole = numbers(next(stream(folder, 10, seed=5))[0])
    assert first == [whole[rank::3][:2] for rank in range(3)]
    assert ranks[0].state_dict() == ranks[1].state_dict()
    for rank in range(3):
        data = stream(folder, 2, shard=rank, num_shards=3, drop_last=False)
        assert [len(batch) for batch, _ in islice(data, 2)] == [2, 1]


def test_random_flip_mirrors_about_half_the_images(tmp_path):
    noise_picture(SIZE, SIZE).save(tmp_path / "a.png")
    plain = next(stream(tmp_path, 1))[0]
    batches = [batch for batch, _ in islice(stream(tmp_path, 1, random_flip=True), 40)]
    flipped = [th.equal(batch, plain.flip(3)) for batch in batches]
    assert all(flip or th.equal(batch, plain) for flip, batch in zip(flipped, batches, strict=True))
    assert 8 < sum(flipped) < 32


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.slow
def test_resume_goes_on_bit_for_bit_over_the_end_of_an_epoch(folder, num_workers):
    options = {"class_cond": True, "random_flip": True, "seed": 4}
    expected = take(stream(folder, **options), 11)
    for stop in (0, 2, 3, 7):
        data = stream(folder, num_workers=num_workers, **options)
        assert_same(take(data, stop), expected[:stop])
        state = data.state_dict()
        data.close()
        assert (state["epoch"], state["position"]) == divmod(stop, 3)
        resumed = stream(folder, num_workers=num_workers, **options)
        next(resumed)
        resumed.load_state_dict(state)
        assert_same(take(resumed, 11 - stop), expected[stop:])
        resumed.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_threads_read_ahead_if_asked(folder, num_workers, monkeypatch):
    data, readers = stream(folder, num_workers=num_workers), set()
    read = data.dataset.read

    def watched(index):
        readers.add(threading.get_ident())
        return read(index)

    monkeypatch.setattr(data.dataset, "read", watched)
    take(data, 3)
    data.close()
    assert (threading.get_ident() in readers) == (num_workers == 0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_random_states_are_left_alone(folder, num_workers):
    states = th.get_rng_state(), str(np.random.get_state()), random.getstate()
    data = stream(folder, random_flip=True, num_workers=num_workers)
    take(data, 4)
    data.close()
    assert th.equal(th.get_rng_state(), states[0])
    assert (str(np.random.get_state()), random.getstate()) == states[1:]


def test_resume_says_how_the_data_differ(folder):
    state = stream(folder).state_dict()
    for options, name in (
        ({"seed": 1}, "seed 0, not 1"),
        ({"batch_size": 2}, "batch_size 3, not 2"),
        ({"num_shards": 2}, "num_shards 1, not 2"),
    ):
        with pytest.raises(InputError, match=name):
            stream(folder, **options).load_state_dict(state)
    with pytest.raises(InputError, match="not the state of a data stream"):
        stream(folder).load_state_dict({"epoch": 1})
    for odd in ({"position": 3}, {"position": -1}, {"epoch": -1}):
        with pytest.raises(InputError, match="the data has no batch"):
            stream(folder).load_state_dict(state | odd)
    (folder / "ant_00.png").rename(folder / "ant_77.png")
    with pytest.raises(InputError, match="10 images as when the run was saved, but other ones"):
        stream(folder).load_state_dict(state)
    (folder / "ant_77.png").unlink()
    with pytest.raises(InputError, match="had 10 images when the run was saved and has 9"):
        stream(folder).load_state_dict(state)


def test_folders_behind_urls_are_read_through_blobfile(folder, monkeypatch):
    expected = take(stream(folder), 4)
    monkeypatch.setattr(files, "is_local", lambda path: False)
    monkeypatch.setattr("builtins.open", None)
    assert_same(take(stream(folder), 4), expected)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("source", ["L", "RGB", "RGBA"])
def test_channels(tmp_path, channels, mode, source):
    image = noise_picture(SIZE, SIZE, source)
    image.save(tmp_path / "a.png")
    batch, _ = next(stream(tmp_path, 1, in_channels=channels))
    expected = np.asarray(image.convert(mode)).reshape(1, SIZE, SIZE, channels)
    expected = expected.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    assert np.array_equal(batch.numpy(), expected)


def test_image_dataset_items_and_shards(folder):
    paths = sorted(str(path) for path in folder.glob("*.png"))
    data = ImageDataset(SIZE, paths, classes=list(range(8)), shard=1, num_shards=3)
    assert len(data) == 3
    image, cond = data[2]
    assert image.dtype == np.float32
    assert image.shape == (3, SIZE, SIZE)
    assert cond["y"] == 7
    assert cond["y"].dtype == np.int64
    assert ImageDataset(SIZE, paths)[0][1] == {}
    assert [int(cond["y"]) for _, cond in islice(data, 9)] == [1, 4, 7]  # and ends
    assert data[-1][1]["y"] == 7


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_named_or_replaced(folder, num_workers):
    whole = (folder / "ant_02.png").read_bytes()
    (folder / "ant_02.png").write_bytes(whole[: len(whole) // 2])
    for name in ("ant_04.png", "cat_07.png"):
        (folder / name).write_text("this is no image")
    options = {"batch_size": 10, "deterministic": True, "num_workers": num_workers}
    data = stream(folder, **options)
    with pytest.raises(InputError, match=r"^cannot read image .*ant_02\.png: [^\n]+$"):
        next(data)
    assert data.state_dict()["position"] == 0
    data = stream(folder, on_bad_image="skip", class_cond=True, **options)
    with pytest.warns(BadImageWarning) as caught:
        (batch, cond), _ = islice(data, 2)  # of two threads the second may meet a file first
    assert numbers(batch) == [0, 6, 6, 6, 1, 3, 5, 8, 8, 9]
    assert cond["y"].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 1]
    assert ["ant_02.png" in str(warning.message) for warning in caught].count(True) == 1
    assert len(caught) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(data, 5)
    data.close()


def test_a_dataset_by_itself_replaces_unreadable_images_too(folder):
    (folder / "ant_00.png").write_text("this is no image")
    paths = [str(folder / name) for name in ("cat_01.png", "ant_00.png")]
    data = ImageDataset(SIZE, paths, on_bad_image="skip")
    with pytest.warns(BadImageWarning, match="ant_00"):
        image, _ = data[1]
    assert np.array_equal(image, data[0][0])
    data = ImageDataset(SIZE, paths[1:], on_bad_image="skip")
    with pytest.raises(InputError, match=r"none of the 1 images is readable: .*ant_00\.png"):
        data[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_interrupts_a_batch_costs_none(folder, num_workers, monkeypatch):
    whole, data = (stream(folder, num_workers=num_workers) for _ in range(2))
    wanted = [next(whole)[0] for _ in range(8)]
    read = ImageDataset.read
    got = [next(data)[0] for _ in range(3)]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageDataset, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(8):  # what was read ahead still comes
            got.append(next(data)[0])
    monkeypatch.setattr(ImageDataset, "read", read)
    got += [next(data)[0] for _ in range(8 - len(got))]
    assert all(map(th.equal, got, wanted))


@pytest.mark.slow
def test_threads_that_read_ahead_let_the_process_end(folder):
    program = (
        "from improved_diffusion.image_datasets import load_data\n"
        f"folder = {str(folder)!r}\n"
        "data = load_data(data_dir=folder, batch_size=2, image_size=8, num_workers=2)\n"
        "next(data)\n"
        "raise RuntimeError('with the stream still alive')\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.rstrip().endswith("with the stream still alive")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 11}, r"10 images, fewer than a batch \(11\)"),
        ({"batch_size": 6, "num_shards": 2}, r"10 images, fewer than a batch \(12\)"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must not be negative"),
        ({"num_workers": -1}, "num_workers must not be negative"),
        ({"in_channels": 2}, "in_channels must be 1, 3 or 4, got 2"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be error or skip, got 'ignore'"),
        ({"shard": 2, "num_shards": 2}, "shard must lie in"),
    ],
)
def test_impossible_arguments(folder, options, message):
    with pytest.raises(InputError, match=message):
        stream(folder, **options)


def test_folders_that_cannot_work_are_named(folder):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"no images .* in .*empty"):
        stream(folder / "empty")
