"""Simple statistics of images that tell whether one can be of a ROI: light, contrast, sharpness, colour and layout.

They follow from the appearance maps of images, for any area of them, each on a logarithmic scale.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backend.imaging.appearance import CHANNELS

FLOORS: Final = {
    "level": 0.10,  # mean grey
    "dark_areas": 0.2,  # percentiles 2, 50 and 98 over the cells
    "median": 0.12,
    "bright_areas": 0.10,
    "contrast": 0.12,  # standard deviation of grey
    "detail_0_1": 0.6,  # energy of four differences of Gaussians; σ in px of an image brought to 378 px
    "detail_1_2": 0.4,
    "detail_2_4": 0.3,
    "detail_4_8": 0.25,
    "noise_0_1": 1.2,  # the same energies in the median cell: a scratch does not raise it, a camera's noise does
    "noise_1_2": 1.0,
    "noise_2_4": 0.8,
    "sharpness_fine": 0.5,  # energies of fine detail ÷ those of coarse detail, of the whole and by cell
    "sharpness_medium": 0.35,
    "sharpness_local": 0.5,
    "sharpness_coarse": 0.3,
    "black": 1.0,  # shares of black, of white, and of cells without any detail that are neither
    "white": 1.0,
    "plain": 1.0,
    "blue": 0.05,  # ÷ green
    "red": 0.05,
    "layout_tone": 0.5,  # correlation with the most similar good image, of tone and of detail over the cells
    "layout_detail": 0.4,
}
"""The statistics and the least that half a learned range counts as, on their logarithmic scale: ±10 % of exposure, two
grey levels or a blur of one pixel more or less stay within twice that."""

NAMES: Final = tuple(FLOORS)

FLOOR_VALUES: Final = np.array([*FLOORS.values()])
ONLY_BELOW = np.array([name.startswith(("detail", "sharpness")) for name in NAMES])
ONLY_ABOVE = np.isin(
    NAMES, ("noise_0_1", "noise_1_2", "noise_2_4", "black", "white", "plain", "layout_tone", "layout_detail")
)

_GREY, _DEVIATION, _BAND, _BLACK, _NEARLY_BLACK, _WHITE, _NEARLY_WHITE, _BLUE, _GREEN, _RED = (
    CHANNELS.index(name)
    for name in (
        "grey",
        "deviation",
        "band 0-1",
        "black",
        "nearly black",
        "white",
        "nearly white",
        "blue",
        "green",
        "red",
    )
)
_N_BANDS: Final = 4

FINEST_PX: Final = {
    "detail_0_1": 1,
    "detail_1_2": 2,
    "detail_2_4": 4,
    "detail_4_8": 8,
    "noise_0_1": 1,
    "noise_1_2": 2,
    "noise_2_4": 4,
    "sharpness_fine": 1,
    "sharpness_medium": 2,
    "sharpness_local": 1,
    "sharpness_coarse": 4,
    "plain": 1,
}
"""The larger σ of the finest detail that a statistic needs, px of an image brought to 378 px."""

# What keeps the logarithms of small numbers from meaning more than a sensor's noise does.
_LEVEL_OFFSET, _CONTRAST_OFFSET, _ENERGY_OFFSET, _SHARE_OFFSET, _LAYOUT_OFFSET = 8.0, 2.0, 0.25, 0.05, 0.02
_LAYOUT_FLOORS = (0.02, 0.1)  # deviations over the cells below which tone and detail are taken for plain
_LOCAL_WEIGHT_OFFSET: Final = 0.1
_CLIPPED: Final = 5.0
_PLAIN_BELOW: Final = 0.01  # energy of the three finer bands: JPEG leaves more


def statistics_of(
    maps: NDArray[np.float16], mask_cells: NDArray[np.bool_], *, learned: bool = False
) -> NDArray[np.float64]:
    """Return all statistics but the layout of images [n, cells, 13] in an area: [n, S - 2] float64.

    The shares of ``learned`` images are what they may become with a little more or less light.
    """
    cells = maps[:, mask_cells].astype(np.float64)
    grey = cells[:, :, _GREY]
    level = grey.mean(axis=1)
    percentiles = np.percentile(grey, (2, 50, 98), axis=1)
    contrast = np.sqrt(np.maximum((np.square(cells[:, :, _DEVIATION]) + grey**2).mean(axis=1) - level**2, 0))
    energies = np.square(cells[:, :, _BAND : _BAND + _N_BANDS])
    bands = np.log(energies.mean(axis=1) + _ENERGY_OFFSET)
    weights = energies[:, :, -1] + _LOCAL_WEIGHT_OFFSET
    weights /= weights.sum(axis=1, keepdims=True)
    is_plain = energies[:, :, :3].sum(axis=2) < _PLAIN_BELOW
    if not learned:  # where light is clipped there is no detail either: that is what the other two shares are about
        is_plain &= (grey > _CLIPPED) & (grey < 255 - _CLIPPED)
    black, white = (
        cells[:, :, channel].mean(axis=1)
        for channel in ((_NEARLY_BLACK, _NEARLY_WHITE) if learned else (_BLACK, _WHITE))
    )
    blue, green, red = (np.log(cells[:, :, c].mean(axis=1) + _LEVEL_OFFSET) for c in (_BLUE, _GREEN, _RED))

    def local_ratio(fine: slice, coarse: slice) -> NDArray[np.float64]:
        above, below = (energies[:, :, part].sum(axis=2) + _ENERGY_OFFSET for part in (fine, coarse))
        return np.asarray((weights * np.log(above / below)).sum(axis=1))

    columns = [
        np.log(level + _LEVEL_OFFSET),
        *np.log(percentiles + _LEVEL_OFFSET),
        np.log(contrast + _CONTRAST_OFFSET),
        *bands.T,
        *np.log(np.median(energies[:, :, :3], axis=1) + _ENERGY_OFFSET).T,
        bands[:, 0] - bands[:, 2],
        bands[:, 1] - bands[:, 3],
        local_ratio(slice(0, 2), slice(2, 4)),
        local_ratio(slice(2, 3), slice(3, 4)),
        *(np.log(share + _SHARE_OFFSET) for share in (black, white, is_plain.mean(axis=1))),
        blue - green,
        red - green,
    ]
    return np.stack(columns, axis=1)


def layouts_of(maps: NDArray[np.float16], mask_cells: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return tone and detail of images over the cells of an area as unit rows; shorter where there is hardly any."""
    cells = maps[:, mask_cells].astype(np.float32)
    tone = np.log(cells[:, :, _GREY] + _LEVEL_OFFSET)
    detail = np.log(np.square(cells[:, :, _BAND : _BAND + 3]).sum(axis=2) + 1)
    rows = np.stack([tone, detail])
    rows -= rows.mean(axis=2, keepdims=True)
    least = np.reshape(_LAYOUT_FLOORS, (2, 1, 1)) * np.sqrt(rows.shape[2])
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), least), dtype=np.float32)


def dissimilarity(correlation: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how unlike layouts are on their logarithmic scale, from how they correlate, -1 … 1."""
    return np.log(np.maximum(1 - correlation.astype(np.float64), 0) + _LAYOUT_OFFSET)


def plain_value(name: str, value: float) -> float:
    """Return a statistic as a level, a root mean square, a share, a ratio or a correlation."""
    number = math.exp(value)
    if name.startswith("layout"):
        return 1 + _LAYOUT_OFFSET - number
    if name.startswith(("detail", "noise")):
        return math.sqrt(max(number - _ENERGY_OFFSET, 0))
    if name in ("black", "white", "plain"):
        return max(number - _SHARE_OFFSET, 0.0)
    if name == "contrast":
        return max(number - _CONTRAST_OFFSET, 0.0)
    if name in ("level", "dark_areas", "median", "bright_areas"):
        return max(number - _LEVEL_OFFSET, 0.0)
    return number
