"""From what the machine refuses to an error of ours: the one place that knows which refusal means what.

The machine is the disk, the memory, and how many files and threads the system lets a process have. None of it is the
fault of whoever called, and the same call may work later.
"""

from __future__ import annotations

import errno
import re
import sqlite3

from backend.errors import InspectionError, OutOfResources, StorageFailed, StorageFull

_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG})
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})
# What libraries say where they raise no MemoryError: OpenCV, Pillow, PyTorch on either device, C++, threads.
_NO_MEMORY = re.compile(
    r"out of memory|insufficient memory|bad_alloc|can(no|')t allocate memory|can't start new thread", re.IGNORECASE
)
_WHAT_TO_DO = "The log has the reason."


def is_exhaustion(error: BaseException) -> bool:
    """Return whether an error says that memory, open files or threads have run out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _EXHAUSTED
    # Errors of other classes are about what was sent, and quote it: text of a client's must not decide what they mean.
    is_of_a_library = isinstance(error, RuntimeError | OSError) or type(error).__module__ == "cv2"
    return is_of_a_library and bool(_NO_MEMORY.search(str(error)))


def of_machine(error: BaseException) -> InspectionError | None:
    """Return the error of ours that stands for what the machine refused; None where the machine is not at fault.

    A connection that broke and a wait that took too long are OSErrors as well, and are not the machine's.
    """
    if isinstance(error, InspectionError):
        return None
    if is_exhaustion(error):
        return OutOfResources(
            "This machine has no memory, open files or threads left for this call. Send it again in a moment, fewer at "
            f"a time. {_WHAT_TO_DO}"
        )
    if isinstance(error, ConnectionError | TimeoutError | sqlite3.ProgrammingError | sqlite3.IntegrityError):
        return None
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF if isinstance(error, sqlite3.Error) else 0
    if (isinstance(error, OSError) and error.errno in _FULL) or code == sqlite3.SQLITE_FULL:
        return StorageFull(f"A disk of this machine is full. Free some space, then send it again. {_WHAT_TO_DO}")
    # Without a number it is a library's own: Pillow calls a damaged image so.
    if isinstance(error, sqlite3.Error) or (isinstance(error, OSError) and error.errno is not None):
        return StorageFailed(
            "A disk of this machine refuses to read or to write. See that it works and that the service's account may "
            f"use it, then send it again. {_WHAT_TO_DO}"
        )
    return None


def of_machine_or_cause(error: BaseException) -> InspectionError | None:
    """Return what ``of_machine`` does for an error, or else for the first of its causes that it knows."""
    cause: BaseException | None = error
    for _ in range(10):
        if cause is None:
            return None
        found = of_machine(cause)
        if found is not None:
            return found
        cause = cause.__cause__
    return None
