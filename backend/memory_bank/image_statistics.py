"""Whether an image can be one of a ROI: simple statistics of it, beside the ranges that they have on the good images.

Light, contrast, sharpness, colour and the coarse layout of an image are compared, each on a logarithmic scale. The
distance of a statistic is how far it lies outside the learned range, in units of half that range, or of a floor where
good images hardly differ: what no camera repeats exactly must not count as strange.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from backend.imaging import appearance
from backend.imaging.position_map import PLACE_CHANNELS

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

_FLOORS = np.array([*FLOORS.values()])
_ONLY_BELOW = np.array([name.startswith(("detail", "sharpness")) for name in NAMES])
_ONLY_ABOVE = np.isin(
    NAMES, ("noise_0_1", "noise_1_2", "noise_2_4", "black", "white", "plain", "layout_tone", "layout_detail")
)

_GREY, _DEVIATION, _BAND, _BLACK, _NEARLY_BLACK, _WHITE, _NEARLY_WHITE, _BLUE, _GREEN, _RED = (
    len(PLACE_CHANNELS) + appearance.CHANNELS.index(name)
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

_RANGE_OF = 40
"""Ranges of fewer images are widened to what so many would have, were they normally distributed."""

_MINORITY: Final = 0.1
"""Share of the images that may be unlike the others without being taken for a kind of good image of its own."""

_MIN_FOR_STRANGE: Final = 5
_STRANGE_FROM: Final = 3.0
"""Distance from the median: as far as an inspected image is rejected, which lies two units beyond a range of ± one."""


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One statistic of an image beside the learned ones, in plain units: levels, shares, ratios or a correlation.

    Attributes:
        low, high: The learned range.
        distance: How far the value lies outside it; negative below it, 0 inside.
    """

    value: float
    low: float
    high: float
    distance: float


@dataclass(frozen=True, kw_only=True)
class LearnedRanges:
    """The ranges of the statistics on good images; ``learn_ranges`` makes them.

    Attributes:
        low, high, unit: [S] float64, by ``NAMES``; what distances are measured from, and in.
        layouts: [2, n, cells] float32, tone and detail of the images over the cells as unit rows.
        mask_cells: [cells] bool, the area.
        strange: For each image that is unlike the others by its index, the distances [S] that show it. Such images take
            no part in the ranges.
    """

    low: NDArray[np.float64] = field(compare=False)
    high: NDArray[np.float64] = field(compare=False)
    unit: NDArray[np.float64] = field(compare=False)
    layouts: NDArray[np.float32] = field(compare=False)
    mask_cells: NDArray[np.bool_] = field(compare=False)
    strange: dict[int, dict[str, Statistic]] = field(compare=False)

    def compare(self, position_map: NDArray[np.float16], *, finest_px: float = 0.0) -> dict[str, Statistic]:
        """Return the statistics of an image beside the learned ones.

        Args:
            position_map: [cells, 17] float16.
            finest_px: Statistics of finer detail than that are left out, see ``FINEST_PX``.
        """
        layouts = _layouts(position_map[None], self.mask_cells)
        similarity = np.einsum("lic,lnc->ln", layouts, self.layouts).max(axis=1)
        values = np.concatenate([_statistics(position_map[None], self.mask_cells)[0], _dissimilarity(similarity)])
        found = _beside(values, self.low, self.high, self.unit)
        return {name: each for name, each in found.items() if FINEST_PX.get(name, math.inf) >= finest_px}


