"""The same images in every kind of place, and what is wrong with a place."""

import gzip
import io
import json
import multiprocessing
import os
import pickle
import shutil
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from made_files import cifar_members, tar_of
from PIL import Image

from improved_diffusion.data.cifar_archive import split_of
from improved_diffusion.data.folder_source import FolderSource
from improved_diffusion.data.image_source import Labels
from improved_diffusion.data.sources import KINDS, open_source
from improved_diffusion.data.zip_source import ZipSource
from improved_diffusion.errors import InputError
from improved_diffusion.image_datasets import load_data
from improved_diffusion.system import archives, cpu

SIZE = 8
CLASSES = ("cat", "dog", "emu")
COUNT = 12


def pictures(count=COUNT):
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return pixels, np.arange(count) % len(CLASSES)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def files(layout="{name}_{number:02d}.png"):
    """Name and content of each image's file, in the order of the numbers."""
    pixels, labels = pictures()
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        yield layout.format(name=CLASSES[label], number=number), png(image)


def make_folder(path, layout="{name}_{number:02d}.png", extra=()):
    for name, content in (*files(layout), *extra):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def make_zip(path, layout="{name}_{number:02d}.png", extra=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (*files(layout), *extra):
            archive.writestr(name, content)
    return path


def make_npz(path, **arrays):
    np.savez(path, *pictures(), **arrays)
    return path


def make_npy(path):
    np.save(path, pictures()[0])
    return path


def make_parquet(path, named=True, image="image", label="label"):
    pa = pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    import pyarrow.parquet as pq

    cells = [{"bytes": content, "path": name} for name, content in files()]
    table = pa.table({image: cells, label: pictures()[1]})
    if named:
        features = {image: {"_type": "Image"}}
        features[label] = {"names": list(CLASSES), "_type": "ClassLabel"}
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    pq.write_table(table, path, row_group_size=5)
    return path


PLACES = {
    "folder": lambda tmp: make_folder(tmp / "images"),
    "folders": lambda tmp: make_folder(tmp / "images", "{name}/{number}.png"),
    "zip": lambda tmp: make_zip(tmp / "images.zip"),
    "zip of folders": lambda tmp: make_zip(tmp / "images.zip", "images/{name}/{number}.png"),
    "npz": lambda tmp: make_npz(tmp / "images.npz"),
    "npy": lambda tmp: make_npy(tmp / "images.npy"),
    "parquet": lambda tmp: make_parquet(tmp / "images.parquet"),
}


@pytest.mark.parametrize("place", PLACES)
def test_images_and_classes_of_every_kind(tmp_path, place):
    path = PLACES[place](tmp_path)
    source = open_source(str(path))
    pixels, labels = pictures()
    assert len(source) == len(set(source.names)) == COUNT
    by_bytes = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    for index in range(COUNT):
        image = source.read(index, SIZE)
        assert image.dtype == np.uint8
        label = by_bytes.pop(image.tobytes())
        if place != "npy":
            assert source.labels.numbers[index] == label
    assert not by_bytes
    names = {"npz": ["0", "1", "2"], "npy": None}.get(place, list(CLASSES))
    assert (source.labels and source.labels.classes) == names
    assert source.shape(0) == (SIZE, 3)
    assert source.read(0, 4, 1).shape == (4, 4, 1)


@pytest.mark.parametrize("place", PLACES)
def test_training_goes_on_to_the_bit_with_every_kind(tmp_path, place):
    def stream(**flags):
        path = PLACES[place](tmp_path)
        return load_data(data_dir=path, batch_size=3, image_size=SIZE, seed=1, **flags)

    whole = stream(class_cond=place != "npy")
    taken = [next(whole) for _ in range(6)]
    begun = stream(class_cond=place != "npy")
    for _ in range(4):
        next(begun)
    state = pickle.loads(pickle.dumps(begun.state_dict()))
    resumed = stream(class_cond=place != "npy", num_workers=1)
    resumed.load_state_dict(state)
    for batch, cond in taken[4:]:
        again, same = next(resumed)
        assert again.equal(batch)
        assert cond.keys() == same.keys()
        assert all(cond[key].equal(same[key]) for key in cond)
    resumed.close()


@pytest.mark.parametrize("place", ["zip", "npz", "npy", "parquet"])
def test_other_images_of_the_same_number_are_noticed(tmp_path, place, monkeypatch):
    path = PLACES[place](tmp_path)
    before = load_data(data_dir=path, batch_size=3, image_size=SIZE).state_dict()
    stamp = open_source(str(path)).stamp
    assert open_source(str(path)).stamp == stamp
    changed = pictures()[0]
    changed[5, 1, 1, 0] ^= 1
    monkeypatch.setattr(f"{__name__}.pictures", lambda: (changed, np.arange(COUNT) % 3))
    path = PLACES[place](tmp_path)
    assert open_source(str(path)).stamp != stamp
    with pytest.raises(InputError, match=r"has 12 images as when .* other ones or other names"):
        load_data(data_dir=path, batch_size=3, image_size=SIZE).load_state_dict(before)


def test_other_classes_of_the_same_images_are_noticed(tmp_path):
    path = make_folder(tmp_path / "images", "{name}/img_{number:02d}.png")
    flags = {"data_dir": path, "batch_size": 3, "image_size": SIZE, "class_cond": True}
    before = load_data(**flags).state_dict()
    load_data(**flags, labels="folder").load_state_dict(before)
    with pytest.raises(InputError, match="in other classes"):
        load_data(**flags, labels="name").load_state_dict(before)
    del before["classes"]  # as an older run has it
    load_data(**flags, labels="folder").load_state_dict(before)


# -- classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "by", "classes"),
    [
        ("{name}_{number}.png", "auto", CLASSES),
        ("deep/{name}_{number}.png", "auto", CLASSES),
        ("{name}/{number}.png", "auto", CLASSES),
        ("{name}/img_{number}.png", "auto", CLASSES),
        ("{name}/img_{number}.png", "name", ["img"]),
        ("{name}/img_{number}.png", "none", None),
        ("photos/{name}/img_{number}.png", "auto", CLASSES),
        ("{name}/{number}/x_1.png", "auto", ["x"]),
        ("{name}/{number}/1.png", "auto", None),
        ("{name}/a/1{number}.png", "folder", [f"{name}/a" for name in CLASSES]),
        ("{number}.png", "auto", None),
        ("photos/2020/{name}/{number}.png", "auto", CLASSES),
    ],
)
@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_what_classes_are_taken_from(tmp_path, make, layout, by, classes):
    source = open_source(str(make(tmp_path / "images.zip", layout)), by)
    assert (source.labels and source.labels.classes) == (classes and list(classes))


