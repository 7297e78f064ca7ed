import errno
import gzip
import http.server
import importlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_files import (
    Harmful,
    cifar_batches,
    cifar_members,
    laughs,
    png_claiming,
    room_for,
    tar_of,
)
from PIL import Image

from improved_diffusion.commands import cli
from improved_diffusion.data import cifar_archive
from improved_diffusion.errors import InputError
from improved_diffusion.image_datasets import load_data

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(DATASETS))
    return importlib.import_module


@pytest.fixture
def cifar10(scripts):
    return scripts("cifar10")


@pytest.fixture
def start(monkeypatch, capsys):
    """Run a script's main and return its exit status, stdout and stderr."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.run(module.main)
        return (exit_.value.code, *capsys.readouterr())

    return run


def pack(path, members):
    path.write_bytes(gzip.compress(tar_of(members)))
    return path


@pytest.fixture
def unpack(cifar10, start, tmp_path):
    """Make folders of an archive, whatever its checksum; exit status, stdout and stderr."""

    def run(path, *more, out=tmp_path / "out"):
        return start(cifar10, "--archive", path, "--any_checksum", "True", "--out_dir", out, *more)

    return run


@pytest.fixture
def archive(tmp_path):
    return pack(tmp_path / "binary.tar.gz", cifar_members("bin"))


def names(folder):
    return sorted(path.name for path in folder.glob("*.png"))


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_cifar_archives_become_two_folders(unpack, tmp_path, kind):
    members = {"batches.meta": b"never read"} | dict(reversed(cifar_members(kind).items()))
    path = pack(tmp_path / "archive", members)
    out = tmp_path / "new" / "out"
    status, printed, _ = unpack(path, out=out)
    assert status == 0
    assert "cifar_train: 20 images" in printed
    train = [("plane", 0), ("car", 1), ("bird", 2), ("cat", 3), ("car", 4), ("bird", 5)]
    assert {f"{name}_{index:05d}.png" for name, index in train} < set(names(out / "cifar_train"))
    tested = ["dog_00000.png", "frog_00001.png", "horse_00002.png", "ship_00003.png"]
    assert names(out / "cifar_test") == tested
    pixels = np.concatenate([pixels for _, pixels, _ in cifar_batches()])[5].reshape(3, 32, 32)
    image = np.asarray(Image.open(out / "cifar_train" / "bird_00005.png"))
    assert np.array_equal(image, pixels.transpose(1, 2, 0))
    data = load_data(data_dir=out / "cifar_train", batch_size=20, image_size=32, class_cond=True)
    assert next(data)[0].shape == (20, 3, 32, 32)
    assert sorted(path.name for path in out.iterdir()) == ["cifar_test", "cifar_train"]


def test_limit_and_repetition(unpack, tmp_path, archive):
    unpack = partial(unpack, archive, out=tmp_path)
    assert unpack("--limit", 3)[0] == 0
    assert len(names(tmp_path / "cifar_train")) == len(names(tmp_path / "cifar_test")) == 3
    before = (tmp_path / "cifar_train").stat().st_ino
    archive.rename(tmp_path / "gone")
    status, printed, _ = unpack("--limit", 3)
    assert (status, "nothing to do" in printed) == (0, True)
    (tmp_path / "gone").rename(archive)
    assert (tmp_path / "cifar_train").stat().st_ino == before
    status, printed, _ = unpack("--limit", 3, "--overwrite", "True")
    assert (status, f"Replacing {tmp_path / 'cifar_train'}" in printed) == (0, True)
    status, _, said = unpack()
    assert (status, "has 3 images of an earlier call" in said) == (2, True)
    assert len(names(tmp_path / "cifar_train")) == 3
    status, printed, _ = unpack("--overwrite", "True")
    assert (status, f"Replacing {tmp_path / 'cifar_train'}" in printed) == (0, True)
    assert len(names(tmp_path / "cifar_train")) == 20
    status, printed, _ = unpack("--overwrite", "True")  # of the same size, too
    assert (status, f"Replacing {tmp_path / 'cifar_test'}" in printed) == (0, True)
    (tmp_path / "cifar_train" / ".DS_Store").touch()  # as macOS does when one looks there
    status, printed, _ = unpack()
    assert (status, "cifar_train: 20 images, there already" in printed) == (0, True)
    (tmp_path / "cifar_train" / "plane_00000.png").unlink()  # no longer whole: made anew
    status, printed, _ = unpack()
    assert (status, "cifar_test: 4 images, there already" in printed) == (0, True)
    assert len(names(tmp_path / "cifar_train")) == 20


@pytest.mark.parametrize("room", [0, 200, 10_000])
def test_a_full_disk_names_the_file(cifar10, unpack, tmp_path, archive, room, monkeypatch):
    """Within the first picture, or, of pictures that would fit, within the note of their number."""
    if room == 10_000:
        room = 0
        monkeypatch.setattr("image_folders._write_images", lambda *_: None)
    with room_for(room):
        status, _, complaint = unpack(archive)
    assert (status, complaint.count("\n")) == (1, 1)
    assert os.strerror(errno.EFBIG) in complaint
    assert str(tmp_path / "out" / ".cifar_train.partial") in complaint
    assert os.listdir(tmp_path / "out") == []


def test_an_interrupted_run_leaves_no_split(unpack, tmp_path, archive, monkeypatch):
    saved = Image.Image.save
    written = []

    def save_some(image, path, *args):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(path)
        saved(image, path, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", save_some)
        assert unpack(archive)[0] == 130
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / ".cifar_train.partial").mkdir()  # what a killed run leaves
    (tmp_path / "out" / ".cifar_train.partial" / "plane_77777.png").write_bytes(b"torn")
    assert unpack(archive)[0] == 0
    assert len(names(tmp_path / "out" / "cifar_train")) == 20
    assert sorted(os.listdir(tmp_path / "out")) == ["cifar_test", "cifar_train"]


def test_foreign_folders_are_never_replaced(unpack, tmp_path, archive):
    unpack = partial(unpack, archive, out=tmp_path)
    mine = tmp_path / "cifar_test" / "plane_00000.png"
    mine.parent.mkdir()
    mine.write_text("not made by the script")
    status, _, complaint = unpack()
    assert status == 2
    assert "cifar_test holds something that this script did not make" in complaint
    assert mine.read_text() == "not made by the script"
    assert not (tmp_path / "cifar_train").exists()
    mine.unlink()
    assert unpack()[0] == 0
    (tmp_path / "cifar_train" / "notes.txt").write_text("added later")
    assert unpack("--limit", 2)[0] == 2
    assert (tmp_path / "cifar_train" / "notes.txt").exists()


def test_every_split_is_written_with_that_care(scripts, tmp_path):
    folders = scripts("image_folders")
    split = folders.Split("some", np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, int), ["class"])
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "mine.png").write_text("not made by the script")
    with pytest.raises(InputError, match="some holds something"):
        folders.write_split(split, tmp_path)
    assert (tmp_path / "some" / "mine.png").exists()


def test_a_pickle_in_the_archive_executes_nothing(unpack, tmp_path):
    members = cifar_members("py")
    payload = {b"labels": [0], b"data": Harmful(os.mkdir, str(tmp_path / "exploded"))}
    members["cifar-10-batches-py/data_batch_3"] = pickle.dumps(payload, protocol=2)
    path = pack(tmp_path / "bomb.tar.gz", members)
    status, _, complaint = unpack(path)
    assert status == 2
    assert f"data_batch_3 in {path} is no batch of CIFAR-10: its pickle asks for" in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x02Nr\xff\xff\xff\xff.",  # a memo of 2 ** 32 places
        pickle.dumps({b"labels": laughs(), b"data": np.zeros((2, 3072), np.uint8)}, protocol=2),
    ],
    ids=["memo", "labels"],
)
def test_a_pickle_in_the_archive_cannot_fill_the_memory(payload):
    tracemalloc.start()
    try:
        with pytest.raises((TypeError, ValueError)):
            cifar_archive.parse_python(payload)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_member_of_the_archive_cannot_fill_the_memory(unpack, tmp_path, kind):
    """Headers are members, too, which tarfile reads whole."""
    path = tmp_path / "archive.tar.gz"
    info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    info.type, info.size = kind, 2**30
    with gzip.open(path, "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(2**20))
    status, _, complaint = unpack(path)
    assert (status, complaint.count("\n")) == (2, 1)
    assert "is larger than a batch of CIFAR-10" in complaint


@pytest.mark.parametrize(
    "headers", [{"GNU.sparse.realsize": str(2**30)}, {"size": str(2**30)}], ids=["sparse", "pax"]
)
def test_a_later_header_of_a_member_cannot_make_it_larger(unpack, tmp_path, headers):
    path = tmp_path / "archive.tar"
    info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"} | headers
    info.size = 512
    path.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + b"0\n".ljust(512, b"\0") + bytes(1024))
    status, _, complaint = unpack(path)
    assert (status, complaint.count("\n")) == (2, 1)
    assert "is larger than a batch of CIFAR-10" in complaint


def test_an_archive_of_nested_or_foreign_headers_is_said_to_be_broken(unpack, tmp_path):
    link = tarfile.TarInfo("././@LongLink")
    link.type, link.size = tarfile.GNUTYPE_LONGNAME, 1
    nested = (link.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 1500
    foreign = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    foreign.pax_headers = {"GNU.sparse.map": "abc"}
    for content in (nested, foreign.tobuf(tarfile.PAX_FORMAT)):
        path = tmp_path / "archive.tar"
        path.write_bytes(content + bytes(1024))
        status, _, complaint = unpack(path)
        assert (status, complaint.count("\n")) == (2, 1)
        assert "cannot read archive" in complaint


def test_an_archive_cannot_write_outside_its_folder(unpack, tmp_path):
    members = cifar_members("bin")
    moved = {f"../../{Path(name).name}": payload for name, payload in members.items()}
    path = pack(tmp_path / "archive.tar.gz", {**moved, "/../evil.sh": b"evil"})
    out = tmp_path / "deep" / "er" / "out"
    assert unpack(path, out=out)[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["archive.tar.gz", "deep"]
    assert os.listdir(tmp_path / "deep") == ["er"]


def broken_archives():
    good = cifar_members("bin")
    batch = "cifar-10-batches-bin/data_batch_1.bin"
    yield {name: good[name] for name in good if name != batch}, "has no data_batch_1"
    yield {**good, batch: good[batch][:-1]}, "data_batch_1.bin in"
    yield {**good, batch: b"\x0a" + good[batch][1:]}, "not one of 0 to 9"
    yield {"cifar-10-batches-py/data_batch_1": b"\x80\x02]"}, "data_batch_1 in"
    yield {"readme.html": b"<html>"}, "is not CIFAR-10's"


@pytest.mark.parametrize(("members", "message"), list(broken_archives()))
def test_broken_archives(unpack, tmp_path, members, message):
    path = pack(tmp_path / "archive.tar.gz", members)
    status, _, complaint = unpack(path, out=tmp_path)
    assert status == 2
    assert message in complaint
    assert complaint.count("\n") == 1
    assert os.listdir(tmp_path) == ["archive.tar.gz"]


def test_archives_that_are_none(cifar10, start, unpack, tmp_path, archive):
    torn = tmp_path / "torn.tar.gz"
    torn.write_bytes(archive.read_bytes()[:5000])
    text = tmp_path / "text"
    text.write_text("no archive")
    for path, message in ((torn, "cannot read"), (text, "cannot read"), ("no", "does not exist")):
        status, _, complaint = unpack(path)
        assert (status, message in complaint, complaint.count("\n")) == (2, True, 1)
    status, _, complaint = start(cifar10, "--archive", archive, "--out_dir", tmp_path / "out")
    assert status == 2
    assert cifar10.md5(archive) in complaint
    assert "--any_checksum True" in complaint
    assert start(cifar10, "--limit", "0")[0] == 2
    assert not (tmp_path / "out").exists()


class Server:
    """A site on this machine whose paths misbehave as their names say."""

    def __init__(self, payload):
        requests = self.requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                asked = self.headers.get("Range")
                requests.append((self.path, asked))
                begin = int(asked[6:-1]) if asked and "norange" not in self.path else 0
                if "missing" in self.path:
                    self.send_error(404)
                elif "wrong" in self.path:
                    self.answer(b"x" * len(payload), 0)
                elif begin >= len(payload):
                    self.send_error(416)
                else:
                    self.answer(payload, begin)

            def answer(self, body, begin):
                self.send_response(206 if begin else 200)
                if begin:
                    self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
                self.send_header("Content-Length", str(len(body) - begin))
                self.end_headers()
                broken = "broken" in self.path or ("once" in self.path and not begin)
                self.wfile.write(body[begin : begin + 3000] if broken else body[begin:])

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.http.server_port}/{path}"


@pytest.fixture
def site(cifar10, archive, monkeypatch):
    server = Server(archive.read_bytes())
    monkeypatch.setattr(cifar10, "BINARY_MD5", cifar10.md5(archive))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.http.shutdown()
    server.http.server_close()


def fetch(cifar10, site, folder, *paths):
    target = folder / "downloaded.tar.gz"
    cifar10.download([site.url(path) for path in paths], target)
    assert cifar10.md5(target) == cifar10.BINARY_MD5
    assert not target.with_name("downloaded.tar.gz.part").exists()


def test_download_then_splits_then_nothing_to_download(cifar10, site, start, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URLS", [site.url("whole")])
    out = tmp_path / "out"
    assert start(cifar10, "--out_dir", out)[0] == 0
    assert len(names(out / "cifar_train")) == 20
    assert start(cifar10, "--out_dir", out, "--limit", 1)[0] == 2
    assert start(cifar10, "--out_dir", out, "--limit", 1, "--overwrite", "True")[0] == 0
    assert site.requests == [("/whole", None)]


def test_download_goes_on_from_what_is_there(cifar10, site, archive, tmp_path):
    part = tmp_path / "downloaded.tar.gz.part"
    part.write_bytes(archive.read_bytes()[:1000])
    fetch(cifar10, site, tmp_path, "whole")
    part.write_bytes(archive.read_bytes())  # killed between the last byte and the renaming
    fetch(cifar10, site, tmp_path, "whole")
    assert site.requests == [("/whole", "bytes=1000-")]


def test_download_goes_on_after_a_break(cifar10, site, tmp_path):
    fetch(cifar10, site, tmp_path, "once")
    assert site.requests == [("/once", None), ("/once", "bytes=3000-")]


def test_download_starts_again_where_ranges_are_unknown(cifar10, site, archive, tmp_path):
    part = tmp_path / "downloaded.tar.gz.part"
    part.write_bytes(archive.read_bytes()[:1000])
    fetch(cifar10, site, tmp_path, "norange")
    assert site.requests == [("/norange", "bytes=1000-")]


@pytest.mark.parametrize("size", [1000, 10**7])  # within the archive, and beyond its end
def test_download_starts_again_after_rotten_bytes(cifar10, site, tmp_path, size):
    (tmp_path / "downloaded.tar.gz.part").write_bytes(b"x" * size)
    fetch(cifar10, site, tmp_path, "whole")
    assert site.requests == [("/whole", f"bytes={size}-"), ("/whole", None)]


def test_download_falls_back_to_mirrors(cifar10, site, tmp_path):
    fetch(cifar10, site, tmp_path, "missing", "wrong", "whole")
    assert [path for path, _ in site.requests] == ["/missing", "/wrong", "/whole"]


def test_download_that_fails_says_what_to_do(cifar10, site, start, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URLS", [site.url("missing"), "http://127.0.0.1:1/closed"])
    status, _, complaint = start(cifar10, "--out_dir", tmp_path / "out")
    assert status == 1
    assert complaint.count("\n") == 1
    for words in ("status 404", "refused", "--archive PATH", "python datasets/digits.py"):
        assert words in complaint
    assert os.listdir(tmp_path / "out") == []


def test_a_silent_server_is_given_up(cifar10, tmp_path, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as silent:
        monkeypatch.setattr(cifar10, "TIMEOUT", 0.2)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        url = f"http://127.0.0.1:{silent.server_port}/"
        with pytest.raises(ConnectionError, match="timed out"):
            cifar10.download([url], tmp_path / "archive")


def test_digits(scripts, start, tmp_path):
    pytest.importorskip("sklearn")
    digits = scripts("digits")
    assert start(digits, "--out_dir", tmp_path)[0] == 0
    assert len(names(tmp_path / "digits_train")) == 1500
    assert len(names(tmp_path / "digits_test")) == 297
    data = load_data(data_dir=tmp_path / "digits_train", batch_size=8, image_size=32)
    assert data.summary()["classes"] == sorted(digits.CLASSES)
    image = np.asarray(Image.open(tmp_path / "digits_train" / "zero_00000.png"))
    assert image.shape == (32, 32, 3)
    assert image[16, 16].max() < 50 < 200 < image[:, 8:24].max()  # dark in a zero's middle


@pytest.mark.parametrize(
    ("script", "module", "extra"),
    [("digits", "sklearn", "digits"), ("lsun_bedroom", "lmdb", "lsun")],
)
def test_missing_extras_are_named(scripts, start, tmp_path, monkeypatch, script, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    flags = [tmp_path, tmp_path / "out"] if extra == "lsun" else ["--out_dir", tmp_path / "out"]
    status, _, complaint = start(scripts(script), *flags)
    assert (status, complaint.count("\n")) == (2, 1)
    assert f'pip install -e ".[{extra}]"' in complaint
    assert not (tmp_path / "out").exists()


def lsun(path, values):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(path), map_size=2**20) as database, database.begin(write=True) as writing:
        for number, value in enumerate(values):
            writing.put(f"key{number}".encode(), value)
    return path


def encoded(width, height, kind):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, format=kind, lossless=True)
    return buffer.getvalue()


def test_lsun(scripts, start, tmp_path):
    values = [encoded(40, 20, "WEBP"), encoded(8, 24, "JPEG")]
    database = lsun(tmp_path / "lmdb", values)
    out = tmp_path / "out"
    script = scripts("lsun_bedroom")
    assert start(script, "--image-size", 8, "--prefix", "room", database, out)[0] == 0
    assert names(out) == ["room_0000000.png", "room_0000001.png"]
    whole = Image.open(io.BytesIO(values[0])).convert("RGB")
    expected = np.asarray(whole.resize((16, 8), Image.Resampling.BOX))[:, 4:12]
    assert np.array_equal(np.asarray(Image.open(out / "room_0000000.png")), expected)


def test_lsun_images_are_not_mixed_with_those_of_an_earlier_call(scripts, start, tmp_path):
    script, out = scripts("lsun_bedroom"), tmp_path / "out"
    first = lsun(tmp_path / "first", [encoded(8, 8, "PNG"), encoded(9, 9, "PNG")])
    second = lsun(tmp_path / "second", [encoded(10, 10, "PNG")])
    assert start(script, "--image-size", 8, first, out)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    status, _, complaint = start(script, "--image-size", 8, second, out)
    assert (status, complaint.count("\n")) == (2, 1)
    assert "has images of that prefix already: choose another folder" in complaint
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert start(script, "--image-size", 8, "--prefix", "room", second, out)[0] == 0
    assert len(names(out)) == 3


def test_lsun_images_appear_together(scripts, start, tmp_path):
    script, out = scripts("lsun_bedroom"), tmp_path / "out"
    database = lsun(tmp_path / "lmdb", [encoded(90, 90, "PNG")] * 3)
    with room_for(100):
        status, _, complaint = start(script, "--image-size", 64, database, out)
    assert (status, complaint.count("\n")) == (1, 1)
    assert list(out.iterdir()) == []
    assert start(script, "--image-size", 64, database, out)[0] == 0
    assert len(names(out)) == 3


def test_lsun_goes_on_with_whole_images(scripts, start, tmp_path, monkeypatch):
    """Where it was stopped while they got their places."""
    script, out = scripts("lsun_bedroom"), tmp_path / "out"
    database = lsun(tmp_path / "lmdb", [encoded(9, 9, "PNG")] * 3)
    rename = Path.rename

    def rename_until_stopped(path, target):
        if target.name == "bedroom_0000001.png":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_until_stopped)
    assert start(script, "--image-size", 8, database, out)[0] == 130
    monkeypatch.setattr(Path, "rename", rename)
    status, printed, _ = start(script, "--image-size", 8, database, out)
    assert (status, "an earlier call" in printed, "3 images" in printed) == (0, True, True)
    assert sorted(path.name for path in out.iterdir()) == names(out)
    assert len(names(out)) == 3


@pytest.mark.parametrize("size", [(1, 60_000), (20_000, 20_000)])
def test_lsun_images_cannot_fill_the_memory(scripts, size):
    with pytest.raises(InputError, match=r"cannot read image a key: .*pixels"):
        scripts("lsun_bedroom").decode(png_claiming(*size), 256, "a key")


def test_lsun_says_what_is_wrong(scripts, start, tmp_path):
    script = scripts("lsun_bedroom")
    empty, broken = lsun(tmp_path / "empty", []), lsun(tmp_path / "broken", [b"no image"])
    for flags, message in (
        ([empty], "is empty"),
        ([broken], "cannot read image b'key0' in"),
        ([tmp_path / "none"], "cannot read the LSUN database"),
        (["--image-size", 0, empty], "--image-size must be at least 1"),
        (["--prefix", "bed_room", empty], "--prefix must be a word"),
    ):
        status, _, complaint = start(script, *flags, tmp_path / "out")
        assert (status, complaint.count("\n")) == (2, 1)
        assert message in complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ["cifar10.py", "digits.py", "lsun_bedroom.py"])
def test_scripts_run_from_any_folder(script, tmp_path):
    command = [sys.executable, str(DATASETS / script)]
    helped = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert helped.returncode == 0, helped.stderr
    assert "default" in helped.stdout
    wrong = subprocess.run([*command, "--no"], cwd=tmp_path, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
