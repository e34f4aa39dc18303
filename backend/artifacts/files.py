"""Writing and deleting files so that a reader sees the old one or the new one, whatever happens in between.

What the system refuses comes out as an error of ours that says what to do; its number is in the log.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from backend.errors import OutOfResources, StorageFailed, StorageFull
from backend.machine_errors import of_machine

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

TEMP_PREFIX = ".tmp-"
LOCK_NAME = ".lock"

ABANDONED_S = 86_400.0
"""What is temporary and younger may have a writer: the longest, a restore, takes hours."""

_LOCKS_ABOVE = 5
"""Folders above a temporary file that a ROI's lock may lie in."""

_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_REPLACE_PATIENCE_S = 2.0

T = TypeVar("T")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file durably: a temporary file beside it, fsync, rename over it, fsync of the folder.

    Raises:
        StorageFull: If the disk is full; the old file is untouched then.
        StorageFailed: If it is broken, or may not be written; if only the last step failed, the new file is there, but
            may not outlive a power cut.
    """
    with writing():
        make_folder(path.parent)
        temp = path.parent / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
        # Not mkstemp: its files are for their owner alone, and a backup or a second service may run as another account.
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            try:
                _hold(descriptor)
                _write_all(descriptor, data)
                os.fsync(descriptor)
                if os.name == "nt":  # which renames no file that is open
                    os.close(descriptor)
                    descriptor = -1
                replace(temp, path)
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):  # what it failed with before is what counts
                temp.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder beside its final place, held by a lock in it; it is gone afterwards."""
    make_folder(parent)
    with (
        tempfile.TemporaryDirectory(prefix=TEMP_PREFIX, dir=parent, ignore_cleanup_errors=True) as name,
        FileLock(Path(name, LOCK_NAME), thread_local=False),
    ):
        yield Path(name)


def is_leftover(path: Path) -> bool:
    """Return whether something temporary was left by a crash, so that it can be deleted.

    It is old, and nobody holds it: neither the file, nor a lock in the folder that it is, nor one in a folder above.
    Age alone does not tell: a process may have been stopped, and a clock set.
    """
    try:
        if time.time() - path.stat().st_mtime <= ABANDONED_S or _is_held(path):
            return False
        locks = [folder / LOCK_NAME for folder in (path, *path.parents[:_LOCKS_ABOVE])]
        for lock in locks:
            if lock.is_file():
                with FileLock(lock, timeout=0, thread_local=False):
                    pass
    except (OSError, RuntimeError):  # gone, not ours to look at, or held (Timeout is an OSError), be it by ourselves
        return False
    return True


def remove(*paths: Path) -> None:
    """Delete files durably; those that are gone already do no harm.

    Raises:
        StorageFailed: If one cannot be deleted, or its folder cannot be made durable.
    """
    with writing():
        for path in paths:
            path.unlink(missing_ok=True)
        for folder in dict.fromkeys(path.parent for path in paths):
            sync_folder(folder)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, durably.

    Raises:
        StorageFull, StorageFailed: As ``write_atomic``.
    """
    with writing():
        missing = itertools.takewhile(lambda each: not each.is_dir(), (folder, *folder.parents))
        for each in reversed([*missing]):
            each.mkdir(exist_ok=True)
            sync_folder(each.parent)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another in one step."""
    patient_until_s = time.monotonic() + _REPLACE_PATIENCE_S
    while True:
        try:
            source.replace(target)
        except PermissionError:
            # Windows replaces no file that somebody reads, which takes milliseconds.
            if os.name != "nt" or time.monotonic() > patient_until_s:
                raise
            time.sleep(0.01)
        else:
            return


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable, where the system lets a folder be opened (Windows does not)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (PermissionError, FileNotFoundError):
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make everything in a folder durable before the folder is renamed to its final name."""
    for root, _, names in os.walk(folder):
        for name in names:
            if name == LOCK_NAME:
                continue
            # For writing: Windows flushes no other descriptor.
            descriptor = os.open(Path(root, name), os.O_RDWR | getattr(os, "O_BINARY", 0))
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(root))


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes whenever a file is replaced (time, size, inode), or None when there is none.

    Raises:
        StorageFailed: If the system refuses to answer.
    """
    status = _read(path.stat)
    return None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells the file or folder of now from another one of its name (device, inode), None for none.

    Raises:
        StorageFailed: If the system refuses to answer.
    """
    status = _read(path.stat)
    return None if status is None else (status.st_dev, status.st_ino)


def read_file(path: Path) -> bytes | None:
    """Return a file's bytes, or None when there is none.

    Raises:
        StorageFailed: If the system does not hand them out. That says nothing of the file, which stays where it is.
    """
    return _read(path.read_bytes)


def read_end(path: Path, n_bytes: int) -> bytes | None:
    """Return the last bytes of a file, or None when there is none; raises as ``read_file``."""

    def read() -> bytes:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - n_bytes))
            return file.read()

    return _read(read)


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, none where there is no such folder.

    Raises:
        StorageFailed: If it cannot be read; ``glob`` would say that it is empty.
    """
    return _read(lambda: [entry.name for entry in folder.iterdir()]) or []


@contextmanager
def writing() -> Iterator[None]:
    """Turn what the system refuses while something is stored into an error of ours; its number goes to the log."""
    try:
        yield
    except TimeoutError:  # of a lock: nobody refused anything
        raise
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        _log.error("the models folder cannot be written: errno %s (%s)", error.errno, name, exc_info=error)
        refusal = of_machine(error)
        if isinstance(refusal, OutOfResources):
            raise refusal from error
        if isinstance(refusal, StorageFull):
            raise StorageFull(
                "The disk of the models folder is full. What was stored before serves on. Free some space, then send "
                "it again."
            ) from error
        raise StorageFailed(
            "The models folder cannot be written. What was stored before serves on. See that its disk works and that "
            "the service's account may write there, then send it again; the log has the reason."
        ) from error


def _read(ask: Callable[[], T]) -> T | None:
    """Return what the system answers, or None where there is no such file; its number goes to the log if it refuses."""
    try:
        return ask()
    except FileNotFoundError:
        return None
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        _log.error("the models folder cannot be read: errno %s (%s)", error.errno, name, exc_info=error)
        refusal = of_machine(error)
        if isinstance(refusal, OutOfResources):
            raise refusal from error
        raise StorageFailed(
            "What is stored of this ROI cannot be read now. See that the disk works and that the service's account may "
            "read the models folder; the log has the reason."
        ) from error


def _hold(descriptor: int) -> None:
    """Hold an open file against ``is_leftover``; Windows deletes none that is open anyway."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without such locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(path: Path) -> bool:
    if fcntl is None or not path.is_file():
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        written = os.write(descriptor, left)
        if written <= 0:
            raise OSError(errno.EIO, "nothing was written")
        left = left[written:]
