import errno
import os
import stat

import blobfile
import pytest

from improved_diffusion.errors import InputError
from improved_diffusion.system import files
from improved_diffusion.system.files import atomic_write, atomic_write_text, is_local, read_file


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half():
        with atomic_write(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call, number):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        atomic_write_text(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("letter", ["a", "é", "字"])
def test_a_name_may_be_as_long_as_the_system_lets_it_be(tmp_path, letter):
    path = tmp_path / (letter * (255 // len(letter.encode())))
    atomic_write_text(path, "whole")
    assert os.listdir(tmp_path) == [path.name]


def test_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    kind = lambda fd: "folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"  # noqa: E731
    monkeypatch.setattr(files.os, "fsync", lambda fd: calls.append(kind(fd)) or fsync(fd))
    monkeypatch.setattr(files.os, "replace", lambda *a: calls.append("rename") or replace(*a))
    atomic_write_text(tmp_path / "file", "text")
    assert calls == ["file", "rename", "folder"]


@pytest.mark.skipif(os.name == "nt", reason="the system has no such permissions")
def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    atomic_write_text(tmp_path / "atomic", "")
    modes = [os.stat(tmp_path / name).st_mode for name in ("plain", "atomic")]
    assert modes[0] == modes[1]


def test_a_missing_folder_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_write_text(tmp_path / "none" / "file", "text")


@pytest.mark.parametrize("name", ["none", "."])
def test_what_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(InputError, match="check the path"):
        read_file(tmp_path / name)


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "file").write_bytes(b"\x00\xff")
    assert read_file(tmp_path / "file") == b"\x00\xff"


def test_json_that_is_nested_too_deeply_is_none():
    assert files.parse_json(b'{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deeply"):
        files.parse_json("[" * 10**5)


def test_json_with_a_number_that_no_float_holds_is_none():
    assert files.parse_json("-1" + "0" * 300) == -(10**300)
    with pytest.raises(ValueError, match="a number of 310 digits"):
        files.parse_json(f'{{"a": {"9" * 310}}}')


def test_urls_are_not_local():
    assert is_local("/a/b")
    assert is_local("b:c")
    assert not is_local("gs://bucket/file")


@pytest.mark.parametrize("local", [True, False])
def test_folders_are_looked_into_wherever_they_are(tmp_path, monkeypatch, local):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").touch()
    monkeypatch.setattr(files, "is_local", lambda path: local)
    folder = str(tmp_path)
    assert files.is_folder(folder)
    assert not files.is_folder(files.join(folder, "a"))
    assert [name.rstrip("/") for name in files.list_folder(folder)] == ["a", "b"]
    assert files.list_folder(files.join(folder, "none")) == []
    assert files.join("gs://bucket/folder/", "name") == "gs://bucket/folder/name"


@pytest.mark.parametrize("use", [files.is_folder, files.list_folder, files.read_file, files.exists])
def test_a_url_that_nobody_knows_is_said(use):
    with pytest.raises(InputError, match="Unrecognized path: 's3://bucket/x'; give a local path"):
        use("s3://bucket/x")


def test_a_place_that_does_not_answer_is_the_systems_failure(monkeypatch):
    def fail(*_):
        raise blobfile.RequestFailure("no answer", "GET /x", 500, None, None)

    monkeypatch.setattr(blobfile, "isdir", fail)
    with pytest.raises(OSError, match="no answer"):
        files.is_folder("gs://bucket/x")
