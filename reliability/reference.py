"""What a single process gives: memories, thresholds and scores, computed in this process from the images alone."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from backend.artifacts.model_key import ModelKey
from backend.errors import InvalidInput
from backend.services.fit_request import Upload
from backend.settings import Settings
from backend.wiring import build_service
from reliability import parts
from reliability.servers import SETTINGS


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What a memory of some parts is.

    Attributes:
        checksum: Of the memory.
        threshold: From the memory's own scores; None below two parts.
        key: Where the reference keeps it.
    """

    checksum: str
    threshold: float | None
    key: ModelKey


class Reference:
    """Fits, calibrates and inspects as the servers must, one call at a time.

    Args:
        folder: For its artefacts.
    """

    def __init__(self, folder: Path) -> None:
        # Built without its environment, which the servers do not get either.
        settings = Settings.model_construct(models_dir=folder, **SETTINGS)
        self._service = build_service(settings)
        self._generations: dict[frozenset[int], Generation] = {}
        self._scores: dict[tuple[frozenset[int], int], float] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """End its thread."""
        self._service.close()

    def generation(self, learned: Iterable[int]) -> Generation:
        """Return the memory that some parts give."""
        wanted = frozenset(learned)
        with self._lock:
            if wanted not in self._generations:
                self._generations[wanted] = self._fitted(wanted)
            return self._generations[wanted]

    def score(self, learned: Iterable[int], image: int = parts.PROBE) -> float:
        """Return the score of a part against the memory of some parts."""
        wanted = frozenset(learned)
        generation = self.generation(wanted)
        with self._lock:
            if (wanted, image) not in self._scores:
                found = self._service.infer(generation.key, parts.png(image), mm_per_px=parts.MM_PER_PX)
                self._scores[wanted, image] = found.score
            return self._scores[wanted, image]

    def _fitted(self, learned: frozenset[int]) -> Generation:
        key = ModelKey(role_id="reference", roi_id=f"memory-{len(self._generations)}")
        uploads = [Upload(name=f"part {image}", data=parts.png(image)) for image in sorted(learned)]
        report = self._service.fit_ok(key, uploads, mm_per_px=parts.MM_PER_PX, mode="replace")
        try:
            threshold = self._service.calibrate(key).threshold
        except InvalidInput:  # a single part has no scores of its own
            threshold = None
        return Generation(checksum=report.bank.checksum, threshold=threshold, key=key)
