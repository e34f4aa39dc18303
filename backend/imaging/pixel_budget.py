"""How many decoded pixels one process holds at a time, over all its calls.

A file of 50 kB may be 40 megapixels, and an inspection takes some sixteen bytes of memory for each. What is decoded is
counted until the last reference to it is gone, so that nobody who decodes an image can forget to give it back.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.deadlines import remaining_s
from backend.errors import OutOfResources

BYTES_PER_PIXEL = 16
"""Memory that an inspection takes at its peak for each pixel of the image: measured 11 to 16."""

WAIT_S = 5.0
WAIT_IN_JOBS_S = 120.0
"""Background calls may wait longer: nobody waits for their answer."""

_FALLBACK_BYTES = 4 * 2**30
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class PixelBudget:
    """Counts the pixels that are decoded, or are about to be.

    Attributes:
        max_pixels: Most at a time, px; an image that is larger is decoded when it is alone.
        held: Pixels that are held now.
    """

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self.held = 0
        # Reentrant: the collector may give pixels back in the middle of any line, also of those below.
        self._changed = threading.Condition(threading.RLock())

    def take(self, n_pixels: int) -> None:
        """Wait for room for an image, and count it; call ``give_back`` or ``count_until_gone`` afterwards.

        Raises:
            OutOfResources: If there is none in time.
        """
        left_s = remaining_s()
        until_s = time.monotonic() + (WAIT_IN_JOBS_S if left_s is None else min(WAIT_S, left_s))
        with self._changed:
            if not self._fits(n_pixels):
                gc.collect()  # what an error's traceback still refers to
            while not self._fits(n_pixels):
                wait_s = until_s - time.monotonic()
                if wait_s <= 0:
                    raise OutOfResources(
                        f"Other images in work hold {self.held} px of the {self.max_pixels} px that there is room for "
                        "(BDI_MAX_HELD_MPX). Send this one again in a moment.",
                        details={"held_pixels": self.held, "max_held_pixels": self.max_pixels},
                    )
                self._changed.wait(wait_s)
            self.held += n_pixels

    def give_back(self, n_pixels: int) -> None:
        """Count pixels no longer."""
        with self._changed:
            self.held -= n_pixels
            self._changed.notify_all()

    def count_until_gone(self, pixels: NDArray[np.uint8], n_pixels: int) -> None:
        """Give pixels back when the last reference to their array is gone."""
        weakref.finalize(pixels, self.give_back, n_pixels).atexit = False

    def _fits(self, n_pixels: int) -> bool:
        return self.held == 0 or self.held + n_pixels <= self.max_pixels


def usable_memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or less where a limit is set."""
    found = [_physical_bytes(), *_limits_bytes()]
    return min((each for each in found if each), default=_FALLBACK_BYTES)


def pixels_for(memory_bytes: int) -> int:
    """Return how many pixels half of some memory is enough for."""
    return memory_bytes // 2 // BYTES_PER_PIXEL


def _physical_bytes() -> int:
    if os.name == "nt":
        status = (ctypes.c_ulonglong * 8)()  # MEMORYSTATUSEX: two 32-bit numbers, then total and available
        ctypes.memmove(status, ctypes.byref(ctypes.c_uint32(ctypes.sizeof(status))), 4)
        kernel = vars(ctypes)["windll"].kernel32
        return int(status[1]) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else 0
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _limits_bytes() -> list[int]:
    limits = []
    for path in _CGROUP_LIMITS:
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # not Linux, or "max"
            continue
    try:
        import resource  # not on Windows
    except ImportError:
        return limits
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    return [*limits, *([address_space] if address_space != resource.RLIM_INFINITY else [])]


IN_FLIGHT = PixelBudget(pixels_for(_FALLBACK_BYTES))
"""The one of this process. The application sets its ``max_pixels`` when it starts."""
