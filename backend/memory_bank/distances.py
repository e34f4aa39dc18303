"""Distances from differences, and how far the same distances by matrix products may be off.

½|x - c|² = ½|x|² + ½|c|² - x·c turns many distances into one matrix product, which runs at the processor's peak where
differences run at the memory's. What it loses is digits: nearly equal numbers are subtracted. So a product only rules
out: what it cannot tell apart within ``rounding_bound`` is measured again from the differences themselves. The answers
are then those of the plain definition, whatever the BLAS, its threads or the processor.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_NUMBERS_AT_ONCE = 1 << 17
"""Numbers held at one time: 512 KiB of float32 stay in the processor's caches."""

_LARGEST_HALF_SQUARED_NORM = float(np.finfo(np.float32).max) / 16
"""So that |x - c|² ≤ 2|x|² + 2|c|² is far from an overflow."""


def half_squared_norms(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ½|v|² [N] float32 of each row of vectors [N, D], summed in double precision.

    Raises:
        ValueError: If a vector is not finite, or so long that a squared distance may not be finite in float32.
    """
    norms = np.empty(len(vectors))
    for part in _parts(len(vectors), vectors.shape[1]):
        rows = vectors[part].astype(np.float64)
        norms[part] = 0.5 * np.einsum("nd,nd->n", rows, rows)
    _check(norms)
    return norms.astype(np.float32)


def quick_norms(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``half_squared_norms`` [N] summed in single precision: off by D·u·½|v|² at most, in a quarter of the time.

    Raises:
        ValueError: As there.
    """
    norms: NDArray[np.float32] = np.float32(0.5) * np.einsum("nd,nd->n", vectors, vectors)
    _check(norms)
    return norms


def rounding_bound(dimensions: int, largest_half_squared_norm: float) -> float:
    """Return how far ½|x|² + ½|c|² - x·c in float32 and half the square of ``pair_distances`` can lie apart.

    A dot product of D terms is off by at most D·u·|x||c| in whatever order it is summed (Higham 2002, "Accuracy and
    Stability of Numerical Algorithms", §3.1; u = 2⁻²⁴ is float32's unit roundoff). The 80 is for everything else: the
    rounding of the halved squares, of their sum and of a threshold (under 16), and numpy's pairwise sum of the squared
    differences and its root (under 64 up to D = 8192). The smallest normal number takes care of underflow.

    Args:
        dimensions: D.
        largest_half_squared_norm: The largest ``half_squared_norms`` of all vectors concerned.
    """
    unit_roundoff = 2.0**-24
    return (dimensions + 80) * (unit_roundoff * 2.0 * largest_half_squared_norm + float(np.finfo(np.float32).tiny))


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
    for part in _parts(len(rows), left.shape[1]):
        # np.linalg.norm of the differences to the last bit, without its copies.
        differences = left.take(rows[part], axis=0)
        differences -= right.take(columns[part], axis=0)
        differences *= differences
        distances[part] = np.sqrt(differences.sum(axis=1))
    return distances


def _parts(rows: int, dimensions: int) -> Iterator[slice]:
    """Yield slices of rows that hold ``_NUMBERS_AT_ONCE`` together."""
    at_once = max(1, _NUMBERS_AT_ONCE // max(1, dimensions))
    return (slice(start, start + at_once) for start in range(0, rows, at_once))


def _check(norms: NDArray[np.floating]) -> None:
    if not (norms <= _LARGEST_HALF_SQUARED_NORM).all():  # False for NaN as well
        raise ValueError("vectors must be finite, and so must be their squared distances in float32")
