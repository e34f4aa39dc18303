"""What the service answered about a part, and how many answers were right."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.demo.demo_parts import Part
from backend.imaging.image_codec import decode_image


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspected:
    """A part and what the service answered about it.

    Attributes:
        part: The image and the truth.
        heatmap: [H, W] uint8; 0 outside the inspected area, 128 = the threshold, 255 = twice the threshold or more.
        score: Image score; larger is more anomalous.
        threshold: Scores above it are ``ng``.
        decision: The service's.
        regions: As answered: ``contour`` in image pixels [[x, y], …] and ``area_mm2``, of each.
        elapsed_ms: How long the service took.
        note: A word on the role of this image; an image with a note is shown but not counted.
    """

    part: Part
    heatmap: NDArray[np.uint8]
    score: float
    threshold: float
    decision: Literal["ok", "ng"]
    regions: Sequence[Mapping[str, Any]]
    elapsed_ms: float
    note: str = ""

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any], part: Part, note: str = "") -> Inspected:
        """Return a part with the answer of ``POST /infer`` to it, for a ROI that is calibrated."""
        height, width = part.image_bgr.shape[:2]
        heatmap_png = base64.b64decode(answer["heatmap_png_base64"])
        return cls(
            part=part,
            heatmap=decode_image(heatmap_png, max_pixels=height * width, name="heat map")[:, :, 0],
            score=float(answer["score"]),
            threshold=float(answer["threshold"]),
            decision=answer["decision"],
            regions=answer["regions"],
            elapsed_ms=float(answer["timings_ms"]["total"]),
            note=note,
        )

    @property
    def outcome(self) -> Literal["passed", "found", "false alarm", "missed"]:
        """What the decision is worth, given the truth."""
        if self.decision == "ng":
            return "found" if self.part.is_defective else "false alarm"
        return "missed" if self.part.is_defective else "passed"

    @property
    def is_right(self) -> bool:
        """True when the decision agrees with the truth."""
        return self.outcome in ("passed", "found")

    @property
    def region_on_defect(self) -> bool | None:
        """True when a region shares a pixel with the defect; None where the place of the defect is not known."""
        if self.part.defect_mask is None:
            return None
        filled = np.zeros(self.part.defect_mask.shape, np.uint8)
        for region in self.regions:  # one by one: filled together, one inside another would count as a hole
            cv2.fillPoly(filled, [np.asarray(region["contour"], np.int32).reshape(-1, 1, 2)], 1)
        return bool((self.part.defect_mask & (filled > 0)).any())

    def judged_by(self, threshold: float) -> Inspected:
        """Return the same with the decision that another threshold would have given."""
        return replace(self, threshold=threshold, decision="ng" if self.score > threshold else "ok")


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many decisions were right; images with a note stand apart (``n_aside``), so that none goes unmentioned.

    Of the ``n_found`` defects the place is known of ``n_place_known``; a region lies on ``n_on_defect`` of these.
    """

    n_good: int
    n_passed: int
    n_defective: int
    n_found: int
    n_place_known: int
    n_on_defect: int
    n_aside: int
    n_aside_right: int
    median_ms: float


def tally(items: Sequence[Inspected]) -> Tally:
    """Return how many of one or more images were judged right, and how long the service took for one (median)."""
    outcomes = Counter(item.outcome for item in items if not item.note)
    on_defect = [item.region_on_defect for item in items if not item.note and item.outcome == "found"]
    aside = [item.is_right for item in items if item.note]
    return Tally(
        n_good=outcomes["passed"] + outcomes["false alarm"],
        n_passed=outcomes["passed"],
        n_defective=outcomes["found"] + outcomes["missed"],
        n_found=outcomes["found"],
        n_place_known=len(on_defect) - on_defect.count(None),
        n_on_defect=on_defect.count(True),
        n_aside=len(aside),
        n_aside_right=sum(aside),
        median_ms=median(item.elapsed_ms for item in items),
    )