@pytest.mark.parametrize("make", [make_folder, make_zip])
@pytest.mark.parametrize("around", ["", "edm/", "my/edm/"])
def test_a_list_of_classes_as_edm_writes_it(tmp_path, make, around):
    layout = "00000/img{number:08d}.png"
    names = [name for name, _ in files(layout)]
    listed = json.dumps({"labels": [[name, 7 - number % 2] for number, name in enumerate(names)]})
    extra = [(f"{around}dataset.json", listed.encode())]
    path = make(tmp_path / "images.zip", around + layout, extra)
    source = open_source(str(path))
    assert source.labels.numbers.tolist() == [7, 6] * (COUNT // 2)
    assert source.labels.classes == [str(number) for number in range(8)]
    assert open_source(str(path), "none").labels is None


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int64", "uint64"])
def test_class_numbers_of_every_whole_type(tmp_path, kind):
    pixels, labels = pictures()
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels.astype(kind))
    numbers = open_source(str(tmp_path / "a.npz")).labels.numbers
    assert numbers.dtype == np.int64
    assert numbers.tolist() == labels.tolist()


def test_a_zip_of_a_folder_by_its_dot(tmp_path):
    source = open_source(str(make_zip(tmp_path / "images.zip", "./{name}/{number}.png")))
    assert source.names[0] == "cat/0.png"
    assert source.labels.classes == list(CLASSES)


def test_the_list_of_a_zip_whose_names_have_backslashes(tmp_path):
    listed = [[name, 0] for name, _ in files("{name}/{number}.png")]
    extra = [("edm\\dataset.json", json.dumps({"labels": listed}))]
    path = make_zip(tmp_path / "images.zip", "edm\\{name}\\{number}.png", extra)
    assert open_source(str(path)).labels.classes == ["0"]


def test_a_zip_whose_names_have_backslashes(tmp_path):
    path = make_zip(tmp_path / "images.zip", "photos\\{name}\\IMG_{number}.png")
    source = open_source(str(path))
    assert source.labels.classes == list(CLASSES)
    assert source.names[0] == "photos/cat/IMG_0.png"
    assert source.read(0, SIZE).tobytes() == pictures()[0][0].tobytes()


