"""Where a map is hot: connected areas, their size on the part, their outlines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.utils import mm2_to_px, px_to_mm2


@dataclass(frozen=True, kw_only=True)
class NearestGood:
    """A cell of a good image.

    Attributes:
        image_digest: Of its decoded pixels.
        name: Its file name in the data set; None if it is no longer stored.
        bbox_xywh_px: The cell, px of that image.
    """

    image_digest: str
    name: str | None
    bbox_xywh_px: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Region:
    """One connected area where the map reaches a level.

    Attributes:
        bbox_xywh_px: Smallest upright box, px: left, top, width, height.
        area_mm2: ``area_px`` on the part, mm².
        peak_score: Largest value of the map in it.
        peak_xy: Where that is, px.
        contour_xy: Outer contour, integer pixel coordinates [[x, y], …].
        nearest: What the good parts have that is most like the peak; None where nobody has looked, or there is nothing.
    """

    bbox_xywh_px: tuple[int, int, int, int]
    area_px: int
    area_mm2: float
    peak_score: float
    peak_xy: tuple[int, int]
    contour_xy: tuple[tuple[int, int], ...]
    nearest: NearestGood | None = None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Region:
        """Return the region of a JSON object that ``dataclasses.asdict`` made."""
        x, y, w, h = fields["bbox_xywh_px"]
        peak_x, peak_y = fields["peak_xy"]
        contour = tuple((px, py) for px, py in fields["contour_xy"])
        nearest = fields["nearest"]
        if nearest is not None:
            left, top, width, height = nearest["bbox_xywh_px"]
            nearest = NearestGood(**{**nearest, "bbox_xywh_px": (left, top, width, height)})
        named = {"bbox_xywh_px": (x, y, w, h), "peak_xy": (peak_x, peak_y), "contour_xy": contour, "nearest": nearest}
        return cls(**{**fields, **named})


def find_regions(
    image_map: NDArray[np.float32],
    mask: NDArray[np.bool_],
    *,
    threshold: float,
    area_mm2_thr: float,
    mm_per_px: float,
    peak_kept: float = math.inf,
) -> tuple[Region, ...]:
    """Return the connected areas (8 neighbours) where map ≥ threshold, largest first.

    An area is the number of its pixels: the area of the contour's polygon would be 0 for a scratch one pixel wide.

    Args:
        image_map: [H, W] float32.
        mask: [H, W] bool; nothing outside it counts.
        threshold: On the map's scale.
        area_mm2_thr: Smaller areas are dropped, mm².
        mm_per_px: Millimetres per pixel.
        peak_kept: An area in which the map reaches this is kept however small it is.
    """
    hot = (image_map >= threshold) & mask
    rows, columns = np.flatnonzero(hot.any(axis=1)), np.flatnonzero(hot.any(axis=0))
    if len(rows) == 0:
        return ()
    # Defects are small: what follows walks through the box that holds them all, not through the image.
    top, left = int(rows[0]), int(columns[0])
    box = (slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1))
    hot = np.ascontiguousarray(hot[box])
    min_area_px = mm2_to_px(area_mm2_thr, mm_per_px)
    # Not OpenCV's statistics of the components, which take five times as long as finding these.
    n_labels, found = cv2.connectedComponents(hot.view(np.uint8), connectivity=8)
    labels = found.astype(np.int32, copy=False)
    hot_labels = labels[hot]
    areas_px = np.bincount(hot_labels, minlength=n_labels).tolist()
    values = image_map[box][hot]
    order = np.argsort(values, kind="stable")
    peak_of = np.zeros(n_labels, dtype=np.int64)
    peak_of[hot_labels[order]] = order  # of equal places the last value stays: the largest
    peaks, hot_places = values[peak_of], np.flatnonzero(hot)
    # Two levels, not only the outermost: an area may lie in the hole of another.
    contours, levels = cv2.findContours(hot.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    regions, offset = [], np.array([left, top])
    for outline, (_, _, _, parent) in zip(contours, levels[0], strict=True):
        label = int(labels[outline[0, 0, 1], outline[0, 0, 0]])
        area_px = areas_px[label]
        is_small = area_px < min_area_px and float(peaks[label]) < peak_kept
        if parent >= 0 or is_small:  # the edge of a hole belongs to what surrounds it
            continue
        x, y, w, h = cv2.boundingRect(outline)
        peak_y, peak_x = divmod(int(hot_places[peak_of[label]]), hot.shape[1])
        regions.append(
            Region(
                bbox_xywh_px=(x + left, y + top, w, h),
                area_px=area_px,
                area_mm2=px_to_mm2(area_px, mm_per_px),
                peak_score=float(peaks[label]),
                peak_xy=(peak_x + left, peak_y + top),
                contour_xy=tuple((px, py) for px, py in (outline.reshape(-1, 2).astype(int) + offset).tolist()),
            )
        )
    return tuple(sorted(regions, key=lambda region: (-region.area_px, region.bbox_xywh_px)))
