"""An extractor that needs no download: ridge and line filters, tone and colour, pooled per grid cell.

Two families of second derivatives, after the maximum-response filters of Varma & Zisserman 2005 (MR8):

- blobs: the two eigenvalues of the Hessian of a Gaussian-smoothed image, the largest and the smallest curvature over
  all directions, computed in closed form from three basis filters (Freeman & Adelson 1991, steerable filters);
- lines: bar filters, long along the line and narrow across, of which the strongest bright and the strongest dark
  response over twelve orientations count. Length is what distinguishes a hair-thin crack from grain of the same width.

Each map is pooled to mean, maximum and minimum per cell: a maximum does not care where in the cell a defect lies.
Second derivatives know neither offset nor slope. So three means per cell are added, which see what has no edge: the
tone, and the a and b of CIE Lab (CIE 15:2018), which are zero on grey. The filters and the tone work on a logarithmic
tone scale, where a change of light is nearly an offset: it leaves every curvature as it is, and moves the tone alone.

What this bank cannot see: what is wrong only in its context, such as a familiar piece in a wrong place; and a faint
line much thinner than a pixel of the network input, of whose contrast only that share is left. Nor can it tell a stain
from a change of the light that is as large: tone and colour need a steady light.

The responses are raw; each ROI's own whitening (``backend.memory_bank.whitening``) brings them to unit rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.extractors.base import check_image
from backend.extractors.line_filters import LineFilters, Map
from backend.imaging.placement import Placement, Resize, place, resized
from backend.imaging.tone import DARK_GREY, tone_of

CELL_PX = 8
"""Edge of one grid cell in the network input, px. 384 is a multiple of it, so that the canonical ROI is not resampled,
which would cost the thinnest lines some of their contrast. Half a cell is a whole number of px at half resolution too,
where lines are filtered, so that windows are exact."""

WINDOW_PX = 2 * CELL_PX
"""Edge of what is pooled for a cell, px: the cell and half a cell around it. A defect on the border of two cells lies
within a window all the same, and a window holds enough of a texture for its mean, maximum and minimum to be steady."""

VERSION = 2
"""Part of the extractor id; to be raised with every change of the arithmetic."""

BLOB_SIGMAS_PX = (1.0, 2.0, 4.0, 8.0)
"""Scales of the Hessian, px of the network input. The finest finds the thinnest scratches."""

LINE_SIGMAS_PX = ((1.4, 10.0), (2.8, 20.0))
"""Standard deviations of the bar filters across and along the line, px of the network input."""

ORIENTATIONS = 12
"""Bar filters per half turn: a bar 1:7 long answers within about 8° of its own direction, so one every 15°."""

COLOUR_SCALE = 0.5
"""What a and b are multiplied by. The whitening trusts no column below 0.3, the rounding of 8-bit grey; but colour
often comes as JPEG or as a camera's YUV, where a step of chroma is about 1.1 in a or b, and plain surfaces are rounded
alike all over the image. This brings half a step to 0.27. At 2.55, the scale of grey levels, a good part saved as JPEG
scored 1.5 times the threshold of parts saved as PNG; rust still scores four times that threshold at 0.5."""

_POOLED = 2 * len(BLOB_SIGMAS_PX) + 2 * len(LINE_SIGMAS_PX)
_POOLS = 3
_MEANS = 3


class FilterBankFeatures:
    """Ridge and line responses, tone and colour of a ROI image; deterministic, on the CPU.

    Obeys `backend.extractors.base.FeatureExtractor`.

    Args:
        input_size: Edge of the network input for a square image, px. The scales are fixed in pixels of this input:
            thinner lines need a larger one.
        resize: See `backend.imaging.placement.place`.
    """

    name = "filter-bank"
    precision = "fp32"
    device = "cpu"
    whitens = True
    batch_size = 1

    def __init__(self, *, input_size: int = 384, resize: Resize = "aspect") -> None:
        self._input_size = input_size
        self._resize = resize
        self._lines = [
            LineFilters(across=across / 2, along=along / 2, orientations=ORIENTATIONS, usual_px=input_size // 2)
            for across, along in LINE_SIGMAS_PX
        ]
        blobs = ",".join(f"{sigma:g}" for sigma in BLOB_SIGMAS_PX)
        lines = ",".join(f"{across:g}x{along:g}" for across, along in LINE_SIGMAS_PX)
        self.extractor_id = (
            f"{self.name}/v{VERSION}:blobs={blobs}:lines={lines}*{ORIENTATIONS}:log={DARK_GREY:g}:means=tone,a,b*{COLOUR_SCALE:g}"
            f":cell={CELL_PX}:window={WINDOW_PX}:input={input_size}:{resize}"
        )

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        """Return how an image of this size is brought to the patch grid."""
        return place(image_hw, input_size=self._input_size, cell_px=CELL_PX, resize=self._resize)

    def extract(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the raw responses of an image [H, W, 3] uint8, BGR, and the grid (Ht, Wt).

        The responses are [Ht*Wt, D] float32, row-major, in grey levels at mid grey; D = 39: mean, maximum and minimum
        of the channels in order, blobs (large, small curvature) by scale, then lines (dark, bright) by size; at last
        the means of the tone, a and b.

        Raises:
            ValueError: If the image has another dtype or shape.
        """
        check_image(image_bgr)
        placement = self.placement((image_bgr.shape[0], image_bgr.shape[1]))
        tone = tone_of(image_bgr, placement.input_hw)
        table = np.empty((math.prod(placement.grid_hw), _POOLED * _POOLS + _MEANS), dtype=np.float32)
        for channel, response in enumerate([*_blobs(tone), *self._line_maps(tone)]):
            table[:, _POOLS * channel : _POOLS * (channel + 1)] = _pool(response, placement.grid_hw)
        for column, plane in enumerate([tone, *_colour(image_bgr, placement.input_hw)], start=-_MEANS):
            table[:, column] = _mean(plane, placement.grid_hw)
        return table, placement.grid_hw

    def extract_batch(self, images_bgr: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return the raw responses [Ht*Wt, D] float32 of each image, as ``extract`` does."""
        return [self.extract(image)[0] for image in images_bgr]

    def _line_maps(self, tone: Map) -> list[Map]:
        """Return the strongest dark and the strongest bright line response per size, each [h/2, w/2] float32.

        At half resolution, which still samples the narrowest bar (1.4 px on each side of its middle) and takes a
        quarter of the time.
        """
        height, width = tone.shape
        halved = resized(tone, (height // 2, width // 2))
        return [response for lines in self._lines for response in lines.strongest(halved)]


def _linear_light() -> NDArray[np.float32]:
    """Return the light that each 8-bit sRGB value stands for: [256] float32 in [0, 1] (IEC 61966-2-1)."""
    value = np.arange(256) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


_LINEAR_LIGHT = _linear_light()


def _colour(image_bgr: NDArray[np.uint8], input_hw: tuple[int, int]) -> list[Map]:
    """Return a and b of CIE Lab of the network input, each [h, w] float32, times ``COLOUR_SCALE``; 0 on grey."""
    # By way of linear light, because OpenCV's conversion from sRGB interpolates in a table: its a of a grey pixel is up
    # to 0.125 and changes with the grey. This is exact and takes no longer.
    light = cv2.LUT(resized(image_bgr, input_hw), _LINEAR_LIGHT)
    lab = cv2.cvtColor(light, cv2.COLOR_LBGR2LAB)
    return [np.asarray(COLOUR_SCALE * lab[..., axis], dtype=np.float32) for axis in (1, 2)]


def _blobs(tone: Map) -> list[Map]:
    """Return the largest and the smallest scale-normalised curvature at each scale, each [h, w] float32."""
    maps: list[Map] = []
    for sigma in BLOB_SIGMAS_PX:
        smooth = cv2.GaussianBlur(tone, (0, 0), sigma, borderType=cv2.BORDER_REFLECT).astype(np.float32, copy=False)
        unit = sigma**2
        xx = _derivative(smooth, (unit, -2 * unit, unit), (1,))
        yy = _derivative(smooth, (1,), (unit, -2 * unit, unit))
        xy = _derivative(smooth, (-0.5 * unit, 0, 0.5 * unit), (-0.5, 0, 0.5))
        half_trace = np.float32(0.5) * (xx + yy)
        # Not cv2.magnitude: its last bit depends on where in memory the maps lie. Equal images must give equal rows.
        radius = np.sqrt(np.float32(0.25) * (xx - yy) ** 2 + xy**2)
        maps += [half_trace + radius, half_trace - radius]
    return maps


def _derivative(smooth: Map, taps_x: tuple[float, ...], taps_y: tuple[float, ...]) -> Map:
    """Return a separable difference of a map, [h, w] float32."""
    kernel_x, kernel_y = np.array(taps_x, dtype=np.float32), np.array(taps_y, dtype=np.float32)
    filtered = cv2.sepFilter2D(smooth, cv2.CV_32F, kernel_x, kernel_y, borderType=cv2.BORDER_REFLECT)
    return np.asarray(filtered, dtype=np.float32)


def _pool(response: Map, grid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return mean, maximum and minimum of a map in the window of each cell: [Ht*Wt, 3] float32."""
    tiles, n_px = _shifted_blocks(response, grid_hw)
    pooled = [_combined(tiles, grid_hw, how) for how in (np.add, np.maximum, np.minimum)]
    pooled[0] /= np.float32(n_px)
    return np.stack(pooled, axis=1)


def _mean(plane: Map, grid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return the mean of a map in the window of each cell: [Ht*Wt] float32."""
    tiles, n_px = _shifted_blocks(plane, grid_hw)
    return _combined(tiles, grid_hw, np.add) / np.float32(n_px)


def _shifted_blocks(plane: Map, grid_hw: tuple[int, int]) -> tuple[NDArray[np.float32], int]:
    """Return a map cut so that four blocks make up a window, [Ht+1, cell, w+cell] float32, and the pixels of a window.

    A window is as wide as two cells and centred on its own: it begins and ends in the middle of a cell. So the blocks
    are shifted by half a cell against the cells, and half a cell of mirror image is added at each border. The map may
    be at half resolution, where a cell is half as wide.
    """
    cell = plane.shape[0] // grid_hw[0]
    half = cell // 2
    padded = cv2.copyMakeBorder(plane, half, half, half, half, cv2.BORDER_REFLECT)
    return padded.reshape(grid_hw[0] + 1, cell, -1).astype(np.float32, copy=False), (2 * cell) ** 2


def _combined(tiles: NDArray[np.float32], grid_hw: tuple[int, int], how: np.ufunc) -> NDArray[np.float32]:
    """Return the sum, maximum or minimum over each window of ``_shifted_blocks``: [Ht*Wt] float32."""
    rows, columns = grid_hw
    lines = how.reduce(tiles, axis=1)
    # Transposed, numpy works on long rows instead of 2401 short ones: half the time.
    blocks = how.reduce(np.ascontiguousarray(lines.reshape((rows + 1) * (columns + 1), -1).T), axis=0)
    blocks = blocks.reshape(rows + 1, columns + 1)
    stacked = how(blocks[1:], blocks[:-1])
    return np.asarray(how(stacked[:, 1:], stacked[:, :-1]).ravel(), dtype=np.float32)
