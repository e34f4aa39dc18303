"""An extractor that needs no download: ridge and line filters at several scales, pooled per grid cell.

Two families of second derivatives, after the maximum-response filters of Varma & Zisserman 2005 (MR8):

- blobs: the two eigenvalues of the Hessian of a Gaussian-smoothed image, the largest and the smallest curvature over
  all directions, computed in closed form from three basis filters (Freeman & Adelson 1991, steerable filters);
- lines: bar filters, long along the line and narrow across, of which the strongest bright and the strongest dark
  response over twelve orientations count. Length is what distinguishes a hair-thin crack from grain of the same width.

Each map is pooled to mean, maximum and minimum per cell: a maximum does not care where in the cell a defect lies.
Everything is computed on a logarithmic tone scale, where a change of light is nearly an offset, and second derivatives
know neither offset nor slope: slow unevenness cancels. What this bank therefore cannot see: a change of brightness
without an edge, or of colour without a change of grey.

The responses are raw; each ROI's own whitening (``backend.memory_bank.whitening``) brings them to unit rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.extractors.base import check_image
from backend.imaging.placement import Placement, Resize, place

CELL_PX = 14
"""Edge of one grid cell in the network input, px; even, because lines are filtered at half resolution."""

VERSION = 1
"""Part of the extractor id; to be raised with every change of the arithmetic."""

BLOB_SIGMAS_PX = (2.0, 4.0, 8.0)
"""Scales of the Hessian, px of the network input."""

LINE_SIGMAS_PX = ((1.4, 10.0), (2.8, 20.0))
"""Standard deviations of the bar filters across and along the line, px of the network input."""

ORIENTATIONS = 12
"""Bar filters per half turn: a bar 1:7 long answers within about 8° of its own direction, so one every 15°."""

DARK_GREY = 100.0
"""Grey level below which the tone curve turns from logarithmic to linear: at 32 the noise of black areas already costs
more on castings than the deeper shadow of a crack gains on commutators."""

MID_GREY = 128.0
"""Grey level at which the tone curve has slope one, so that responses are in grey levels there."""

Map = NDArray[np.float32]
"""A response map, [h, w] float32."""

_CHANNELS = 2 * len(BLOB_SIGMAS_PX) + 2 * len(LINE_SIGMAS_PX)
_POOLS = 3


class FilterBankFeatures:
    """Ridge and line responses of a ROI image; deterministic, on the CPU.

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
        self._bars = [_bar_kernels(across / 2, along / 2) for across, along in LINE_SIGMAS_PX]
        blobs = ",".join(f"{sigma:g}" for sigma in BLOB_SIGMAS_PX)
        lines = ",".join(f"{across:g}x{along:g}" for across, along in LINE_SIGMAS_PX)
        self.extractor_id = (
            f"{self.name}/v{VERSION}:blobs={blobs}:lines={lines}*{ORIENTATIONS}:log={DARK_GREY:g}"
            f":cell={CELL_PX}:input={input_size}:{resize}"
        )

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        """Return how an image of this size is brought to the patch grid."""
        return place(image_hw, input_size=self._input_size, cell_px=CELL_PX, resize=self._resize)

    def extract(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the raw responses of an image [H, W, 3] uint8, BGR, and the grid (Ht, Wt).

        The responses are [Ht*Wt, D] float32, row-major, in grey levels at mid grey; D = 30: mean, maximum and minimum
        of the channels in order, blobs (large, small curvature) by scale, then lines (dark, bright) by size.

        Raises:
            ValueError: If the image has another dtype or shape.
        """
        check_image(image_bgr)
        placement = self.placement((image_bgr.shape[0], image_bgr.shape[1]))
        tone = _tone(image_bgr, placement.input_hw)
        table = np.empty((math.prod(placement.grid_hw), _CHANNELS * _POOLS), dtype=np.float32)
        for channel, response in enumerate([*_blobs(tone), *_lines(tone, self._bars)]):
            table[:, _POOLS * channel : _POOLS * (channel + 1)] = _pool(response, placement.grid_hw)
        return table, placement.grid_hw

    def extract_batch(self, images_bgr: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return the raw responses [Ht*Wt, D] float32 of each image, as ``extract`` does."""
        return [self.extract(image)[0] for image in images_bgr]


def _tone(image_bgr: NDArray[np.uint8], input_hw: tuple[int, int]) -> Map:
    """Return the network input on a log grey scale: [h, w] float32, in grey levels at mid grey."""
    grey = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY).astype(np.float32)
    height, width = input_hw
    shrinks = height < grey.shape[0] or width < grey.shape[1]
    # Area averaging when shrinking: bilinear would step over hair-thin lines.
    resized = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray((DARK_GREY + MID_GREY) * np.log1p(resized / DARK_GREY), dtype=np.float32)


