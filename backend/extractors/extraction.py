"""Extraction on the device's thread, in batches where the device likes them.

A batch forms by itself: while one runs, the requests that arrive wait, and the next turn takes all of them. Only when
more callers are on their way than have handed in their image does a turn wait for them, a few milliseconds at most.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backend.extractors.base import EmbedsOnDevice, FeatureExtractor
from backend.extractors.device_queue import DeviceQueue, Priority
from backend.memory_bank.nearest import RowsOnDevice
from backend.utils import Stopwatch

_POLL_S = 0.0002

Rows = NDArray[np.float32] | RowsOnDevice
"""The embeddings of an image, here or on the device."""


@dataclass(eq=False)  # compared by identity
class _Waiting:
    """An image and where its rows go."""

    image_bgr: NDArray[np.uint8]
    rows: Future[Rows] = field(default_factory=Future)
    started_s: float = 0.0


class Extraction:
    """Brings images to the extractor: inspections one by one as they come, fits in batches of their own."""

    def __init__(self, device: DeviceQueue, *, batch_wait_ms: float = 0.0) -> None:
        """Use a device's thread; a turn waits ``batch_wait_ms`` at most for callers on their way."""
        self._device = device
        self._batch_wait_s = batch_wait_ms / 1e3
        self._pending: defaultdict[tuple[int, ...], deque[_Waiting]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._callers = 0

    def inspect(self, extractor: FeatureExtractor, image_bgr: NDArray[np.uint8], watch: Stopwatch) -> Rows:
        """Return the rows [N, D] of an image [H, W, 3], on the device where that can search; blocks until it is done.

        The watch gets the laps ``queue`` and ``extract``.

        Raises:
            QueueFull: If as many inspections wait as may.
            ShuttingDown: If the service is stopping.
        """
        queued_s = time.perf_counter()
        waiting = _Waiting(image_bgr)
        with self._lock:
            self._callers += 1
            pending = self._pending[image_bgr.shape]
            pending.append(waiting)
        try:
            # Every caller brings a turn; one whose image went along with another's finds nothing left to do.
            self._device.run(lambda: self._turn(extractor, pending))
        except BaseException:
            with self._lock:
                if waiting in pending:
                    pending.remove(waiting)
            raise
        finally:
            with self._lock:
                self._callers -= 1
        rows = waiting.rows.result()
        watch.add("queue", (waiting.started_s - queued_s) * 1e3)
        watch.add("extract", (time.perf_counter() - waiting.started_s) * 1e3)
        return rows

    def learn(self, extractor: FeatureExtractor, images_bgr: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return the rows of the images of a fit, all of one size; inspections go first."""
        return self._device.run(lambda: extractor.extract_batch(images_bgr), Priority.FIT)

    def _turn(self, extractor: FeatureExtractor, pending: deque[_Waiting]) -> None:
        deadline = time.perf_counter() + self._batch_wait_s
        while len(pending) < min(self._callers, extractor.batch_size) and time.perf_counter() < deadline:
            time.sleep(_POLL_S)
        with self._lock:
            batch = [pending.popleft() for _ in range(min(len(pending), extractor.batch_size))]
        if not batch:
            return
        for waiting in batch:
            waiting.started_s = time.perf_counter()
        images = [waiting.image_bgr for waiting in batch]
        try:
            found: Sequence[Rows] | None = None
            if isinstance(extractor, EmbedsOnDevice):
                found = extractor.extract_on_device(images)
            if found is None:
                found = extractor.extract_batch(images)
        except BaseException as error:
            for waiting in batch:
                waiting.rows.set_exception(error)
            return
        for waiting, embeddings in zip(batch, found, strict=True):
            waiting.rows.set_result(embeddings)
