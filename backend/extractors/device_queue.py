"""One thread for the device, a bounded queue before it, inspections ahead of fits."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import IntEnum
from typing import Any, TypeVar

from backend.deadlines import end_if_late, remaining_s
from backend.errors import QueueFull, RequestTimeout, ShuttingDown

T = TypeVar("T")


class Priority(IntEnum):
    """Whose turn comes first."""

    INSPECTION = 0
    FIT = 1
    _STOP = 2


class DeviceQueue:
    """Runs device work one call at a time on its own thread.

    A fit hands its images in one by one, so inspections interleave with it. Only waiting inspections are bounded: a
    fit has one image in the queue at a time.
    """

    def __init__(self, max_waiting: int) -> None:
        """Start the thread; ``max_waiting`` inspections may wait beside the one that runs."""
        self.waiting = 0  # inspections that wait or run now
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._stopping = False
        self._order = itertools.count()
        self._work: queue.PriorityQueue[tuple[Priority, int, Future[Any] | None, Callable[[], Any]]]
        self._work = queue.PriorityQueue()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def run(self, call: Callable[[], T], priority: Priority = Priority.INSPECTION) -> T:
        """Return what ``call`` returns on the device's thread; blocks until then.

        Raises:
            QueueFull: If as many inspections wait as may.
            ShuttingDown: If the queue was closed.
            RequestTimeout: If the request must have ended before its turn has.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._stopping:
                raise ShuttingDown("The service is stopping. Send the request again to the one that follows.")
            if priority is Priority.INSPECTION:
                if self.waiting > self._max_waiting:
                    raise QueueFull(
                        f"{self.waiting} inspections are waiting. Send this one again in a moment.",
                        details={"waiting": self.waiting},
                    )
                self.waiting += 1
            self._work.put((priority, next(self._order), future, call))
        try:
            return future.result(remaining_s())
        except TimeoutError:
            if future.done():
                raise  # the call's own
            future.cancel()
            if priority is Priority.FIT:
                end_if_late(0, 0)
            raise RequestTimeout(
                "The device did not come to it in the time that a request may take. Send it again, fewer at a time, or "
                "a long call with the header `Prefer: respond-async`."
            ) from None
        finally:
            if priority is Priority.INSPECTION:
                with self._lock:
                    self.waiting -= 1

    def close(self, timeout_s: float = 10.0) -> None:
        """Finish what is queued, take nothing new, and end the thread."""
        with self._lock:
            self._stopping = True
            self._work.put((Priority._STOP, next(self._order), None, lambda: None))
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            _, _, future, call = self._work.get()
            if future is None:
                return
            if not future.set_running_or_notify_cancel():
                continue  # whoever asked for it has given up
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del future, call  # with the images that the call refers to: the next one may be hours away
