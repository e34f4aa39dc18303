"""From distances to what a person is told: anomaly map, image score, regions, heat map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.artifacts.model_key import ModelKey
from backend.calib import ScoreMode
from backend.imaging.placement import Placement
from backend.roi_mask import parse_shape, shape_from_fields
from backend.utils import mm2_to_px, px_to_mm2

if TYPE_CHECKING:
    from backend.services.inspection import InspectionService

Decision = Literal["ok", "ng"]

HEATMAP_AT_THRESHOLD = 128
_MIN_WEIGHT = 1e-6

_SAMPLE = 4096
"""Pixels that tell about where the largest values of a map begin."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """One connected area where the map reaches the threshold.

    Attributes:
        bbox_xywh_px: Smallest upright box, px: left, top, width, height.
        area_px: Number of pixels.
        area_mm2: The same on the part, mm².
        peak_score: Largest value of the map in it.
        contour_xy: Outer contour, integer pixel coordinates [[x, y], …].
    """

    bbox_xywh_px: tuple[int, int, int, int]
    area_px: int
    area_mm2: float
    peak_score: float
    contour_xy: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found on one image.

    Attributes:
        score: The image score; larger is more anomalous; in [0, 2].
        threshold: Scores above it are ``ng``; None when the ROI is not calibrated.
        decision: ``ok``, ``ng``, or None when the ROI is not calibrated.
        map: [H, W] float32 anomaly map in pixels of the uploaded image; 0 outside the mask.
        mask: [H, W] bool, the pixels that count.
        regions: Areas at or above the threshold, largest first; empty when not calibrated.
        grid_hw: Patch grid.
        heatmap_full_scale: The map value that the heat map shows as 255.
        params: Facts about how this came about, JSON types.
        timings_ms: Milliseconds by stage.
    """

    score: float
    threshold: float | None
    decision: Decision | None
    map: NDArray[np.float32] = field(compare=False)
    mask: NDArray[np.bool_] = field(compare=False)
    regions: tuple[Region, ...]
    grid_hw: tuple[int, int]
    heatmap_full_scale: float
    params: Mapping[str, Any]
    timings_ms: Mapping[str, float] = field(compare=False)

    @property
    def heatmap(self) -> NDArray[np.uint8]:
        """[H, W] uint8: 0 = distance 0 or outside the mask, 128 = the threshold, 255 = twice the threshold or more."""
        return heatmap(self.map, self.heatmap_full_scale)

    def scores_under(self, percentile: float) -> dict[ScoreMode, float]:
        """Return the statistics of the map at another percentile; see ``image_scores``."""
        return image_scores(self.map, self.mask, percentile=percentile)


def anomaly_map(
    distances: NDArray[np.float32], placement: Placement, mask: NDArray[np.bool_], *, blur_sigma: float = 1.0
) -> NDArray[np.float32]:
    """Return the anomaly map of an image, in its own pixels.

    Cells that the mask does not touch, or whose distance is NaN, take no part, neither in the way from grid to image
    nor in the blur: both are weighted means over what counts, so nothing leaks across the mask's edge.

    Args:
        distances: [Ht*Wt] float32, row-major; NaN where nothing is known.
        placement: How the image was brought to the grid.
        mask: [H, W] bool.
        blur_sigma: Standard deviation of the Gaussian, px of the image; 0 for none.

    Returns:
        [H, W] float32, 0 outside the mask.
    """
    grid = distances.reshape(placement.grid_hw)
    known = np.isfinite(grid)
    whole = bool(mask.all())
    if whole and known.all():
        return _blurred(placement.to_image(grid), blur_sigma)
    weights = (known & (placement.cell_coverage(mask) > 0)).astype(np.float32)
    if not weights.any():
        weights = known.astype(np.float32)
    numerator = placement.to_image(np.where(weights > 0, grid, 0).astype(np.float32))
    denominator = placement.to_image(weights)
    # Pixels that no known cell reaches take no part either.
    inside = mask & (denominator > _MIN_WEIGHT)
    image_map = np.where(inside, numerator / np.maximum(denominator, _MIN_WEIGHT), 0).astype(np.float32)
    if blur_sigma > 0:
        reach = _blurred(inside.astype(np.float32), blur_sigma)
        image_map = (_blurred(image_map, blur_sigma) / np.maximum(reach, _MIN_WEIGHT)).astype(np.float32)
    return np.where(inside, image_map, 0).astype(np.float32)


