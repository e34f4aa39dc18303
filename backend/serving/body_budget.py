"""How much of large uploads is held at one time: by calls under way, and by background jobs that wait with theirs."""

from __future__ import annotations

import threading

SMALL_BYTES = 8_000_000
"""Bodies up to here are not counted: an inspection is never refused for somebody's uploads."""


class BodyBudget:
    """Room for the large bodies of one process; safe to use from several threads.

    Args:
        max_bytes: How much room there is.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    def take(self, n_bytes: int) -> bool:
        """Take room; return False, and take none, if there is not so much."""
        with self._lock:
            if self._held + n_bytes > self._max_bytes:
                return False
            self._held += n_bytes
            return True

    def give_back(self, n_bytes: int) -> None:
        """Give room back."""
        with self._lock:
            self._held -= n_bytes


class HeldBody:
    """What one request holds, until its call has ended: the request's, or that of the job that it started.

    Attributes:
        is_handed_over: True when a job holds it from now on, beyond the request's end.
    """

    def __init__(self, budget: BodyBudget) -> None:
        self.is_handed_over = False
        self._budget = budget
        self._lock = threading.Lock()
        self._taken = 0
        self._is_released = False

    def grow_to(self, n_bytes: int) -> bool:
        """Hold so much in all, of which what is small is not counted; return False if there is no room."""
        wanted = n_bytes if n_bytes > SMALL_BYTES else 0
        with self._lock:
            more = wanted - self._taken
            if more <= 0:
                return True
            if not self._budget.take(more):
                return False
            self._taken = wanted
            return True

    def release(self) -> None:
        """Give everything back, once."""
        with self._lock:
            if not self._is_released:
                self._is_released = True
                self._budget.give_back(self._taken)
