"""The ranges that the statistics of images have on good ones, and how far another image lies outside them.

The distance of a statistic is how far it lies outside the learned range, in units of half that range, or of a floor
where good images hardly differ: what no camera repeats exactly must not count as strange.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from backend.memory_bank.image_statistics import (
    FINEST_PX,
    FLOOR_VALUES,
    NAMES,
    ONLY_ABOVE,
    ONLY_BELOW,
    dissimilarity,
    layouts_of,
    plain_value,
    statistics_of,
)

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

    def compare(self, appearance_map: NDArray[np.float16], *, finest_px: float = 0.0) -> dict[str, Statistic]:
        """Return the statistics of an image beside the learned ones.

        Args:
            appearance_map: [cells, 13] float16.
            finest_px: Statistics of finer detail than that are left out, see ``FINEST_PX``.
        """
        layouts = layouts_of(appearance_map[None], self.mask_cells)
        similarity = np.einsum("lic,lnc->ln", layouts, self.layouts).max(axis=1)
        values = np.concatenate([statistics_of(appearance_map[None], self.mask_cells)[0], dissimilarity(similarity)])
        found = _beside(values, self.low, self.high, self.unit)
        return {name: each for name, each in found.items() if FINEST_PX.get(name, math.inf) >= finest_px}


def learn_ranges(
    appearance_maps: NDArray[np.float16], parts: Sequence[str], mask_cells: NDArray[np.bool_]
) -> LearnedRanges:
    """Return the ranges of good images.

    An image that lies far outside what the middle four fifths of the images let expect is left out as strange, from
    five images on: a black frame among the good images must not make black frames good ones.

    Args:
        appearance_maps: [n, cells, 13] float16, n ≥ 1, see ``backend.imaging.appearance``.
        parts: The part of each image: the layout is compared with that of other parts only.
        mask_cells: [cells] bool, the area; without any cell in it, all cells.
    """
    mask_cells = mask_cells if mask_cells.any() else np.ones_like(mask_cells)
    layouts = layouts_of(appearance_maps, mask_cells)
    similarity = layouts @ layouts.transpose(0, 2, 1)
    names = np.asarray(parts, dtype=object)
    similarity[:, names[:, None] == names[None, :]] = -np.inf
    has_other = np.isfinite(similarity).any(axis=2)
    similarity = np.where(has_other, similarity.max(axis=2), 0.0)  # one part alone says nothing of others
    values = np.concatenate(
        [statistics_of(appearance_maps, mask_cells, learned=True), dissimilarity(similarity).T], axis=1
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


def _distances(
    values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], unit: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far values lie outside a range, in units: negative below it, 0 inside."""
    above = np.where(ONLY_BELOW, 0.0, np.maximum(values - high, 0.0))
    below = np.where(ONLY_ABOVE, 0.0, np.minimum(values - low, 0.0))
    return np.asarray((above + below) / unit)


def _unit(half_range: NDArray[np.float64], *, expected: float, n: int) -> NDArray[np.float64]:
    """Return what distances are measured in, given half the range of n values and what it is for normal ones, in σ.

    Few values say little about their range: the unit is larger for them.
    """
    widened = half_range * (_half_range(_RANGE_OF) / expected if expected > 0 else 1.0) * (1 + 3 / n)
    return np.asarray(np.maximum(FLOOR_VALUES * (1 + 2 / n), widened))


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
            value=plain_value(name, value),
            low=plain_value(name, least),
            high=plain_value(name, most),
            distance=float(distance),
        )
        for name, value, least, most, distance in zip(NAMES, values, low, high, distances, strict=True)
    }
