"""The threshold of an inspection under a shape: from the scores that the stored images have under that very shape.

A ROI may be learned and calibrated as a whole, and inspected with a ring around the hub. The largest score of a good
part in the whole image says nothing of the ring: what varies may lie outside it. The distances that made the threshold
are still there, though, so the scores within the ring are measured from them, and the same rule makes the threshold.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.stored_image import Label, StoredImage
from backend.calib import OWN_SHAPES, Calibration, set_threshold
from backend.memory_bank.bank import MemoryBank
from backend.roi_mask import Shape, scale_shape, shape_from_fields
from backend.scoring.image_score import image_score
from backend.scoring.inspection import mask_within
from backend.scoring.leave_one_out import learned_mask, leave_one_out_scores
from backend.services.stored_scores import ImageDistances, StoredScores, worst_by_part

_KEPT = 32
"""Shapes whose thresholds are kept."""


@dataclass(frozen=True, kw_only=True)
class ShapeThreshold:
    """A calibration under a shape.

    Attributes:
        calibration: With the threshold that holds under the shape.
        warnings: Why it is not, or not wholly, made of scores under the shape.
    """

    calibration: Calibration
    warnings: tuple[str, ...] = ()


class ShapeThresholds:
    """The thresholds of one memory and calibration, by shape; safe to call from many threads. The newest are kept."""

    def __init__(self, bank: MemoryBank, calibration: Calibration) -> None:
        self._bank, self._calibration = bank, calibration
        self._known: OrderedDict[Shape | None, ShapeThreshold] = OrderedDict()
        self._stored: dict[Label, list[ImageDistances]] = {}
        self._lock = threading.Lock()

    def within(
        self,
        shape: Shape | None,
        mask: NDArray[np.bool_],
        stored: Callable[[], StoredScores],
    ) -> ShapeThreshold:
        """Return what judges an image of which a mask is inspected.

        Args:
            shape: The shape of the request, in pixels of the image.
            mask: [H, W] bool, what is inspected: the part of it that was learned.
            stored: Makes what scores the stored images; called where the calibration rests on such, at most once.

        Raises:
            Unavailable: If embeddings of stored images are missing and cannot be made now.
        """
        image_hw = (mask.shape[0], mask.shape[1])
        if self._is_own_area(shape, mask, image_hw):
            return ShapeThreshold(calibration=self._calibration)
        if warning := _of_fixed(self._calibration):
            return ShapeThreshold(calibration=self._calibration, warnings=(warning,))
        if shape is not None:
            shape = scale_shape(shape, image_hw, self._bank.placement.image_hw)
        with self._lock:
            if shape in self._known:
                self._known.move_to_end(shape)
                return self._known[shape]
        # Not under the lock: inspections under other shapes need not wait. Two at once find the same.
        found = self._measured(shape, stored)
        with self._lock:
            self._known[shape] = found
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found

    def _is_own_area(self, shape: Shape | None, mask: NDArray[np.bool_], image_hw: tuple[int, int]) -> bool:
        """Return whether a mask is the area that the calibration's scores are of."""
        own = self._calibration.shape
        covers_all = bool(np.array_equal(mask, learned_mask(self._bank, image_hw)))
        if own is None:
            return covers_all
        if own == OWN_SHAPES:
            return shape is not None and not covers_all
        scaled = scale_shape(shape_from_fields(own), self._bank.placement.image_hw, image_hw)
        return bool(np.array_equal(mask, mask_within(scaled, self._bank, image_hw)))

    def _measured(self, shape: Shape | None, stored: Callable[[], StoredScores]) -> ShapeThreshold:
        bank, calibration = self._bank, self._calibration
        hw = bank.placement.image_hw
        if calibration.ok_images or calibration.ng_images:
            self._read_stored(stored)
        rule = calibration.rule
        if calibration.ok_scores_from == "dataset":
            scored = ((each.image, each.score(bank, rule, shape, hw)) for each in self._stored["ok"])
            ok = worst_by_part(scored, bank.distinct_parts)
        else:
            ok = leave_one_out_scores(bank, rule, mask_within(shape, bank, hw)).by_part
        if len(ok) < 2:
            return ShapeThreshold(calibration=calibration, warnings=(_NOT_MEASURABLE,))
        made = partial(set_threshold, ok, percentile=calibration.ok_percentile, margin=calibration.margin)
        floor = made()
        ng = worst_by_part(self._bad_within(shape, floor.threshold), {}) if calibration.ng_images else ()
        found = made(ng) if ng else floor
        warnings = []
        n_used = sum(len(images) for images in self._stored.values())
        if n_gone := len(calibration.ok_images) + len(calibration.ng_images) - n_used:
            warnings.append(
                f"{n_gone} stored images that the threshold rests on are gone or cannot be scored, so that it may be "
                "another one under this shape. Calibrate again."
            )
        judged_by = replace(
            calibration, **{**vars(found), "ng_scores_from": calibration.ng_scores_from if ng else None}
        )
        return ShapeThreshold(calibration=judged_by, warnings=tuple(warnings))

    def _bad_within(self, shape: Shape | None, floor: float) -> Iterable[tuple[StoredImage, float]]:
        """Yield the bad images that say something of a shape, and their scores under it.

        One whose map has its peak outside the shape and that scores like a good part within has its defect elsewhere.
        """
        hw = self._bank.placement.image_hw
        for each in self._stored["ng"]:
            rule = self._calibration.rule
            image_map, mask = each.map_within(self._bank, rule, shape, hw)
            score = image_score(image_map, mask, rule, mm_per_px=each.mm_per_px)
            if score <= floor:
                everywhere, learned = each.map_within(self._bank, rule, None, hw)
                peak = np.argmax(np.where(learned, everywhere, -1))
                if not mask.ravel()[peak]:
                    continue
            yield each.image, score

    def _read_stored(self, stored: Callable[[], StoredScores]) -> None:
        if self._stored:
            return
        scorer = stored()
        read: dict[Label, list[ImageDistances]] = {}
        wanted: dict[Label, Sequence[str]] = {"ok": self._calibration.ok_images, "ng": self._calibration.ng_images}
        for label, digests in wanted.items():
            images = [image for digest in digests if (image := scorer.images.get(digest, label)) is not None]
            read[label] = scorer.all_of(images, self._bank)[0]
        self._stored = read


_NOT_MEASURABLE = (
    "Too few stored images can be scored under this shape, so the threshold is the one of the area that the ROI was "
    "calibrated with."
)


def _of_fixed(calibration: Calibration) -> str | None:
    """Return why a threshold is the same under every shape, or None where the stored images say what it is."""
    if calibration.method == "manual":
        reason = "was set by hand"
    elif calibration.rests_on_sent_scores:
        reason = "rests on scores that were sent"
    elif calibration.ok_scores_from == "dataset" and not calibration.ok_images:
        reason = "rests on images of the data set that are not known"
    else:
        return None
    return (
        f"The threshold {reason}, and is the same under every shape, although scores under another shape are lower or "
        "higher. It fits this one only if it was made for it; calibrate without scores and without threshold to have "
        "it taken from the good parts' scores under each shape."
    )