def learn_ranges(
    position_maps: NDArray[np.float16], parts: Sequence[str], mask_cells: NDArray[np.bool_]
) -> LearnedRanges:
    """Return the ranges of good images.

    An image that lies far outside what the middle four fifths of the images let expect is left out as strange, from
    five images on: a black frame among the good images must not make black frames good ones.

    Args:
        position_maps: [n, cells, 17] float16, n ≥ 1, see ``backend.imaging.position_map``.
        parts: The part of each image: the layout is compared with that of other parts only.
        mask_cells: [cells] bool, the area; without any cell in it, all cells.
    """
    mask_cells = mask_cells if mask_cells.any() else np.ones_like(mask_cells)
    layouts = _layouts(position_maps, mask_cells)
    similarity = layouts @ layouts.transpose(0, 2, 1)
    names = np.asarray(parts, dtype=object)
    similarity[:, names[:, None] == names[None, :]] = -np.inf
    has_other = np.isfinite(similarity).any(axis=2)
    similarity = np.where(has_other, similarity.max(axis=2), 0.0)  # one part alone says nothing of others
    values = np.concatenate(
        [_statistics(position_maps, mask_cells, learned=True), _dissimilarity(similarity).T], axis=1
    )

    n = len(values)
    centre_low, centre_high, centre_unit = _centre(values)
    distances = _distances(values, centre_low, centre_high, centre_unit)
    is_strange = np.abs(distances).max(axis=1) > _STRANGE_FROM if n >= _MIN_FOR_STRANGE else np.zeros(n, bool)
    usual = values[~is_strange]
    low, high = usual.min(axis=0), usual.max(axis=0)
    unit = _unit((high - low) / 2, expected=_half_range(len(usual)), n=len(usual))
    return LearnedRanges(
        low=low,
        high=high,
        unit=unit,
        layouts=layouts[:, ~is_strange],
        mask_cells=mask_cells,
        strange={int(i): _beside(values[i], low, high, unit) for i in np.flatnonzero(is_strange)},
    )


def _statistics(
    maps: NDArray[np.float16], mask_cells: NDArray[np.bool_], *, learned: bool = False
) -> NDArray[np.float64]:
    """Return all statistics but the layout of images [n, cells, 17] in an area: [n, S - 2] float64.

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


def _layouts(maps: NDArray[np.float16], mask_cells: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return tone and detail of images over the cells of an area as unit rows; shorter where there is hardly any."""
    cells = maps[:, mask_cells].astype(np.float32)
    tone = np.log(cells[:, :, _GREY] + _LEVEL_OFFSET)
    detail = np.log(np.square(cells[:, :, _BAND : _BAND + 3]).sum(axis=2) + 1)
    rows = np.stack([tone, detail])
    rows -= rows.mean(axis=2, keepdims=True)
    least = np.reshape(_LAYOUT_FLOORS, (2, 1, 1)) * np.sqrt(rows.shape[2])
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), least), dtype=np.float32)


def _dissimilarity(correlation: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.log(np.maximum(1 - correlation.astype(np.float64), 0) + _LAYOUT_OFFSET)


def _distances(
    values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], unit: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far values lie outside a range, in units: negative below it, 0 inside."""
    above = np.where(_ONLY_BELOW, 0.0, np.maximum(values - high, 0.0))
    below = np.where(_ONLY_ABOVE, 0.0, np.minimum(values - low, 0.0))
    return np.asarray((above + below) / unit)


def _unit(half_range: NDArray[np.float64], *, expected: float, n: int) -> NDArray[np.float64]:
    """Return what distances are measured in, given half the range of n values and what it is for normal ones, in σ.

    Few values say little about their range: the unit is larger for them.
    """
    widened = half_range * (_half_range(_RANGE_OF) / expected if expected > 0 else 1.0) * (1 + 3 / n)
    return np.asarray(np.maximum(_FLOORS * (1 + 2 / n), widened))


def _half_range(n: int, left_out: int = 0) -> float:
    """Return half the range that n normal values are expected to have without the outermost on each side, in σ."""
    return float(ndtri((n - left_out - 0.375) / (n + 0.25))) if n > 1 + 2 * left_out else 0.0


def _centre(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return median, median and unit of the values, from what is left without a tenth of them on each side."""
    n = len(values)
    left_out = math.ceil(_MINORITY * n) if n >= _MIN_FOR_STRANGE else 0
    ordered = np.sort(values, axis=0)
    median = np.median(ordered, axis=0)
    half_range = (ordered[n - 1 - left_out] - ordered[left_out]) / 2
    return median, median, _unit(half_range, expected=_half_range(n, left_out), n=n)


def _beside(
    values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], unit: NDArray[np.float64]
) -> dict[str, Statistic]:
    distances = _distances(values, low, high, unit)
    return {
        name: Statistic(
            value=_plain(name, value), low=_plain(name, least), high=_plain(name, most), distance=float(distance)
        )
        for name, value, least, most, distance in zip(NAMES, values, low, high, distances, strict=True)
    }


def _plain(name: str, value: float) -> float:
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
