"""Files whose bytes are not those that were written."""

import io
import os
import threading
import zipfile

import numpy as np
import pytest
import torch as th

from improved_diffusion import dist_util
from improved_diffusion.errors import InputError
from improved_diffusion.system.archives import find_damage, read_arrays

WEIGHTS = {"a": th.arange(64.0), "b": {"c": [1, 2.5, "x"]}}


def saved(content=WEIGHTS, **kwargs):
    file = io.BytesIO()
    th.save(content, file, **kwargs)
    return file.getvalue()


def is_as_saved(content):
    return th.equal(content["a"], WEIGHTS["a"]) and content["b"] == WEIGHTS["b"]


def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    whole = saved()
    path = tmp_path / "model000003.pt"
    refused = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            assert is_as_saved(dist_util.load_state_dict(str(path))), place
        except InputError as error:
            refused += 1
            assert str(path) in str(error)
            assert "\n" not in str(error)
    assert refused > 64 * 4, "at least each byte of the tensor"


def test_the_record_is_named(tmp_path):
    whole = saved()
    place = whole.index(WEIGHTS["a"].numpy().tobytes())
    data = bytearray(whole)
    data[place + 9] ^= 1
    assert th.load(io.BytesIO(data), weights_only=True)["a"][2] != 2, "PyTorch does not look"
    assert find_damage(io.BytesIO(data)) == "its record archive/data/0 does not match its checksum"


@pytest.mark.parametrize("length", [0, 1, 30, 500, -1])
def test_a_file_that_is_cut_short_is_broken(tmp_path, length):
    path = tmp_path / "model000003.pt"
    path.write_bytes(saved()[:length])
    assert "cut short" in find_damage(io.BytesIO(path.read_bytes()))
    with pytest.raises(InputError, match=r"no whole checkpoint .*cut short.*give another"):
        dist_util.load_state_dict(str(path))


def test_whole_files_are_whole(tmp_path):
    for legacy in (False, True):
        path = tmp_path / "model.pt"
        path.write_bytes(saved(_use_new_zipfile_serialization=not legacy))
        assert find_damage(io.BytesIO(path.read_bytes())) == ""
        assert is_as_saved(dist_util.load_state_dict(str(path)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_checkpoint_is_read_from_a_pipe(tmp_path):
    pipe = tmp_path / "pipe.pt"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(saved(),))
    writer.start()
    assert is_as_saved(dist_util.load_state_dict(str(pipe)))
    writer.join()


def test_a_record_that_would_fill_the_memory_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**22))
    assert "is compressed" in find_damage(file)


# -- arrays out of an .npz -----------------------------------------------------------------------

ARRAYS = {"arr_0": np.arange(600, dtype=np.int64).reshape(20, 30), "arr_1": np.ones(3)}


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, **ARRAYS)
    return path


def test_the_named_arrays_are_read(npz):
    read = read_arrays(str(npz), ("arr_0", "other"), 2**20)
    assert list(read) == ["arr_0"]
    np.testing.assert_array_equal(read["arr_0"], ARRAYS["arr_0"])


def test_every_flipped_bit_of_an_array_is_noticed(npz):
    whole = npz.read_bytes()
    start = whole.index(ARRAYS["arr_0"].tobytes())
    for place in range(start, start + ARRAYS["arr_0"].nbytes, 97):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        npz.write_bytes(data)
        with pytest.raises(InputError, match=r"some\.npz is no whole \.npz: .*CRC"):
            read_arrays(str(npz), ("arr_0",), 2**20)


def test_a_changed_byte_of_a_header_that_says_the_same_is_noticed(npz):
    data = bytearray(npz.read_bytes())
    data[data.index(b"}  ") + 1] = ord("\t")  # in the blanks that fill it up
    npz.write_bytes(data)
    with pytest.raises(InputError, match=r"some\.npz is no whole \.npz: .*CRC"):
        read_arrays(str(npz), ("arr_0",), 2**20)


@pytest.mark.parametrize("length", [0, 1, 300, 3000, -1])
def test_an_npz_that_is_cut_short_is_refused(npz, length):
    npz.write_bytes(npz.read_bytes()[:length])
    with pytest.raises(InputError, match=r"^[^\n]*some\.npz is no whole \.npz: [^\n]+$"):
        read_arrays(str(npz), ("arr_0",), 2**20)


def test_more_than_allowed_is_not_unpacked(npz):
    np.savez_compressed(npz, arr_0=np.zeros(10**6, np.uint8))
    assert npz.stat().st_size < 10**4
    with pytest.raises(InputError, match="holds 1000128 bytes, more than 1000000"):
        read_arrays(str(npz), ("arr_0",), 10**6)


def test_an_array_that_claims_more_than_the_memory_has_is_refused(npz):
    header = io.BytesIO()
    claimed = {"descr": "|u1", "fortran_order": False, "shape": (2**50,)}
    np.lib.format.write_array_header_1_0(header, claimed)
    with zipfile.ZipFile(npz, "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue())
    with pytest.raises(InputError, match="no whole"):
        read_arrays(str(npz), ("arr_0",), 2**20)


def test_nothing_is_unpickled(npz):
    np.savez(npz, arr_0=np.array([print], dtype=object))
    with pytest.raises(InputError, match="Object arrays"):
        read_arrays(str(npz), ("arr_0",), 2**20)


def test_other_files_and_none_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(InputError, match=r"text\.npz is no whole \.npz: File is not a zip file"):
        read_arrays(str(tmp_path / "text.npz"), ("arr_0",), 2**20)
    with pytest.raises(InputError, match=r"cannot read .*none\.npz \(No such file"):
        read_arrays(str(tmp_path / "none.npz"), ("arr_0",), 2**20)
