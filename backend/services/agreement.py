"""Whether a memory may be read in another precision of the same network than it was made in.

Rounding moves embeddings a little, by how much depends on the weights. So it is measured, once per memory and
precision, on images that the memory has learned: their leave-one-image-out scores again, from rows of the running
precision.
"""

from __future__ import annotations

import threading

from backend.artifacts.model_key import ModelKey
from backend.errors import ExtractorMismatch, InspectionError
from backend.extractors.base import FeatureExtractor
from backend.extractors.extraction import Extraction
from backend.imaging.image_codec import decode_image
from backend.memory_bank.bank import MemoryBank
from backend.scoring.leave_one_out import learned_image_score, learned_mask, leave_one_out_scores
from backend.storage import ArtefactStore

TOLERANCE = 0.01
"""Largest change of a score that is let pass, as a share of the threshold."""

_IMAGES = 3


class PrecisionCheck:
    """Measures and remembers how far the running precision moves a memory's scores."""

    def __init__(self, store: ArtefactStore, extraction: Extraction, *, max_pixels: int) -> None:
        self._store = store
        self._extraction = extraction
        self._max_pixels = max_pixels
        self._changes: dict[tuple[str, str], float | None] = {}
        self._lock = threading.Lock()

    def check(self, key: ModelKey, bank: MemoryBank, extractor: FeatureExtractor) -> None:
        """Let pass a memory of the running precision, or one whose scores that precision moves by less than 1 %.

        Raises:
            ExtractorMismatch: If it moves them further, or no learned image is left to tell.
        """
        if bank.precision == extractor.precision:
            return
        with self._lock:
            case = (bank.checksum, extractor.precision)
            if case not in self._changes:
                self._changes[case] = self._measured(key, bank, extractor)
            change = self._changes[case]
        if change is None or change >= TOLERANCE:
            moved = "cannot be measured" if change is None else f"is {100 * change:.1f} % of the threshold"
            raise ExtractorMismatch(
                f"This ROI was fitted in {bank.precision}, the service computes in {extractor.precision}, and what "
                f"that changes in its scores {moved}. "
                f"Set BDI_PRECISION={bank.precision}, or fit again with mode=replace.",
                details={"fitted_with": bank.precision, "running": extractor.precision, "change": change},
            )

    def _measured(self, key: ModelKey, bank: MemoryBank, extractor: FeatureExtractor) -> float | None:
        """Return the largest change of a score as a share of the threshold, or None where nothing can be measured."""
        rule = bank.options.rule
        known = leave_one_out_scores(bank, rule)
        threshold = known.suggested_threshold()
        if not threshold:
            return None
        images = self._store.images(key)
        mask = learned_mask(bank, bank.placement.image_hw)
        changes: list[float] = []
        for digest, score in sorted(known.by_image.items()):
            if len(changes) == _IMAGES:
                break
            try:
                stored = images.get(digest, "ok")
                if stored is None or stored.image_hw != bank.placement.image_hw:
                    continue
                image = decode_image(images.read(stored), max_pixels=self._max_pixels, name=stored.file_name)
            except InspectionError:
                continue  # a damaged image tells nothing; the others may
            rows = self._extraction.learn(extractor, [image])[0]
            distances = bank.distances_without(rows, bank.part_of(digest) or digest)
            if distances is not None:
                distances[~bank.mask_cells] = float("nan")
                changes.append(abs(learned_image_score(bank, distances, mask, rule) - score) / threshold)
        return max(changes, default=None)
