import errno
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from backend.artifacts.files import (
    ABANDONED_S,
    TEMP_PREFIX,
    is_leftover,
    make_folder,
    names_in,
    read_file,
    remove,
    scratch_folder,
    stamp,
    write_atomic,
)
from backend.errors import StorageFailed, StorageFull


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_with_the_folders_that_it_needs(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    write_atomic(path, b"one")
    assert path.read_bytes() == b"one"
    write_atomic(path, b"")
    assert path.read_bytes() == b""
    assert names(path.parent) == ["c.bin"]


@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (os, "write"), (Path, "replace")])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, owner, step):
    path = tmp_path / "c.bin"
    write_atomic(path, b"old")

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, step, full_disk)
    with pytest.raises(StorageFull):
        write_atomic(path, b"new and longer")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["c.bin"]


def test_the_bytes_are_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    happened = []
    path = tmp_path / "c.bin"
    replace, fsync = type(path).replace, os.fsync

    def noted_fsync(descriptor):
        happened.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(self, target):
        happened.append("rename")
        assert self.name.startswith(TEMP_PREFIX)
        assert self.parent == target.parent
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(type(path), "replace", noted_replace)
    write_atomic(path, b"new")
    assert happened == ["file", "rename", "folder"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "c.bin"
    contents = [bytes([letter]) * 200_000 for letter in b"ab"]
    write_atomic(path, contents[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                write_atomic(path, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {path.read_bytes() in contents for _ in range(300)} == {True}
    finally:
        stop.set()
        writer.join()


def test_a_stamp_changes_whenever_a_file_is_replaced(tmp_path):
    path = tmp_path / "c.bin"
    assert stamp(path) is None
    stamps = []
    for content in (b"one", b"two", b"two"):  # the same size, at once; the last even the same bytes
        write_atomic(path, content)
        stamps.append(stamp(path))
    assert stamps[0] != stamps[1] != stamps[2]
    assert stamp(path) == stamps[-1]


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no mode bits")
def test_a_file_is_readable_for_whom_the_umask_lets_read(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


# -- what the system refuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EIO, StorageFailed),
        (errno.EACCES, StorageFailed),
        (errno.EROFS, StorageFailed),
    ],
)
def test_what_the_system_refuses_is_an_error_that_says_what_to_do_and_the_log_has_its_number(
    tmp_path, monkeypatch, caplog, number, error
):
    def refuse(*_args):
        raise OSError(number, f"secret {tmp_path}")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(error) as refused:
        write_atomic(tmp_path / "a", b"x")
    assert str(tmp_path) not in refused.value.sentence
    assert "serves on" in refused.value.sentence
    assert errno.errorcode[number] in caplog.text


def test_a_disk_that_takes_a_part_of_what_it_is_given_gets_the_rest(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    data = bytes(range(256)) * 3
    write_atomic(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data
    monkeypatch.setattr(os, "write", lambda _descriptor, _data: 0)
    with pytest.raises(StorageFailed):
        write_atomic(tmp_path / "a", b"new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == data


def test_a_folder_that_cannot_be_made_durable_is_told_of(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "no")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    number = errno.EINVAL  # a file system that knows no such thing
    write_atomic(tmp_path / "a", b"x")
    number = errno.EIO
    with pytest.raises(StorageFailed):
        write_atomic(tmp_path / "a", b"y")
    with pytest.raises(StorageFailed):
        remove(tmp_path / "a")


def test_a_folder_is_made_with_all_that_are_missing_above_it_and_each_is_durable(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("backend.artifacts.files.sync_folder", synced.append)
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed):
        make_folder(tmp_path / "file" / "d")


def test_files_are_deleted_durably_and_those_that_are_gone_do_no_harm(tmp_path, monkeypatch):
    synced = []
    for name in ("a/1", "a/2", "b/3"):
        write_atomic(tmp_path / name, b"x")
    monkeypatch.setattr("backend.artifacts.files.sync_folder", synced.append)
    remove(tmp_path / "a" / "1", tmp_path / "a" / "2", tmp_path / "b" / "3", tmp_path / "b" / "4")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert synced == [tmp_path / "a", tmp_path / "b"]


def test_what_cannot_be_read_is_told_apart_from_what_is_not_there(tmp_path):
    assert (read_file(tmp_path / "a"), names_in(tmp_path / "a"), stamp(tmp_path / "a")) == (None, [], None)
    (tmp_path / "a").touch()
    for ask in (lambda: read_file(tmp_path), lambda: names_in(tmp_path / "a"), lambda: stamp(tmp_path / "a" / "b")):
        with pytest.raises(StorageFailed):
            ask()


# -- what a crash has left ----------------------------------------------------------------------------------------


def test_a_temporary_folder_is_gone_afterwards(tmp_path):
    with scratch_folder(tmp_path / "a") as scratch:
        (scratch / "half").write_bytes(b"x")
    assert names(tmp_path / "a") == []


def test_what_is_temporary_is_a_leftover_once_nobody_can_be_writing_it_any_more(tmp_path):
    temp = tmp_path / "temp"
    assert not is_leftover(temp)
    for age_s, expected in ((0, False), (ABANDONED_S - 60, False), (ABANDONED_S + 60, True)):
        temp.touch()
        os.utime(temp, (time.time() - age_s,) * 2)
        assert is_leftover(temp) is expected
