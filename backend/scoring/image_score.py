"""From a map to the image score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend.calib import ScoreMode, ScoreRule
from backend.scoring.area_score import area_score
from backend.utils import mm2_to_px

_SAMPLE = 4096
"""Pixels that say about where the largest values of a map begin."""


def image_scores(
    image_map: NDArray[np.float32], mask: NDArray[np.bool_], rule: ScoreRule, *, mm_per_px: float
) -> dict[ScoreMode, float]:
    """Return the statistics of a map over a mask; each may be the image score.

    Args:
        image_map: [H, W] float32.
        mask: [H, W] bool with at least one True.
        rule: Says the percentile and the area; the map is blurred already.
        mm_per_px: Millimetres per pixel of the map.

    Returns:
        ``percentile``: the rule's percentile (linear between pixels); ``top_mean``: the mean of the (100 - percentile)
        % highest pixels, at least one; ``max``: the largest; ``area``: see ``area_score``.
    """
    return {
        **_order_statistics(image_map, mask, rule.percentile),
        "area": area_score(image_map, mask, mm2_to_px(rule.area_mm2_thr, mm_per_px)),
    }


def image_score(image_map: NDArray[np.float32], mask: NDArray[np.bool_], rule: ScoreRule, *, mm_per_px: float) -> float:
    """Return the one of ``image_scores`` that the rule names; the others are not computed where that saves time."""
    if rule.mode == "area":
        return area_score(image_map, mask, mm2_to_px(rule.area_mm2_thr, mm_per_px))
    return _order_statistics(image_map, mask, rule.percentile)[rule.mode]


def _order_statistics(
    image_map: NDArray[np.float32], mask: NDArray[np.bool_], percentile: float
) -> dict[ScoreMode, float]:
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
    # A sample says about where they begin; sorting what lies above is a tenth of the work of partitioning them all.
    sample = values[:: max(1, len(values) // _SAMPLE)]
    rank = int(len(sample) * (1 - 1.5 * count / len(values))) - _SAMPLE // 64
    if rank > 0:
        above = values[values >= np.partition(sample, rank)[rank]]
        if len(above) >= count:
            values = above
    return np.sort(values)[len(values) - count :]