def _blobs(tone: Map) -> list[Map]:
    """Return the largest and the smallest scale-normalised curvature at each scale, each [h, w] float32."""
    maps: list[Map] = []
    for sigma in BLOB_SIGMAS_PX:
        smooth = cv2.GaussianBlur(tone, (0, 0), sigma, borderType=cv2.BORDER_REFLECT).astype(np.float32, copy=False)
        xx = _derivative(smooth, (1, -2, 1), (1,))
        yy = _derivative(smooth, (1,), (1, -2, 1))
        xy = _derivative(smooth, (-0.5, 0, 0.5), (-0.5, 0, 0.5))
        half_trace = 0.5 * (xx + yy)
        radius = np.sqrt(0.25 * (xx - yy) ** 2 + xy**2)
        maps += [sigma**2 * (half_trace + radius), sigma**2 * (half_trace - radius)]
    return maps


def _derivative(smooth: Map, taps_x: tuple[float, ...], taps_y: tuple[float, ...]) -> Map:
    """Return a separable difference of a map, [h, w] float32."""
    kernel_x, kernel_y = np.array(taps_x, dtype=np.float32), np.array(taps_y, dtype=np.float32)
    filtered = cv2.sepFilter2D(smooth, cv2.CV_32F, kernel_x, kernel_y, borderType=cv2.BORDER_REFLECT)
    return np.asarray(filtered, dtype=np.float32)


def _bar_kernels(across: float, along: float) -> list[Map]:
    """Return bar filters, one per orientation, each [n, n] float32 with zero sum; standard deviations in px.

    The scale-normalised second derivative, across its length, of an elongated Gaussian: positive on dark lines,
    negative on bright ones.
    """
    half = math.ceil(2.5 * max(across, along))
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    kernels = []
    for orientation in range(ORIENTATIONS):
        angle = math.pi * orientation / ORIENTATIONS
        u = x * math.cos(angle) + y * math.sin(angle)
        v = y * math.cos(angle) - x * math.sin(angle)
        gauss = np.exp(-0.5 * ((u / along) ** 2 + (v / across) ** 2))
        gauss /= gauss.sum()
        bar = ((v / across) ** 2 - 1.0) * gauss
        # Sampling leaves a small sum; without this a bright plain would answer like a line.
        bar -= bar.sum() * gauss
        kernels.append(bar.astype(np.float32))
    return kernels


def _lines(tone: Map, bars: list[list[Map]]) -> list[Map]:
    """Return the strongest dark and the strongest bright line response per size, each [h/2, w/2] float32.

    At half resolution, which still samples the narrowest bar (1.4 px on each side of its middle) and takes a quarter of
    the time.
    """
    height, width = tone.shape
    halved = cv2.resize(tone, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    maps: list[Map] = []
    for kernels in bars:
        dark = np.full(halved.shape, -np.inf, dtype=np.float32)
        bright = np.full(halved.shape, np.inf, dtype=np.float32)
        for kernel in kernels:
            response = cv2.filter2D(halved, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT)
            np.maximum(dark, response, out=dark)
            np.minimum(bright, response, out=bright)
        maps += [dark, bright]
    return maps


def _pool(response: Map, grid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return mean, maximum and minimum of a map per cell: [Ht*Wt, 3] float32."""
    rows, columns = grid_hw
    cell = response.shape[0] // rows
    cells = response.reshape(rows, cell, columns, cell)
    pooled = [reduce(reduce(cells, axis=1), axis=2) for reduce in (np.add.reduce, np.maximum.reduce, np.minimum.reduce)]
    pooled[0] = pooled[0] / np.float32(cell * cell)
    return np.stack([values.ravel() for values in pooled], axis=1)
