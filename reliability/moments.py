"""When to kill: at any time, within a call of a known length, or the moment that a file is being written."""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from backend.artifacts.files import TEMP_PREFIX

Moment = Literal["any", "call", "write"]
MOMENTS: tuple[Moment, ...] = ("any", "call", "write", "write")
"""In turn. Most of a call's time is arithmetic; half of the kills go straight for the writes."""

_KEPT_DURATIONS = 50
_PATIENCE_S = 10.0
_FIRST_GUESS_S = 0.2
_MAX_WRITES = 40


class Pulse:
    """The calls of one server as they begin and end; safe to share between threads.

    Attributes:
        ended: How many were answered.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._begun = 0
        self.ended = 0
        self._latest = ""
        self._durations_s: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT_DURATIONS))

    def begin(self, kind: str) -> None:
        """Note that a call is being sent."""
        with self._condition:
            self._begun += 1
            self._latest = kind
            self._condition.notify_all()

    def end(self, kind: str, elapsed_s: float) -> None:
        """Note that it was answered."""
        with self._condition:
            self.ended += 1
            self._condition.notify_all()
            self._durations_s[kind].append(elapsed_s)

    def answered(self, calls: int) -> None:
        """Wait until so many calls were answered."""
        with self._condition:
            self._condition.wait_for(lambda: self.ended >= calls, timeout=6 * _PATIENCE_S)

    def next_call(self) -> float:
        """Wait for the next call to begin; return how long calls of its kind take, s."""
        with self._condition:
            begun = self._begun
            self._condition.wait_for(lambda: self._begun > begun, timeout=_PATIENCE_S)
            durations = self._durations_s[self._latest]
            return statistics.median(durations) if durations else _FIRST_GUESS_S


def wait_for(moment: Moment, rng: random.Random, pulse: Pulse, models_dir: Path) -> None:
    """Return when it is time."""
    if moment == "any":
        time.sleep(rng.uniform(0.02, 1.0))
    elif moment == "call":
        time.sleep(rng.uniform(0.0, 1.2 * pulse.next_call()))
    else:
        _wait_for_writes(rng.randint(1, _MAX_WRITES), models_dir)


def temporary_files(folder: Path) -> Iterator[str]:
    """Yield the files and folders below a folder that are about to be renamed; one that vanishes meanwhile is none."""
    pending = [os.fspath(folder)]
    while pending:
        try:
            entries = [*os.scandir(pending.pop())]
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith(TEMP_PREFIX):
                yield entry.path
            elif "." not in entry.name and entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)


def _wait_for_writes(number: int, models_dir: Path) -> None:
    """Return at the sight of the n-th temporary file."""
    seen: set[str] = set()
    deadline = time.monotonic() + _PATIENCE_S
    while len(seen) < number and time.monotonic() < deadline:
        seen.update(temporary_files(models_dir))
