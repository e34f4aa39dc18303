"""Pixels to tone: grey on a logarithmic scale, where a change of light is nearly an offset.

A change here changes the filter bank's numbers and every memory's position maps: it needs another version of both.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.imaging.placement import resized

DARK_GREY: Final = 100.0
"""Grey level below which the tone curve turns from logarithmic to linear: at 32 the noise of black areas already costs
more on castings than the deeper shadow of a crack gains on commutators."""

MID_GREY: Final = 128.0
"""Grey level at which the tone curve has slope one, so that responses are in grey levels there."""


def tone_of(image_bgr: NDArray[np.uint8], to_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return an image [H, W, 3] uint8 as tone at another size: [h, w] float32, in grey levels at mid grey."""
    grey = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY).astype(np.float32)
    return np.asarray((DARK_GREY + MID_GREY) * np.log1p(resized(grey, to_hw) / DARK_GREY), dtype=np.float32)
