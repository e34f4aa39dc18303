"""Distances by matrix products, and a bound on how far those may be off.

|x - c|² = |x|² + |c|² - 2 x·c turns many distances into one matrix product, which runs at the processor's peak where
differences run at the memory's. What it loses is digits: two nearly equal numbers are subtracted. So here a product
only rules out: what it cannot tell apart within ``slack`` is measured again from the differences themselves. The
answers are then those of the plain definition, to the last bit, whatever the BLAS, its threads or the processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBERS_AT_ONCE = 1 << 18
"""Numbers held at one time: 1 MiB of float32 stays in the processor's second-level cache."""


def half_squares(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return half the squared length [N] float32 of each row of ``vectors`` [N, D], summed in double precision."""
    halves = np.empty(len(vectors), dtype=np.float32)
    at_once = _rows_at_once(vectors)
    for start in range(0, len(vectors), at_once):
        block = vectors[start : start + at_once].astype(np.float64)
        halves[start : start + len(block)] = 0.5 * np.einsum("nd,nd->n", block, block)
    return halves


def slack(dimensions: int, largest_half_square: float) -> float:
    """Return how far ½|x|² + ½|c|² - x·c in float32 and half the square of ``pair_distances`` can lie apart.

    A dot product of D terms is off by at most D·u·|x||c| in whatever order it is summed (Higham 2002, "Accuracy and
    Stability of Numerical Algorithms", §3.1; u = 2⁻²⁴ is float32's unit roundoff). The 80 is for everything else: the
    rounding of the halves, of their sum and of a threshold (under 16), and numpy's pairwise sum of the squared
    differences and its root (under 64 up to D = 8192). The smallest normal number takes care of underflow.

    Args:
        dimensions: D.
        largest_half_square: The largest ``half_squares`` of all vectors concerned.
    """
    unit_roundoff = 2.0**-24
    return (dimensions + 80) * (unit_roundoff * 2.0 * largest_half_square + float(np.finfo(np.float32).tiny))


def pair_distances(
    left: NDArray[np.float32], rows: NDArray[np.int64], right: NDArray[np.float32], columns: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the distance [P] float32 of each pair ``left[rows[p]]``, ``right[columns[p]]``, from its difference.

    Args:
        left: [N, D] float32.
        rows: [P] indices into ``left``.
        right: [M, D] float32.
        columns: [P] indices into ``right``.
    """
    distances = np.empty(len(rows), dtype=np.float32)
    at_once = _rows_at_once(left)
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        distances[part] = np.linalg.norm(left[rows[part]] - right[columns[part]], axis=1)
    return distances


def classes(vectors: int, k: int) -> int:
    """Return into how many classes ``fold`` should sort vectors for their k best to lie mostly in different ones."""
    return 1 if k == 1 else min(vectors, max(256, 8 * k))


def fold(better: np.ufunc, results: NDArray[Any], best: NDArray[Any]) -> None:
    """Bring the best result per class up to date: that of column j counts for class j modulo the number of classes.

    The k-th best of the classes is no better than the k-th best of all results, and mostly the same. So it bounds what
    a candidate must reach, and costs a walk through the results and a small sort where sorting them all costs more than
    their product.

    Args:
        better: ``np.maximum`` or ``np.minimum``.
        results: [N, B].
        best: [N, C], changed in place.
    """
    if best.shape[1] == 1:
        better(best, better.reduce(results, axis=1, keepdims=True), out=best)
        return
    for start in range(0, results.shape[1], best.shape[1]):
        part = results[:, start : start + best.shape[1]]
        better(best[:, : part.shape[1]], part, out=best[:, : part.shape[1]])


def _rows_at_once(vectors: NDArray[np.float32]) -> int:
    return max(1, _NUMBERS_AT_ONCE // max(1, int(vectors.shape[1])))
