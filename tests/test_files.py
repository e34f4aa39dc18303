import os
import stat
import threading

import pytest

from backend.files import TEMP_PREFIX, stamp, sync_folder, write_atomic


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_with_the_folders_that_it_needs(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    write_atomic(path, b"one")
    assert path.read_bytes() == b"one"
    write_atomic(path, b"")
    assert path.read_bytes() == b""
    assert names(path.parent) == ["c.bin"]


@pytest.mark.parametrize("step", ["fsync", "write", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "c.bin"
    write_atomic(path, b"old")

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full_disk)
    elif step == "replace":
        monkeypatch.setattr(type(path), "replace", full_disk)
    else:
        opened = os.fdopen

        def fdopen(handle, mode):
            file = opened(handle, mode, buffering=0)
            file.close()  # so that the write fails as on a broken disk
            return file

        monkeypatch.setattr(os, "fdopen", fdopen)
    with pytest.raises((OSError, ValueError)):
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


def test_a_folder_that_cannot_be_opened_is_passed_over(tmp_path):
    sync_folder(tmp_path)
    sync_folder(tmp_path / "nowhere")


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
