"""k-center greedy: the few vectors whose balls cover all others with the smallest radius that greed can find."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from backend.utils import generator

Progress = Callable[[int, int], None]
"""Called with (done, total) now and then."""


def coreset_size(n: int, rate: float) -> int:
    """Return m = max(1, ceil(n · rate)).

    Raises:
        ValueError: If ``n`` < 1 or ``rate`` is not in (0, 1].
    """
    if n < 1:
        raise ValueError("a coreset needs at least one vector")
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be in (0, 1], got {rate}")
    return max(1, math.ceil(n * rate - 1e-9))  # 100 · 0.07 is 7.000000000000001 in floating point


def kcenter_greedy(
    vectors: NDArray[np.float32], m: int, *, seed: int = 0, progress: Progress | None = None
) -> NDArray[np.int64]:
    """Return the indices of m centres: the first drawn from the seed, each next one the farthest from all before.

    The exact greedy (Gonzalez 1985; Sener & Savarese 2018, arXiv:1708.00489), not one on a random projection: a rare
    but normal texture is a far point, and those are the ones that a projection loses. On a tie the lowest index wins.
    A vector is never picked twice, also when all that are left coincide with centres.

    Args:
        vectors: [N, D] float32.
        m: Number of centres, 1 … N.
        seed: Draws the first centre.
        progress: Told (picked, m) now and then.

    Returns:
        [m] int64, in the order of picking; for m = N all indices in ascending order.

    Raises:
        ValueError: If ``m`` is not in 1 … N or ``vectors`` is not [N, D].
    """
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be [N, D], got {vectors.shape}")
    n = len(vectors)
    if not 1 <= m <= n:
        raise ValueError(f"m must be in 1 … {n}, got {m}")
    if m == n:
        return np.arange(n, dtype=np.int64)
    first = int(generator(seed).integers(n))
    return _kcenter_greedy(np.ascontiguousarray(vectors, dtype=np.float32), m, first, progress)


def _kcenter_greedy(vectors: NDArray[np.float32], m: int, first: int, progress: Progress | None) -> NDArray[np.int64]:
    # |x - c|² = |x|² + |c|² - 2 x·c turns each step into one matrix-vector product. |c|² is the same for every x, so
    # half of it may be added once; rounding near zero does not matter: the *farthest* vector is sought.
    half_squares = 0.5 * np.einsum("nd,nd->n", vectors, vectors)
    picks = np.empty(m, dtype=np.int64)
    picks[0] = first
    nearest = np.full(len(vectors), np.inf, dtype=np.float32)  # half the squared distance to the nearest centre
    products = np.empty(len(vectors), dtype=np.float32)
    for step in range(1, m):
        centre = picks[step - 1]
        np.dot(vectors, vectors[centre], out=products)
        np.subtract(half_squares, products, out=products)
        products += half_squares[centre]
        np.minimum(nearest, products, out=nearest)
        nearest[centre] = -np.inf
        picks[step] = int(np.argmax(nearest))
        if progress is not None and step % 64 == 0:
            progress(step, m)
    if progress is not None:
        progress(m, m)
    return picks


def kcenter_greedy_reference(vectors: NDArray[np.float32], m: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return what ``kcenter_greedy`` returns, computed as the definition reads: differences, norms, minimum, argmax."""
    picks = [int(generator(seed).integers(len(vectors)))]
    nearest = np.full(len(vectors), np.inf, dtype=np.float32)
    while len(picks) < m:
        distance = np.linalg.norm(vectors - vectors[picks[-1]], axis=1)
        nearest = np.minimum(nearest, distance)
        nearest[picks] = -np.inf
        picks.append(int(np.argmax(nearest)))
    return np.asarray(picks, dtype=np.int64)
