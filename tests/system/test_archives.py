"""Checkpoints whose bytes are not those that were written."""

import io
import zipfile

import pytest
import torch as th

from improved_diffusion import dist_util
from improved_diffusion.errors import InputError
from improved_diffusion.system.archives import find_damage, find_damage_in

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
    assert find_damage(bytes(data)) == "its record archive/data/0 does not match its checksum"


@pytest.mark.parametrize("length", [0, 1, 30, 500, -1])
def test_a_file_that_is_cut_short_is_broken(tmp_path, length):
    path = tmp_path / "model000003.pt"
    path.write_bytes(saved()[:length])
    assert "cut short" in find_damage_in(str(path))
    with pytest.raises(InputError, match=r"no whole checkpoint .*cut short.*give another"):
        dist_util.load_state_dict(str(path))


def test_whole_files_are_whole(tmp_path):
    for legacy in (False, True):
        path = tmp_path / "model.pt"
        path.write_bytes(saved(_use_new_zipfile_serialization=not legacy))
        assert find_damage_in(str(path)) == ""
        assert is_as_saved(dist_util.load_state_dict(str(path)))


def test_a_record_that_would_fill_the_memory_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**22))
    assert "is compressed" in find_damage(file.getvalue())
