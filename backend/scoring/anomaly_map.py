"""From distances on the patch grid to the anomaly map in pixels of the image, and the heat map that shows it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.imaging.placement import Placement

HEATMAP_AT_THRESHOLD = 128
_MIN_WEIGHT = 1e-6


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
    if mask.all() and known.all():
        return _blurred(placement.to_image(grid), blur_sigma)
    weights = (known & (placement.cell_coverage(mask) > 0)).astype(np.float32)
    if not weights.any():
        weights = known.astype(np.float32)
    numerator = placement.to_image(np.where(weights > 0, grid, 0).astype(np.float32))
    denominator = placement.to_image(weights)
    # Pixels that no known cell reaches take no part either.
    inside = mask & (denominator > _MIN_WEIGHT)
    image_map = np.where(inside, numerator / np.maximum(denominator, _MIN_WEIGHT), 0).astype(np.float32)
    reach = _blurred(inside.astype(np.float32), blur_sigma)
    blurred = _blurred(image_map, blur_sigma) / np.maximum(reach, _MIN_WEIGHT)
    return np.where(inside, blurred, 0).astype(np.float32)


def _blurred(image_map: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    if sigma <= 0:
        return image_map
    # The mirror border is a weighted mean of pixels that exist, so the image's own edge needs no further care.
    return cv2.GaussianBlur(image_map, (0, 0), sigma, borderType=cv2.BORDER_REFLECT).astype(np.float32, copy=False)


def heatmap(image_map: NDArray[np.float32], full_scale: float) -> NDArray[np.uint8]:
    """Return a map as 8 bits on a fixed scale: 0 is 0, half of ``full_scale`` is 128, ``full_scale`` or more is 255.

    Never stretched to the image's own range: that would make every good part look hot.
    """
    if full_scale <= 0:
        return np.zeros(image_map.shape, np.uint8)
    return np.asarray(cv2.convertScaleAbs(image_map, alpha=2 * HEATMAP_AT_THRESHOLD / full_scale), dtype=np.uint8)
