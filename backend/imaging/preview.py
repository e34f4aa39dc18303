"""Pictures for lists: an image made smaller."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def shrunk(image: NDArray[np.uint8], edge_px: int) -> NDArray[np.uint8]:
    """Return an image [H, W] or [H, W, 3] uint8 with a longer edge of at most ``edge_px``; never larger than it was."""
    height, width = image.shape[:2]
    factor = edge_px / max(height, width)
    if factor >= 1:
        return image
    size_wh = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)