def test_numbered_classes_are_no_names():
    labels = Labels.of_numbers(np.array([3, 1]), "arr_1", "some.npz")
    assert labels.classes == ["0", "1", "2", "3"]
    assert not labels.named
    with pytest.raises(
        InputError, match=r"^some\.npz: arr_1 has numbers that are no classes, such as -1"
    ):
        Labels.of_numbers(np.array([1, -1]), "arr_1", "some.npz")


def test_classes_that_are_asked_for_and_are_not_there(tmp_path):
    def load(path, **flags):
        load_data(data_dir=path, batch_size=3, image_size=SIZE, class_cond=True, **flags)

    flat = make_folder(tmp_path / "flat", "{number}.png")
    with pytest.raises(InputError, match=r"flat/0\.png carries no class label: name .* folder"):
        load(flat)
    with pytest.raises(InputError, match=r"flat/0\.png carries .* which --labels name asks for"):
        load(flat, labels="name")
    with pytest.raises(InputError, match=r"flat/0\.png is in no folder of its class"):
        load(flat, labels="folder")
    with pytest.raises(InputError, match="--labels none leaves the images without classes"):
        load(flat, labels="none")
    with pytest.raises(InputError, match=r"images\.npy carries no class label: put one whole"):
        load(make_npy(tmp_path / "images.npy"))
    with pytest.raises(InputError, match=r"images\.npz has no file names to take classes from"):
        load(make_npz(tmp_path / "images.npz"), labels="folder")


def test_classes_that_cannot_be_used_do_no_harm_where_none_are_needed(tmp_path):
    pixels, labels = pictures()
    np.savez(tmp_path / "a.npz", pixels, labels - 1)  # -1 for unknown, as in test splits
    flags = {"data_dir": tmp_path / "a.npz", "batch_size": 3, "image_size": SIZE}
    assert load_data(**flags).summary()["classes"] is None
    with pytest.raises(InputError, match="no classes, such as -1"):
        load_data(**flags, class_cond=True)
    with pytest.raises(InputError, match="no file names to take classes from"):
        load_data(**flags, labels="name")


@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_nor_does_a_list_of_them_that_cannot_be_read(tmp_path, make, monkeypatch):
    path = str(make(tmp_path / "images.zip", "{name}/{number}.png", [("dataset.json", b"{}")]))

    def fail(self, name):
        raise InputError(f"cannot read {name}")

    monkeypatch.setattr(FolderSource if make is make_folder else ZipSource, "_read_list", fail)
    assert open_source(path, needs_labels=False).labels is None
    with pytest.raises(InputError, match=r"cannot read dataset\.json; mend it, or give --labels"):
        open_source(path)


@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_a_list_that_says_that_there_are_no_classes(tmp_path, make):
    listed = ("dataset.json", b'{"labels": null}')
    path = make(tmp_path / "images.zip", "{name}/{number}.png", [listed])
    assert open_source(str(path)).labels is None
    assert open_source(str(path), "folder").labels is not None


# -- zip archives --------------------------------------------------------------------------------


def refused(path, message, by="auto"):
    with pytest.raises(InputError, match=message) as caught:
        open_source(str(path), by)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "b/../../a.png", "c:/a.png", "..\\a.png"])
