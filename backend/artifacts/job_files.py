"""The file of a background job, and the mark of the process that runs it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from backend.utils import unsealed_json

State = Literal["queued", "running", "done", "failed", "cancelled", "lost"]
JobRole = Literal["admin", "inspect"]
FINAL: frozenset[State] = frozenset({"done", "failed", "cancelled", "lost"})

_LOOKING_S = 5.0
"""Longest wait for others that look whether a process is gone, s; each takes well under a millisecond."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is known of a job; times in seconds since 1970.

    Attributes:
        job_id: 32 hexadecimal digits.
        kind: The call, for example ``fit_ok``.
        owner: The process that runs it.
        role: Of whoever started it; each role has places of its own.
        total: Steps in all; 0 while unknown.
        result: What the call answers, once ``done``.
        error: Code, message and details of the error, once ``failed``.
    """

    job_id: str
    kind: str
    owner: str
    role: JobRole = "admin"
    state: State = "queued"
    done: int = 0
    total: int = 0
    created_s: float
    started_s: float | None = None
    finished_s: float | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def progress(self) -> float:
        """Share of the steps that are done, 0 … 1."""
        return 1.0 if self.state == "done" else min(1.0, self.done / self.total) if self.total else 0.0

    def eta_s(self, now_s: float) -> float | None:
        """Return the seconds that are left at the pace so far, or None while that is unknown."""
        if self.state != "running" or self.started_s is None or not 0 < self.done <= self.total:
            return None
        return max(0.0, (now_s - self.started_s) * (self.total - self.done) / self.done)

    def ended(self, state: State, **fields: Any) -> Job:
        """Return the job as it ended now."""
        return replace(self, state=state, finished_s=time.time(), **fields)


def is_abandoned(mark: Path) -> bool:
    """Return whether the process that made a mark is gone; if so, the mark is gone afterwards as well.

    Whoever looks must take the lock that the process holds while it lives. A second one that looked at that moment
    would find it taken, and the process alive: they look one after the other, also those of other processes.
    """
    if not mark.exists():
        return True
    try:
        with FileLock(mark.with_name(".lock"), timeout=_LOOKING_S, poll_interval=0.005, thread_local=False):
            with FileLock(mark, timeout=0, thread_local=False):
                pass
            mark.unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def job_from_bytes(data: bytes) -> Job:
    """Return the job of a stored file.

    Raises:
        ValueError: If a byte of it has changed.
    """
    try:
        return Job(**unsealed_json(data))
    except TypeError as error:
        raise ValueError("not a job") from error
