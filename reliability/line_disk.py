"""The disk of a line PC that a proof can fill and take away: a small one of its own where the system permits that.

With the right to mount, the models folder is a bind mount of a folder on a small file system in memory: it is filled to
the last byte, and unmounted. Without it, writing is refused by a limit on the size of files (RLIMIT_FSIZE), and the
folder is renamed away and back.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SIZE_MB = 96
_TRIES = 100


class LineDisk:
    """Makes the models folder of a ``with`` block.

    Args:
        folder: Where; the models folder is its ``models``.
        pids: Returns the processes of the service.
        mounts: False where nothing may be mounted though that were possible.

    Attributes:
        models_dir: The models folder.
        is_mounted: Whether it has a file system of its own.
    """

    def __init__(self, folder: Path, pids: Callable[[], Sequence[int]], *, mounts: bool = True) -> None:
        self.models_dir = folder / "models"
        self.is_mounted = False
        self._disk, self._away, self._pids, self._may_mount = folder / "disk", folder / "away", pids, mounts

    @property
    def means(self) -> str:
        """How the disk is filled and the folder taken away, in words."""
        if self.is_mounted:
            return f"a file system of {SIZE_MB} MB in memory, filled; a bind mount, unmounted"
        return "writes refused by RLIMIT_FSIZE; the folder renamed away and back"

    @property
    def inside(self) -> Path:
        """The models folder, by a path on the file system of ``aside``."""
        return self._disk / "store" if self.is_mounted else self.models_dir

    @property
    def aside(self) -> Path:
        """A folder that files of the models folder can be moved to."""
        return self._disk

    def __enter__(self) -> LineDisk:
        self.models_dir.mkdir(parents=True)
        self._disk.mkdir()
        if self._may_mount and _ran("mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "line-disk", self._disk):
            (self._disk / "store").mkdir()
            self.is_mounted = _ran("mount", "--bind", self._disk / "store", self.models_dir)
            if not self.is_mounted:
                _ran("umount", "-l", self._disk)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_mounted:
            _ran("umount", "-l", self.models_dir)
            _ran("umount", "-l", self._disk)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room during the ``with`` block."""
        if self.is_mounted:
            ballast = self._disk / "ballast"
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                for size in (1 << 20, 1 << 12, 1):
                    with suppress(OSError):
                        while file.write(bytes(size)):
                            pass
            try:
                yield
            finally:
                ballast.unlink()
            return
        before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in self._pids()}
        for pid, (_, hard) in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            for pid, limits in before.items():
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Take the models folder away during the ``with`` block.

        Raises:
            RuntimeError: If something was written where it had been; it is left there.
        """
        if self.is_mounted:
            _ran("umount", "-l", self.models_dir)
        else:
            self.models_dir.rename(self._away)
        try:
            yield
        finally:
            written = sorted(path.name for path in self.models_dir.glob("*"))
            if self.is_mounted:
                _ran("mount", "--bind", self._disk / "store", self.models_dir)
            else:
                self._put_back()
        if written:
            raise RuntimeError(f"written where the models folder had been: {', '.join(written[:5])}")

    def _put_back(self) -> None:
        """Put the folder back; what was made in its place is moved aside, until nobody makes it again meanwhile."""
        for number in range(_TRIES):
            with suppress(OSError):
                if self.models_dir.exists():
                    self.models_dir.rename(self._away.with_name(f"in-its-place-{number}"))
                self._away.rename(self.models_dir)
                return
            time.sleep(0.01)
        raise RuntimeError("the models folder could not be put back")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process during the ``with`` block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _ran(*command: str | Path) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False
