"""The picture that shows an operator where: the image in grey, the map over it, regions outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.scoring.anomaly_map import HEATMAP_AT_THRESHOLD
from backend.scoring.regions import Region

_FADE_IN: Final = 0.5
"""Below this share of the threshold a good part's own unrest is not drawn."""

_OUTSIDE: Final = 0.4
_LINE: Final = (255, 255, 0)
_EDGE: Final = (0, 0, 0)
_PX_PER_LINE: Final = 400.0
"""Edge of the image for each px of a line's width, so that lines are as thick on a large screen as on a small one."""
_SMALL_IN_LINES: Final = 12
"""A region of fewer line widths is hard to find: it gets a frame around it."""


def overlay(
    image_bgr: NDArray[np.uint8],
    heatmap: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    regions: Sequence[Region],
) -> NDArray[np.uint8]:
    """Return the picture, [H, W, 3] uint8 BGR.

    Args:
        image_bgr: [H, W, 3] uint8.
        heatmap: [H, W] uint8, 128 = the threshold.
        mask: [H, W] bool, what was inspected; the rest is darkened.
        regions: What is outlined.
    """
    painted = paint_heatmap(image_bgr, heatmap, None if mask.all() else mask)
    width = max(1, round(max(painted.shape[:2]) / _PX_PER_LINE))
    outlines = [np.asarray(region.contour_xy, dtype=np.int32) for region in regions]
    frames = [_frame(region, width) for region in regions if max(region.bbox_xywh_px[2:]) < _SMALL_IN_LINES * width]
    # Light on dark: a line of one colour would vanish on parts of the same.
    for colour, thickness in ((_EDGE, width + 2 * max(1, width // 2)), (_LINE, width)):
        cv2.polylines(painted, outlines, isClosed=True, color=colour, thickness=thickness, lineType=cv2.LINE_AA)
        for first, second in frames:
            cv2.rectangle(painted, first, second, colour, thickness)
    return painted


def paint_heatmap(
    image_bgr: NDArray[np.uint8], heatmap: NDArray[np.uint8], inspected_mask: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Return the grey image with the heat map over it: below the threshold it fades into the grey, above it glows.

    Args:
        image_bgr: [H, W, 3] uint8, as is what is returned.
        heatmap: [H, W] uint8, 128 = the threshold.
        inspected_mask: [H, W] bool; what lies outside is darkened.
    """
    grey = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY).astype(np.float32)
    if inspected_mask is not None:
        grey[~inspected_mask] *= _OUTSIDE
    heat = np.arange(256)
    share = heat / HEATMAP_AT_THRESHOLD
    # Rises late, to 0.45 at the threshold, where it steps to 0.6: a good part stays grey, and a region has a border.
    below = 0.45 * np.clip((share - _FADE_IN) / (1.0 - _FADE_IN), 0.0, 1.0) ** 4
    opacity = np.where(heat >= HEATMAP_AT_THRESHOLD, 0.60 + 0.25 * np.clip(share - 1.0, 0.0, 1.0), below)
    grey *= (1.0 - opacity).astype(np.float32)[heatmap]
    glow = (opacity[:, None] * heat_colours(heat)).astype(np.float32)
    # One channel after the other: an image of a whole scene would take a gigabyte.
    channels = [np.rint(grey + glow[:, channel][heatmap]).astype(np.uint8) for channel in range(3)]
    return np.asarray(cv2.merge(channels), dtype=np.uint8)


def heat_colours(heat: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return the BGR colours of heat values 0..255: inferno from violet at half the threshold to pale yellow."""
    place = np.interp(heat.astype(np.float32), [_FADE_IN * HEATMAP_AT_THRESHOLD, 255], [80, 250])
    colours = cv2.applyColorMap(np.rint(place).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return colours.reshape(*heat.shape, 3).astype(np.float32)


def _frame(region: Region, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return two corners of a frame around a small region, some line widths away from it."""
    x, y, w, h = region.bbox_xywh_px
    margin = 4 * width + 2
    return (x - margin, y - margin), (x + w - 1 + margin, y + h - 1 + margin)
