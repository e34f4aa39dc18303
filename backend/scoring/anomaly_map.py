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
    return AnomalyMaps(np.isfinite(distances), placement, mask, blur_sigma=blur_sigma).of(distances)


class AnomalyMaps:
    """Makes the maps of images that are known at the same cells, as ``anomaly_map`` does.

    What depends on cells and mask alone is computed once.

    Args:
        known: [Ht*Wt] bool, the cells whose distances are numbers.
        placement: As of ``anomaly_map``, and so are the others.
    """

    def __init__(
        self, known: NDArray[np.bool_], placement: Placement, mask: NDArray[np.bool_], *, blur_sigma: float
    ) -> None:
        self._placement, self._blur_sigma = placement, blur_sigma
        grid = known.reshape(placement.grid_hw)
        self._weights: NDArray[np.float32] | None = None
        if mask.all() and grid.all():
            return
        weights = (grid & (placement.cell_coverage(mask) > 0)).astype(np.float32)
        if not weights.any():
            weights = grid.astype(np.float32)
        self._weights = weights
        denominator = placement.to_image(weights)
        # Pixels that no known cell reaches take no part either.
        inside = (mask & (denominator > _MIN_WEIGHT)).astype(np.float32)
        self._before_blur = inside / np.maximum(denominator, _MIN_WEIGHT)
        self._after_blur = inside / np.maximum(_blurred(inside, blur_sigma), _MIN_WEIGHT)

    def of(self, distances: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the map [H, W] float32 of distances [Ht*Wt] float32; see ``anomaly_map``."""
        grid = distances.reshape(self._placement.grid_hw)
        if self._weights is None:
            return _blurred(self._placement.to_image(grid), self._blur_sigma)
        numerator = self._placement.to_image(np.where(self._weights > 0, grid, 0).astype(np.float32))
        image_map = np.multiply(numerator, self._before_blur, out=numerator)
        blurred = _blurred(image_map, self._blur_sigma)
        return np.multiply(blurred, self._after_blur, out=blurred)


def _blurred(image_map: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    if sigma <= 0:
        return image_map
    # The mirror border is a weighted mean of pixels that exist, so the image's own edge needs no further care.
    return cv2.GaussianBlur(image_map, (0, 0), sigma, borderType=cv2.BORDER_REFLECT).astype(np.float32, copy=False)


def heatmap(image_map: NDArray[np.float32], full_scale: float) -> NDArray[np.uint8]:
    """Return a map as 8 bits on a fixed scale: 0 is 0, half of ``full_scale`` is 128, ``full_scale`` or more is 255.

    Never stretched to the image's own range: that would make every good part look hot. Above a threshold of 0, whose
    double is 0 as well, lies all that is not 0.
    """
    if full_scale <= 0:
        return np.where(image_map > 0, np.uint8(255), np.uint8(0))
    return np.asarray(cv2.convertScaleAbs(image_map, alpha=2 * HEATMAP_AT_THRESHOLD / full_scale), dtype=np.uint8)
