"""How an image looks, cell by cell: light, detail and colour, from which it is told whether it is an image of the part.

What a cell holds can be averaged over any set of cells, so that the statistics of an area follow from what was kept of
the whole image, whatever the area is. A change of the arithmetic is a change of the memory's format.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.imaging.placement import resized

CHANNELS: Final = (
    "grey", "deviation", "band 0-1", "band 1-2", "band 2-4", "band 4-8",
    "black", "nearly black", "white", "nearly white", "blue", "green", "red",
)  # fmt: skip
"""What each cell holds: mean and standard deviation of grey, root mean square of the four differences of Gaussians
(σ in px at ``INPUT_PX``), shares of pixels at the ends of the scale, and means of the colours; levels 0 … 255."""

GRID: Final = 27
INPUT_PX: Final = 378

_BLACK_UP_TO, _NEARLY_BLACK_UP_TO = 3, 6
_WHITE_FROM, _NEARLY_WHITE_FROM = 252, 226
"""What is nearly black or white may be so entirely at 10 % less or more of exposure, and two grey levels beside."""

_DECIMALS: Final = 3


def appearance_map(image_bgr: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Return how an image looks in each cell of a 27×27 grid over it, whatever its aspect ratio.

    Args:
        image_bgr: [H, W, 3] uint8, BGR.

    Returns:
        [729, 13] float16, row-major; the columns are ``CHANNELS``.
    """
    full_grey = np.asarray(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY))
    grey: NDArray[np.float32] = resized(full_grey, (INPUT_PX, INPUT_PX)).astype(np.float32)
    half: NDArray[np.float32] = resized(grey, (INPUT_PX // 2, INPUT_PX // 2))
    blurred = [_blurred(grey, 1), _blurred(grey, 2)]
    # From σ 4 on half the resolution shows the same, in a quarter of the time; averaging 2×2 px is a blur of its own.
    coarse = [cv2.resize(blurred[1], half.shape, interpolation=cv2.INTER_AREA), _blurred(half, 2), _blurred(half, 4)]
    bands = [grey - blurred[0], blurred[0] - blurred[1], coarse[0] - coarse[1], coarse[1] - coarse[2]]
    step = max(1, min(image_bgr.shape[:2]) // (4 * GRID))  # every n-th pixel is enough for a mean colour
    colours = resized(np.ascontiguousarray(image_bgr[::step, ::step]), (2 * GRID, 2 * GRID))
    mean, mean_square = _means(grey), _means(grey * grey)
    columns = [
        mean,
        np.sqrt(np.maximum(mean_square - mean * mean, 0)),
        *(np.sqrt(_means(band * band)) for band in bands),
        *(_means((grey <= limit).astype(np.float32)) for limit in (_BLACK_UP_TO, _NEARLY_BLACK_UP_TO)),
        *(_means((grey >= limit).astype(np.float32)) for limit in (_WHITE_FROM, _NEARLY_WHITE_FROM)),
        *(_means(colours[:, :, channel].astype(np.float32)) for channel in range(3)),
    ]
    return np.round(np.stack(columns, axis=1), _DECIMALS).astype(np.float16)


def _blurred(grey: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(grey, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT), dtype=np.float32)


def _means(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean in each cell: [729] float32."""
    return np.asarray(cv2.resize(values, (GRID, GRID), interpolation=cv2.INTER_AREA), dtype=np.float32).reshape(-1)