def test_names_that_lead_out_of_an_archive(tmp_path, name):
    path = make_zip(tmp_path / "images.zip", extra=[(name, b"x")])
    refused(path, "leads out of the archive")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_a_zip_must_not_hold(tmp_path):
    path = tmp_path / "images.zip"
    refused(make_zip(path, extra=[("cat_00.png", b"x")]), "two files of the name cat_00.png")
    refused(make_zip(path, extra=[("dataset.json", "[1]")]), "is no list of labels")
    refused(make_zip(path, extra=[("dataset.json", "{")]), "cannot be read")
    refused(
        make_zip(path, extra=[("dataset.json", '{"labels": [["x", 0]]}')]),
        "says no class of cat_00",
    )
    refused(
        make_zip(path, extra=[("dataset.json", '{"labels": [["cat_00.png", -1]]}')]),
        "the class -1, which is no class number",
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no image")
        archive.writestr("__MACOSX/._a.png", "hidden")
    refused(path, "no images")
    path.write_bytes(b"no archive")
    refused(path, r"is no whole \.zip")
    refused(tmp_path / "none.zip", "cannot read .*none.zip")


def test_a_file_that_unpacks_to_too_much(tmp_path):
    """Whether its header says so or not."""
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**27 + 1))
    assert path.stat().st_size < 2**20
    refused(path, "claims 134217729 bytes")
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        start = data.index(mark) + at
        data[start : start + 4] = struct.pack("<I", 100)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot read image .*a\.png"):
        open_source(str(path)).read(0, SIZE)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_of_which_a_little_may_fill_the_memory(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "images.zip", "w", compression) as archive:
        archive.writestr("a.png", bytes(2**20))
    refused(tmp_path / "images.zip", r"a\.png is compressed in another way than deflate")
    with zipfile.ZipFile(tmp_path / "images.npz", "w", compression) as archive:
        archive.writestr("arr_0.npy", bytes(2**20))
    refused(tmp_path / "images.npz", r"is compressed in another way than deflate")
    extra = zipfile.ZipInfo("dataset.json")
    extra.compress_type = compression
    make_zip(tmp_path / "images.zip", extra=[(extra, '{"labels": []}')])
    refused(tmp_path / "images.zip", r"dataset\.json cannot be read: it is compressed in another")


def test_a_file_that_claims_little_is_not_unpacked_whole(tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**27))
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2") + 24
    data[place : place + 4] = struct.pack("<I", 100)
    path.write_bytes(data)
    source = open_source(str(path))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"cannot read image .*a\.png: Bad CRC"):
        source.read(0, SIZE)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_an_encrypted_zip(tmp_path):
    path = make_zip(tmp_path / "images.zip")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    refused(path, "is encrypted")


def test_a_flipped_bit_in_a_zip(tmp_path):
    path = make_zip(tmp_path / "images.zip")
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot read image .*images\.zip/cat_00\.png: Bad CRC"):
        open_source(str(path)).read(0, SIZE)


def read_all(source, queue):
    queue.put([source.read(index, SIZE).tobytes() for index in range(len(source))] * 20)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.slow
