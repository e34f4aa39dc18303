"""Whether what is decided is what is drawn: the regions of a score mode, and a sentence where they say otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from backend.calib import ScoreRule
from backend.scoring.regions import Region, find_regions
from backend.utils import mm2_to_px, px_to_mm2


def regions_of(
    image_map: NDArray[np.float32],
    mask: NDArray[np.bool_],
    rule: ScoreRule,
    *,
    score: float,
    threshold: float,
    mm_per_px: float,
) -> tuple[Region, ...]:
    """Return the regions of an inspection, largest first.

    Regions lie above the threshold, as the score of an ``ng`` does: at the threshold itself a part is ``ok``. In the
    modes ``percentile`` and ``top_mean``, as ordered, they are all that is large enough. In the modes ``area`` and
    ``max`` an image has one if and only if it is ``ng``: in ``max`` the area that holds the maximum is a region however
    small it is, and in ``area`` the largest one is where the mask has no room for a larger.

    Args:
        image_map: [H, W] float32.
        mask: [H, W] bool with at least one True; nothing outside it counts.
        rule: How the map became the score.
        score: The image score under that rule.
        threshold: What it is compared with.
        mm_per_px: Millimetres per pixel of the map.
    """

    def found(level: float, area_mm2_thr: float, peak_kept: float = math.inf) -> tuple[Region, ...]:
        return find_regions(
            image_map,
            mask,
            threshold=level,
            area_mm2_thr=area_mm2_thr,
            mm_per_px=mm_per_px,
            peak_kept=peak_kept,
        )

    level = _next_above(threshold)
    if rule.mode not in ("area", "max"):
        return found(level, rule.area_mm2_thr)
    if score <= threshold:
        return ()
    if rule.mode == "max":
        return found(level, rule.area_mm2_thr, peak_kept=score)
    regions = found(level, rule.area_mm2_thr)
    if not regions:
        regions = found(level, 0)
        regions = tuple(region for region in regions if region.area_px == regions[0].area_px)
    return regions


def contradictions(
    mask: NDArray[np.bool_],
    rule: ScoreRule,
    regions: Sequence[Region],
    *,
    score: float,
    threshold: float,
    mm_per_px: float,
) -> Iterable[str]:
    """Yield what a score, its decision and its regions say differently, and what would resolve it.

    Arguments are those of ``regions_of``, and its regions.
    """
    inspected_px = int(np.count_nonzero(mask))
    if rule.mode == "area" and inspected_px < mm2_to_px(rule.area_mm2_thr, mm_per_px):
        yield (
            f"The inspected part of the image has {px_to_mm2(inspected_px, mm_per_px):.3g} mm², less than area_mm2_thr "
            f"({rule.area_mm2_thr:g} mm²), so the score is the lowest level in it. Send a larger shape, or calibrate "
            "with a smaller area_mm2_thr."
        )
    if score > threshold and not regions:
        yield (
            f"The part is ng, but no connected area of {rule.area_mm2_thr:g} mm² lies above the threshold, so there is "
            "no region. To decide by what is drawn, calibrate with score_mode=area; to see what the score "
            f"({rule.mode}) saw, with a smaller area_mm2_thr."
        )
    if score <= threshold and regions:
        n, largest = len(regions), regions[0].area_mm2
        yield (
            f"The part is ok, but {'a region lies' if n == 1 else f'{n} regions lie'} above the threshold: the score "
            f"({rule.mode}) does not see so small an area. To decide by what is drawn, calibrate with score_mode=area; "
            f"if such areas are harmless, with area_mm2_thr above {largest:.3g}."
        )


def _next_above(threshold: float) -> float:
    """Return the smallest float32 that is larger: numpy compares a map in float32, and would round the threshold."""
    level = np.float32(threshold)
    return float(level if float(level) > threshold else np.nextafter(level, np.float32(np.inf)))