def _blurred(image_map: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    if sigma <= 0:
        return image_map
    # The mirror border is a weighted mean of pixels that exist, so the image's own edge needs no further care.
    return cv2.GaussianBlur(image_map, (0, 0), sigma, borderType=cv2.BORDER_REFLECT).astype(np.float32, copy=False)


def image_scores(
    image_map: NDArray[np.float32], mask: NDArray[np.bool_], *, percentile: float = 99.0
) -> dict[ScoreMode, float]:
    """Return the three statistics of a map over a mask; each may be the image score.

    Args:
        image_map: [H, W] float32.
        mask: [H, W] bool with at least one True.
        percentile: In (0, 100].

    Returns:
        ``percentile``: that percentile (linear between pixels); ``top_mean``: the mean of the (100 - percentile) %
        highest pixels, at least one; ``max``: the largest.
    """
    values = image_map.ravel() if mask.all() else image_map[mask]
    n = len(values)
    position = percentile / 100 * (n - 1)
    below = int(position)
    n_top = max(1, round(n * (1 - percentile / 100)))
    top = _largest(values, max(n - below, n_top))
    at_below, at_next = (float(top[rank - (n - len(top))]) for rank in (below, min(below + 1, n - 1)))
    highest = top[len(top) - n_top :]
    return {
        "percentile": at_below + (at_next - at_below) * (position - below),
        "top_mean": float(highest.mean(dtype=np.float64)),
        "max": float(highest[-1]),
    }


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return the ``count`` largest of ``values`` [N], ascending."""
    # A sample tells about where they begin; sorting what lies above is a tenth of the work of partitioning them all.
    sample = values[:: max(1, len(values) // _SAMPLE)]
    rank = int(len(sample) * (1 - 1.5 * count / len(values))) - _SAMPLE // 64
    if rank > 0:
        above = values[values >= np.partition(sample, rank)[rank]]
        if len(above) >= count:
            values = above
    return np.sort(values)[len(values) - count :]


def find_regions(
    image_map: NDArray[np.float32],
    mask: NDArray[np.bool_],
    *,
    threshold: float,
    area_mm2_thr: float,
    mm_per_px: float,
) -> tuple[Region, ...]:
    """Return the connected areas (8 neighbours) where map ≥ threshold, largest first.

    An area is the number of its pixels: the area of the contour's polygon would be 0 for a scratch one pixel wide.

    Args:
        image_map: [H, W] float32.
        mask: [H, W] bool; nothing outside it counts.
        threshold: On the map's scale.
        area_mm2_thr: Smaller areas are dropped, mm².
        mm_per_px: Millimetres per pixel.
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
    peaks = np.zeros(n_labels, dtype=np.float32)
    np.maximum.at(peaks, hot_labels, image_map[box][hot])
    # Two levels, not only the outermost: an area may lie in the hole of another.
    contours, levels = cv2.findContours(hot.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    regions, offset = [], np.array([left, top])
    for outline, (_, _, _, parent) in zip(contours, levels[0], strict=True):
        label = int(labels[outline[0, 0, 1], outline[0, 0, 0]])
        area_px = areas_px[label]
        if parent >= 0 or area_px < min_area_px:  # the edge of a hole belongs to what surrounds it
            continue
        x, y, w, h = cv2.boundingRect(outline)
        regions.append(
            Region(
                bbox_xywh_px=(x + left, y + top, w, h),
                area_px=area_px,
                area_mm2=px_to_mm2(area_px, mm_per_px),
                peak_score=float(peaks[label]),
                contour_xy=tuple((px, py) for px, py in (outline.reshape(-1, 2).astype(int) + offset).tolist()),
            )
        )
    return tuple(sorted(regions, key=lambda region: (-region.area_px, region.bbox_xywh_px)))


def heatmap(image_map: NDArray[np.float32], full_scale: float) -> NDArray[np.uint8]:
    """Return a map as 8 bits on a fixed scale: 0 is 0, half of ``full_scale`` is 128, ``full_scale`` or more is 255.

    Never stretched to the image's own range: that would make every good part look hot.
    """
    if full_scale <= 0:
        return np.zeros(image_map.shape, np.uint8)
    return np.asarray(cv2.convertScaleAbs(image_map, alpha=2 * HEATMAP_AT_THRESHOLD / full_scale), dtype=np.uint8)


def infer_one(
    image: NDArray[np.uint8] | bytes,
    role_id: str,
    roi_id: str,
    mm_per_px: float,
    shape: str | Mapping[str, Any] | None = None,
    k: int = 1,
    p_score: float = 99,
    blur_sigma: float = 1.0,
    area_mm2_thr: float = 1.0,
    *,
    service: InspectionService | None = None,
) -> Inspection:
    """Return the inspection of one image by the stored artefacts of a ROI; for scripts, without a server.

    Args:
        image: [H, W, 3] uint8 BGR pixels, or the bytes of an image file.
        role_id: Role.
        roi_id: ROI.
        mm_per_px: Millimetres per pixel of the image.
        shape: The shape, as JSON text or object; None for the whole image.
        k: Neighbours that a distance is the mean of.
        p_score: Percentile of the map that is the score, for a ROI whose calibration does not name another.
        blur_sigma: Standard deviation of the blur, px.
        area_mm2_thr: Smaller regions are dropped, mm², for a ROI whose calibration does not name another.
        service: Where the artefacts are; by default a service of the environment's settings.

    Raises:
        InspectionError: As ``InspectionService.infer``.
    """
    # The one arrow that points outward: the order fixed this function's place and its arguments, and it needs the whole
    # service. Imported here so that the arithmetic of this module stays free of it.
    from backend.wiring import script_service

    return (service if service is not None else script_service()).infer(
        ModelKey(role_id=role_id, roi_id=roi_id),
        image,
        mm_per_px=mm_per_px,
        shape=shape_from_fields(shape) if isinstance(shape, Mapping) else parse_shape(shape),
        k=k,
        score_percentile=p_score,
        blur_sigma=blur_sigma,
        area_mm2_thr=area_mm2_thr,
    )
