"""What the service answered about one image, beside what is known about it, and how many answers were right."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Outcome = Literal["passed", "found", "false alarm", "missed", "not judged"]


@dataclass(frozen=True, kw_only=True)
class FoundRegion:
    """One region of an answer: its outer contour in image pixels [[x, y], …] and its area on the part, mm²."""

    contour_xy: tuple[tuple[int, int], ...]
    area_mm2: float


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """One image, what is known about it, and what the service answered.

    Attributes:
        name: What the page calls the image.
        is_defective: The truth.
        image_bgr: [H, W, 3] uint8.
        heatmap: [H, W] uint8; 0 outside the inspected area, 128 = the threshold, 255 = twice the threshold or more.
        inspected_mask: [H, W] bool, the area that counts; None for the whole image.
        defect_mask: [H, W] bool, where the defect is; None when nobody knows.
        score: Image score; larger is more anomalous.
        threshold: Scores above it are ``ng``; None when not calibrated.
        decision: ``ok``, ``ng``, or None when not calibrated.
        regions: Where the map reaches the threshold.
        elapsed_ms: How long the service took.
        note: A word on the part this image played; an image with a note is shown but not counted.
    """

    name: str
    is_defective: bool
    image_bgr: NDArray[np.uint8] = field(compare=False, repr=False)
    heatmap: NDArray[np.uint8] = field(compare=False, repr=False)
    inspected_mask: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)
    defect_mask: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)
    score: float
    threshold: float | None
    decision: Literal["ok", "ng"] | None
    regions: tuple[FoundRegion, ...]
    elapsed_ms: float
    note: str = ""

    @property
    def outcome(self) -> Outcome:
        """What the decision is worth, given the truth."""
        if self.decision is None:
            return "not judged"
        if self.decision == "ng":
            return "found" if self.is_defective else "false alarm"
        return "missed" if self.is_defective else "passed"

    def judged_by(self, threshold: float) -> Inspected:
        """Return the same with the decision that another threshold would have given."""
        return replace(self, threshold=threshold, decision="ng" if self.score > threshold else "ok")

    @classmethod
    def from_answer(
        cls,
        answer: Mapping[str, Any],
        *,
        name: str,
        is_defective: bool,
        image_bgr: NDArray[np.uint8],
        inspected_mask: NDArray[np.bool_] | None = None,
        defect_mask: NDArray[np.bool_] | None = None,
        note: str = "",
    ) -> Inspected:
        """Return an image with the answer of ``POST /infer`` to it.

        Raises:
            ValueError: If the answer's heat map is missing or has another size than the image.
        """
        heatmap = decode_heatmap(answer.get("heatmap_png_base64"))
        if heatmap.shape != image_bgr.shape[:2]:
            raise ValueError(f"the heat map of {name} is {heatmap.shape}, the image {image_bgr.shape[:2]}")
        regions = tuple(
            FoundRegion(
                contour_xy=tuple((int(x), int(y)) for x, y in region["contour"]), area_mm2=float(region["area_mm2"])
            )
            for region in answer["regions"]
        )
        return cls(
            name=name,
            is_defective=is_defective,
            image_bgr=image_bgr,
            heatmap=heatmap,
            inspected_mask=inspected_mask,
            defect_mask=defect_mask,
            score=float(answer["score"]),
            threshold=answer["threshold"],
            decision=answer["decision"],
            regions=regions,
            elapsed_ms=float(answer["timings_ms"]["total"]),
            note=note,
        )


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many decisions were right; images with a note stand apart (``n_aside``), so that none goes unmentioned."""

    n_good: int
    n_passed: int
    n_defective: int
    n_found: int
    n_aside: int
    n_aside_right: int
    median_ms: float

    @property
    def all_right(self) -> bool:
        """True when every counted image was judged as it should be."""
        return self.n_passed == self.n_good and self.n_found == self.n_defective


def tally(items: Sequence[Inspected]) -> Tally:
    """Return how many images were judged right, those with a note apart, and how long the service took for one."""
    counted = [item for item in items if not item.note]
    aside = [item.outcome for item in items if item.note]
    outcomes = [item.outcome for item in counted]
    return Tally(
        n_good=sum(not item.is_defective for item in counted),
        n_passed=outcomes.count("passed"),
        n_defective=sum(item.is_defective for item in counted),
        n_found=outcomes.count("found"),
        n_aside=len(aside),
        n_aside_right=sum(outcome in ("passed", "found") for outcome in aside),
        median_ms=median(item.elapsed_ms for item in items) if items else 0.0,
    )


def decode_heatmap(png_base64: str | None) -> NDArray[np.uint8]:
    """Return the heat map of an answer, [H, W] uint8.

    Raises:
        ValueError: If there is none, or it is no image.
    """
    if not png_base64:
        raise ValueError("the answer has no heat map")
    data = np.frombuffer(base64.b64decode(png_base64, validate=True), np.uint8)
    heatmap = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    if heatmap is None:
        raise ValueError("the answer's heat map is no image")
    return heatmap.astype(np.uint8, copy=False)
