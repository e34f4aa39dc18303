"""Quantiles of many values in little room: histograms with bins of a fixed relative width, which can be added up.

A value falls into a bin whose edges differ by twice the relative error, so that a quantile is off by no more than that
of itself: 0.5 % for scores and ratios, 2 % for the statistics of an image. Counts are exact.

Masson, Rim, Lee 2019, "DDSketch", arXiv:1908.10693; without its limit on the number of bins.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SERIES: Final[Mapping[str, int]] = {
    name: number
    for number, name in enumerate(
        [
            "score", "ratio",
            "level", "dark_areas", "median", "bright_areas", "contrast",
            "sharpness_fine", "sharpness_medium", "sharpness_local", "sharpness_coarse",
            "black", "white", "plain", "blue", "red", "layout_tone", "layout_detail",
            "detail_0_1", "detail_1_2", "detail_2_4", "detail_4_8", "noise_0_1", "noise_1_2", "noise_2_4",
        ]
    )
}  # fmt: skip
"""What is counted, by the number that it has in a file. New ones go to the end."""

_NAMES: Final = tuple(SERIES)
IMAGE_SERIES: Final = tuple(name for name in SERIES if name not in ("score", "ratio"))

_ERRORS: Final = np.array([0.005 if name in ("score", "ratio") else 0.02 for name in SERIES])
_LOG_WIDTHS: Final = np.log((1 + _ERRORS) / (1 - _ERRORS))
_LEAST: Final = 1e-6
"""Smaller values count as 0."""
_MOST: Final = 1e9
_OFFSET: Final = 4096
_ZERO: Final = 32768


@dataclass(frozen=True)
class Sketch:
    """How often each bin was met.

    Attributes:
        bins: [N] int64, ascending: number of the series · 65536 + number of the bin.
        counts: [N] int64, values in each.
    """

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, values: Sequence[tuple[int, float]]) -> Sketch:
        """Return the sketch of values, each with the number of its series; those that are not finite do not count."""
        if not values:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64))
        table = np.array(values, dtype=np.float64)
        table = table[np.isfinite(table[:, 1])]
        series, size = table[:, 0].astype(np.int64), np.abs(table[:, 1])
        logs = np.log(np.clip(size, _LEAST, _MOST)) / _LOG_WIDTHS[series]
        codes = np.where(size < _LEAST, 0, (np.ceil(logs) + _OFFSET) * np.sign(table[:, 1])).astype(np.int64)
        bins, counts = np.unique(series * 65536 + _ZERO + codes, return_counts=True)
        return cls(bins, counts.astype(np.int64))

    @classmethod
    def sum(cls, sketches: Iterable[Sketch]) -> Sketch:
        """Return the sketch of the values of all."""
        parts = [*sketches]
        if len(parts) == 1:
            return parts[0]
        bins, where = np.unique(
            np.concatenate([part.bins for part in parts] or [np.empty(0, np.int64)]), return_inverse=True
        )
        counts = np.concatenate([part.counts for part in parts] or [np.empty(0, np.int64)])
        return cls(bins, np.bincount(where, counts, len(bins)).astype(np.int64))

    @classmethod
    def from_bytes(cls, data: bytes) -> Sketch:
        """Return the sketch that ``to_bytes`` wrote.

        Raises:
            ValueError: If it is none.
        """
        try:
            table = np.frombuffer(zlib.decompress(data), dtype="<u4").reshape(2, -1).astype(np.int64)
        except zlib.error as error:
            raise ValueError("no sketch") from error
        return cls(table[0], table[1])

    def to_bytes(self) -> bytes:
        """Return the sketch as bytes."""
        return zlib.compress(np.stack([self.bins, self.counts]).astype("<u4").tobytes(), 1)

    def count(self, name: str) -> int:
        """Return how many values of a series were counted."""
        first, last = np.searchsorted(self.bins, [SERIES[name] * 65536, (SERIES[name] + 1) * 65536])
        return int(self.counts[first:last].sum())

    def quantiles(self, q: float) -> dict[str, float]:
        """Return of each series that has values the smallest that a share ``q`` of them do not exceed."""
        edges = np.searchsorted(self.bins, np.arange(len(SERIES) + 1) * 65536)
        cumulative = np.concatenate([[0], np.cumsum(self.counts)])
        totals = np.diff(cumulative[edges])
        ranks = cumulative[edges[:-1]] + np.maximum(np.ceil(q * totals), 1)
        numbers = np.flatnonzero(totals)
        codes = self.bins[np.searchsorted(cumulative[1:], ranks[numbers])] - numbers * 65536 - _ZERO
        # Between the edges of a bin, where the relative error is the same to both.
        sizes = np.exp((np.abs(codes) - _OFFSET) * _LOG_WIDTHS[numbers]) * (1 - _ERRORS[numbers])
        values = np.where(codes == 0, 0.0, np.sign(codes) * sizes)
        return {_NAMES[number]: float(value) for number, value in zip(numbers, values, strict=True)}
