"""What an image shows at each place, coarsely: what tells whether the parts of a ROI always lie in the same place.

Plain numbers per cell, made from the pixels alone, so that they mean the same whatever the extractor. A memory keeps
them of every image that it has learned; a change of the arithmetic is a change of the memory's format.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.imaging import appearance
from backend.imaging.placement import Placement, place
from backend.imaging.tone import tone_of

PLACE_CHANNELS: Final = ("tone", "log gradient", "gradient along x", "gradient along y")
"""What tells one place from another, as the mean of a cell; the second is the logarithm of the mean."""

CHANNELS: Final = PLACE_CHANNELS + appearance.CHANNELS
"""What each cell holds."""

INPUT_PX: Final = 384
CELL_PX: Final = 14

_BLUR_SIGMA_PX: Final = 1.5
_DECIMALS: Final = 3

_ONE, _SLOPE = np.array([1], np.float32), np.array([-0.5, 0, 0.5], np.float32)


def position_placement(image_hw: tuple[int, int]) -> Placement:
    """Return how an image is brought to the grid of its position map: 27×27 cells whatever its aspect ratio.

    One grid for all, because the images of a ROI may differ in aspect ratio by 2 %, and their maps have to agree.
    """
    return place(image_hw, input_size=INPUT_PX, cell_px=CELL_PX, resize="square")


def position_map(image_bgr: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Return what an image shows at each place.

    Args:
        image_bgr: [H, W, 3] uint8, BGR.

    Returns:
        [cells, 17] float16, row-major over the grid of ``position_placement``; the columns are ``CHANNELS``: tone in
        grey levels, log(1 + gradient), the gradient in grey levels per pixel, and those of ``appearance_map``.
    """
    placement = position_placement((image_bgr.shape[0], image_bgr.shape[1]))
    tone = tone_of(image_bgr, placement.input_hw)  # a change of light is taken out of it with the image's mean
    smooth = cv2.GaussianBlur(tone, (0, 0), _BLUR_SIGMA_PX, borderType=cv2.BORDER_REFLECT)
    along_x = cv2.sepFilter2D(smooth, cv2.CV_32F, _SLOPE, _ONE, borderType=cv2.BORDER_REFLECT)
    along_y = cv2.sepFilter2D(smooth, cv2.CV_32F, _ONE, _SLOPE, borderType=cv2.BORDER_REFLECT)
    rows, columns = placement.grid_hw
    means = [
        cv2.resize(values, (columns, rows), interpolation=cv2.INTER_AREA).reshape(-1)
        for values in (tone, cv2.magnitude(along_x, along_y), along_x, along_y)
    ]
    means[1] = np.log1p(means[1])
    # Plain areas have no gradient, and not the crumbs of float32 either, which are at the same place in all images.
    place_values = np.round(np.stack(means, axis=1), _DECIMALS).astype(np.float16)
    return np.concatenate([place_values, appearance.appearance_map(image_bgr)], axis=1)


def appearance_of(position_maps: NDArray[np.float16]) -> NDArray[np.float16]:
    """Return the appearance maps [n, cells, 13] float16 that are part of position maps [n, cells, 17]."""
    return position_maps[:, :, len(PLACE_CHANNELS) :]
