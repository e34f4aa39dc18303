"""Bar filters of many orientations, and the strongest response of any of them at each pixel.

A bar is the second derivative, across its length, of an elongated Gaussian. It answers to lines of its width, and only
in its own direction; the maximum over all directions answers to a line whichever way it runs (Varma & Zisserman 2005).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

Map = NDArray[np.float32]
"""Values per pixel, [h, w] float32."""

_LARGEST_TILE_PX = 256
"""Larger maps are filtered tile by tile: the spectra of the bars are kept, 3 MB for one size of bar at 192 px."""


class LineFilters:
    """Bars of one size in all directions.

    Filtered by the convolution theorem: the spectra of the bars are computed once, and of each tile once for all bars.
    ``cv2.filter2D`` computes both again for every bar, which takes twice as long. The results agree to rounding.

    Args:
        across: Standard deviation across the line, px of the maps that are filtered.
        along: Standard deviation along the line, px.
        orientations: How many directions per half turn.
        usual_px: Edge of a usual map: one that is not larger is filtered in one piece.
    """

    def __init__(self, *, across: float, along: float, orientations: int, usual_px: int) -> None:
        bars = bar_kernels(across, along, orientations)
        self._reach = bars[0].shape[0] // 2
        self._edge = fft.next_fast_len(min(usual_px, _LARGEST_TILE_PX) + 2 * self._reach, real=True)
        self._spectra = [fft.rfft2(bar, s=(self._edge, self._edge)) for bar in bars]

    def strongest(self, tone: Map) -> tuple[Map, Map]:
        """Return the strongest answer to a dark line and to a bright line, each [h, w] float32.

        The former is the maximum over all directions, the latter the minimum: bright lines answer negatively. The map
        [h, w] float32 is continued by its mirror image.
        """
        reach, step = self._reach, self._edge - 2 * self._reach
        padded = np.asarray(cv2.copyMakeBorder(tone, reach, reach, reach, reach, cv2.BORDER_REFLECT), dtype=np.float32)
        dark = np.full(tone.shape, -np.inf, dtype=np.float32)
        bright = np.full(tone.shape, np.inf, dtype=np.float32)
        for top in range(0, tone.shape[0], step):
            for left in range(0, tone.shape[1], step):
                tile = np.s_[top : top + step, left : left + step]
                surrounded = padded[top : top + self._edge, left : left + self._edge]
                self._filter(surrounded, dark[tile], bright[tile])
        return dark, bright

    def _filter(self, surrounded: Map, dark: Map, bright: Map) -> None:
        """Take the responses of one tile into its part of the two maps; the tile comes with its surroundings."""
        height, width = dark.shape
        spectrum = fft.rfft2(surrounded, s=(self._edge, self._edge))
        # A response lies at the last pixel that its bar covers. Those before 2 * reach would mix both ends of the tile.
        whole = np.s_[2 * self._reach : 2 * self._reach + height, 2 * self._reach : 2 * self._reach + width]
        for bar in self._spectra:
            response = fft.irfft2(spectrum * bar, s=(self._edge, self._edge))[whole]
            np.maximum(dark, response, out=dark)
            np.minimum(bright, response, out=bright)


def bar_kernels(across: float, along: float, orientations: int) -> list[Map]:
    """Return bar filters, one per orientation, each [n, n] float32 with zero sum; standard deviations in px.

    Scale-normalised: positive on dark lines, negative on bright ones. Each is its own image under a half turn, so that
    correlation and convolution are the same.
    """
    half = math.ceil(2.5 * max(across, along))
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    kernels = []
    for orientation in range(orientations):
        angle = math.pi * orientation / orientations
        u = x * math.cos(angle) + y * math.sin(angle)
        v = y * math.cos(angle) - x * math.sin(angle)
        gauss = np.exp(-0.5 * ((u / along) ** 2 + (v / across) ** 2))
        gauss /= gauss.sum()
        bar = ((v / across) ** 2 - 1.0) * gauss
        # Sampling leaves a small sum; without this a bright plain would answer like a line.
        bar -= bar.sum() * gauss
        kernels.append(bar.astype(np.float32))
    return kernels