def test_processes_share_a_zip_without_disturbing_each_other(tmp_path, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    source = open_source(str(make_zip(tmp_path / "images.zip")))
    expected = [source.read(index, SIZE).tobytes() for index in range(COUNT)]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    readers = [context.Process(target=read_all, args=(source, queue)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(20):
        assert [source.read(index, SIZE).tobytes() for index in range(COUNT)] == expected
    assert all(queue.get(timeout=60) == expected * 20 for _ in readers)
    for reader in readers:
        reader.join()


# -- arrays --------------------------------------------------------------------------------------


def test_grey_arrays_and_arrays_of_other_names(tmp_path):
    pixels, labels = pictures()
    np.savez(tmp_path / "a.npz", images=pixels[..., 0], targets=labels[:, None], mean=np.zeros(3))
    source = open_source(str(tmp_path / "a.npz"))
    assert source.shape(0) == (SIZE, 1)
    assert np.array_equal(source.read(3, SIZE, 1)[..., 0], pixels[3, ..., 0])
    assert source.labels.numbers.tolist() == labels.tolist()
    np.save(tmp_path / "b.npy", np.asfortranarray(pixels))
    assert np.array_equal(open_source(str(tmp_path / "b.npy")).read(5, SIZE), pixels[5])
    np.savez_compressed(tmp_path / "c.npz", pixels)
    assert open_source(str(tmp_path / "c.npz")).labels is None


def test_class_numbers_of_an_npz_may_have_names(tmp_path):
    source = open_source(str(make_npz(tmp_path / "a.npz", classes=np.array(CLASSES))))
    assert source.labels.classes == list(CLASSES)
    assert source.labels.named
    refused(
        make_npz(tmp_path / "a.npz", classes=np.array(["a", "b"])),
        "names 2 different classes, 2 in all, and its arr_1 has 3",
    )
    refused(
        make_npz(tmp_path / "a.npz", classes=np.array(["a", "b", "a"])),
        "names 2 different classes, 3 in all",
    )


def test_what_an_npz_must_not_hold(tmp_path):
    pixels, labels = pictures()

    def refused_npz(message, **arrays):
        np.savez(tmp_path / "some.npz", **arrays)
        refused(tmp_path / "some.npz", rf"some\.npz .*{message}|some\.npz: .*{message}")

    wanted = r"no array of images, uint8 \[N, H, W\].*, but"
    refused_npz(rf"{wanted} x float64 \[12, 8, 8, 3\]", x=pixels / 255)
    refused_npz(rf"{wanted} x uint8 \[8, 8, 3\]", x=pixels[0])
    refused_npz(rf"{wanted} x uint8 \[12, 8, 8, 2\]", x=pixels[..., :2])
    refused_npz(r"several arrays of images \(x_train, x_test\)", x_train=pixels, x_test=pixels)
    refused_npz(r"several arrays of class numbers \(a, b\)", x=pixels, a=labels, b=labels)
    refused_npz(r"its arr_1 is int64 \[11\], not a class number", arr_0=pixels, arr_1=labels[1:])
    refused_npz("images without a pixel", x=pixels[:, :0])
    refused_npz("no classes, such as -1", arr_0=pixels, arr_1=labels - 1)
    refused_npz(r"but x object \[1\]", x=np.array([{}]))
    (tmp_path / "some.npz").write_bytes(b"no archive")
    refused(tmp_path / "some.npz", r"is no whole \.npz")
    (tmp_path / "some.npy").write_bytes(make_npy(tmp_path / "whole.npy").read_bytes()[:-1])
    refused(tmp_path / "some.npy", r"is no whole \.npy")


@pytest.mark.slow
def test_fifty_thousand_images_start_at_once_and_take_no_more_than_their_pixels(tmp_path):
    pytest.importorskip("resource", reason="measures by POSIX")
    path = tmp_path / "many.npz"
    np.savez(path, np.zeros((50_000, 32, 32, 3), np.uint8), np.zeros(50_000, np.int64))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure, args=(str(path), queue))
    process.start()
    seconds, grown = queue.get(timeout=120)
    process.join()
    assert seconds < 2
    assert grown < 50_000 * 32 * 32 * 3 + 2**25


def measure(path, queue):
    load_data  # noqa: B018 (its module is loaded before the clock starts)
    before = cpu.peak_memory()
    started = time.process_time()  # others may want the processor, too
    stream = load_data(data_dir=path, batch_size=8, image_size=32, class_cond=True)
    next(stream)
    seconds = time.process_time() - started
    queue.put((seconds, cpu.peak_memory() - before))


def test_a_header_makes_no_array_larger(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 8, 8, 3), }\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(200)
    (tmp_path / "a.npy").write_bytes(content)
    refused(tmp_path / "a.npy", r"cannot be in its \d+ bytes")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", content)
    refused(tmp_path / "a.npz", r"cannot be in its \d+ bytes")


def test_a_flipped_bit_in_an_npz(tmp_path):
    path = make_npz(tmp_path / "images.npz")
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    refused(path, r"is no whole \.npz: Bad CRC")


def test_headers_are_read_without_the_arrays(tmp_path):
    headers = archives.array_headers(str(make_npz(tmp_path / "images.npz")))
    assert headers["arr_0"].shape == (COUNT, SIZE, SIZE, 3)
    assert headers["arr_1"].dtype == np.int64


# -- CIFAR-10's archives -------------------------------------------------------------------------


def test_the_archive_of_cifar_10_is_read_in_place(tmp_path, monkeypatch):
    cifar = tmp_path / "cifar-10-binary.tar.gz"
    cifar.write_bytes(gzip.compress(tar_of(cifar_members("bin"))))
    train, test = open_source(str(cifar)), open_source(f"{cifar}/test")
    assert (len(train), len(test)) == (20, 4)
    assert test.shape(0) == (32, 3)
    named = [test.labels.classes[number] for number in test.labels.numbers]
    assert named == ["dog", "frog", "horse", "ship"]
    assert test.labels.classes == sorted(test.labels.classes)
    assert len(open_source(f"{cifar}/train")) == 20
    with monkeypatch.context() as patched:
        patched.setattr(os, "sep", "\\")  # as on Windows
        assert split_of(f"{cifar}\\test") == (str(cifar), "test")
    assert train.stamp != test.stamp
    refused(cifar, "no file names", by="name")
    cifar.write_bytes(gzip.compress(b"no archive"))
    refused(cifar, "cannot read archive")


# -- parquet files -------------------------------------------------------------------------------


def test_parquet_files_as_hugging_face_names_them(tmp_path):
    path = make_parquet(tmp_path / "train-00000-of-00002.parquet", image="img", label="fine_label")
    shutil.copy(path, tmp_path / "train-00001-of-00002.parquet")
    for given in (tmp_path, f"{tmp_path}/train-*.parquet"):
        source = open_source(str(given))
        assert len(source) == 2 * COUNT
        assert source.labels.classes == list(CLASSES)
        assert source.labels.numbers.tolist() == pictures()[1].tolist() * 2
        assert np.array_equal(source.read(COUNT + 4, SIZE), pictures()[0][4])
    assert open_source(str(path), "none").labels is None
    numbered = open_source(str(make_parquet(tmp_path / "numbered.parquet", named=False)))
    assert numbered.labels.classes == ["0", "1", "2"]
    refused(tmp_path, "has the files of numbered and train; name one")


def test_parquet_files_as_hugging_face_named_them_earlier(tmp_path):
    for shard, digits in enumerate(("5a2c6a5c2cc9a9d5", "0123456789abcdef")):
        make_parquet(tmp_path / f"train-{shard:05d}-of-00002-{digits}.parquet")
    assert len(open_source(str(tmp_path))) == 2 * COUNT
    make_parquet(tmp_path / "test-00000-of-00001-5a2c6a5c2cc9a9d5.parquet")
    refused(tmp_path, "has the files of test and train; name one")


def test_parquet_files_beside_images_are_not_of_them(tmp_path):
    make_folder(tmp_path / "images", "cats/{number}.png")
    (tmp_path / "images" / "cats" / "metadata.parquet").touch()
    assert type(open_source(str(tmp_path / "images"))) is FolderSource


def test_parquet_files_that_do_not_belong_together(tmp_path):
    make_parquet(tmp_path / "a-0.parquet")
    make_parquet(tmp_path / "a-1.parquet", label="number")
    refused(tmp_path, r"a-1\.parquet has other columns or classes")
    make_parquet(tmp_path / "a-1.parquet", named=False)
    refused(tmp_path, r"a-1\.parquet has other columns or classes.*, or --labels none")
    assert len(open_source(str(tmp_path), needs_labels=False)) == 2 * COUNT


def test_parquet_files_in_a_folder_of_their_data_set(tmp_path):
    """As a data set is cloned: beside a README, in data/ or in a folder for each split."""
    (tmp_path / "README.md").write_text("A data set.")
    (tmp_path / "data").mkdir()
    make_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert len(open_source(str(tmp_path))) == COUNT
    (tmp_path / "test").mkdir()
    make_parquet(tmp_path / "test" / "0000.parquet")
    refused(tmp_path, "has the files of test and train; name one of them")
    assert len(open_source(str(tmp_path / "test"))) == COUNT


def test_what_a_parquet_file_must_not_hold(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    import pyarrow.parquet as pq

    path = tmp_path / "some.parquet"

    def refused_table(message, **columns):
        pq.write_table(pa.table(columns), path)
        refused(path, message)
        with pytest.raises(InputError) as caught:
            open_source(str(path))
        assert "no whole" not in str(caught.value)

    cells = [{"bytes": content} for _, content in files()]
    refused_table("no column of images", text=["a"])
    refused_table(r"several columns of images \(a, b\)", a=cells, b=cells)
    refused_table("without a label; give --labels none", image=cells, label=[None, *range(11)])
    refused_table("no classes, such as -1", image=cells, label=[-1, *range(11)])
    twice = pa.Table.from_arrays(
        [pa.array(cells), *[pa.array(range(12))] * 2], ["image", *["label"] * 2]
    )
    pq.write_table(twice, path)
    refused(path, "duplicate field names")
    refused_table("no images", image=pa.array([], pa.binary()))
    path.write_bytes(b"no table")
    refused(path, r"is no whole \.parquet")
    refused(tmp_path / "none.parquet", "no file")
    refused(make_parquet(path), "no file names", by="folder")


def test_parquet_files_need_pyarrow(tmp_path, monkeypatch):
    path = make_parquet(tmp_path / "some.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    refused(path, r'needs pyarrow; run `pip install -e "\.\[parquet\]"`')


# -- all kinds -----------------------------------------------------------------------------------


def test_a_file_of_no_known_kind(tmp_path):
    (tmp_path / "images.rar").write_bytes(b"Rar!")
    refused(tmp_path / "images.rar", f"a file of no known kind; images can be .*{KINDS[0].name}")
    refused(tmp_path / "none", "none does not exist")
    refused(tmp_path, "unknown labels 'all'; choose from auto, name, folder, none", by="all")
