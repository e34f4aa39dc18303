"""k-center greedy: the few vectors whose balls cover all others with the smallest radius that greed can find."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.distances import half_squared_norms, pair_distances, rounding_bound
from backend.memory_bank.nearest import NearestNeighbours
from backend.memory_bank.threads import parallel_map
from backend.utils import generator

_CANDIDATES_MIN, _CANDIDATES_MAX = 256, 4096
"""How many candidates a round may have, unless more are needed to tell the farthest one."""

_BLOCK = 1024
"""Rows whose products a thread holds at one time: [4096, 1024] float32 are 16 MiB."""

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

    Picking needs few vectors, covering needs all. So it goes in rounds. A round takes the candidates, the vectors
    farthest from the centres, and runs the greedy among them alone. That is the whole greedy for as long as the
    farthest of them is farther than every other vector was at the start of the round, since distances to the nearest
    centre only fall. Then all picks of the round cover all vectors in one matrix product; one pick at a time that is a
    walk through memory per pick.

    Args:
        vectors: [N, D] float32.
        m: Number of centres, 1 … N.
        seed: Draws the first centre.
        progress: Called with (picked, m) after each round that picked.

    Returns:
        [m] int64, in the order of picking; for m = N all indices in ascending order.

    Raises:
        ValueError: If ``m`` is not in 1 … N, or ``vectors`` is not [N, D] or not finite.
    """
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be [N, D], got {vectors.shape}")
    n = len(vectors)
    if not 1 <= m <= n:
        raise ValueError(f"m must be in 1 … {n}, got {m}")
    if m == n:
        return np.arange(n, dtype=np.int64)
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    norms = half_squared_norms(vectors)
    bound = rounding_bound(vectors.shape[1], float(norms.max()))
    upper = np.full(n, np.inf, dtype=np.float32)  # ½ squared distance to the nearest centre, within the bound
    picks = new = np.array([int(generator(seed).integers(n))], dtype=np.int64)
    size = _CANDIDATES_MIN
    while True:
        if len(new):
            _cover(vectors, norms, upper, new)
            # Covering costs N · new and a round about size²; at the root of N · new they are of one order.
            size = min(max(math.isqrt(n * len(new)), _CANDIDATES_MIN), _CANDIDATES_MAX)
            if progress is not None:
                progress(len(picks), m)
        else:
            size *= 4
        if len(picks) == m:
            return picks
        candidates, outside = _farthest(upper, size)
        rows = vectors if len(candidates) == n else vectors[candidates]
        distances = NearestNeighbours(vectors[picks]).search(rows)[0][:, 0]
        distances[np.isneginf(upper[candidates])] = -np.inf
        new = candidates[_greedy_among(rows, norms[candidates], distances, m - len(picks), outside + bound, bound)]
        picks = np.concatenate([picks, new])


def _cover(
    vectors: NDArray[np.float32], norms: NDArray[np.float32], upper: NDArray[np.float32], new: NDArray[np.int64]
) -> None:
    """Bring ``upper`` [N], half the squared distance to the nearest centre, up to date; -inf for a centre."""
    centres, centre_norms = vectors[new], norms[new][:, None]

    def cover(start: int) -> None:
        part = slice(start, start + _BLOCK)
        products = centres @ vectors[part].T
        products -= centre_norms
        np.minimum(upper[part], norms[part] - products.max(axis=0), out=upper[part])

    parallel_map(cover, range(0, len(vectors), _BLOCK))
    upper[new] = -np.inf


def _farthest(upper: NDArray[np.float32], size: int) -> tuple[NDArray[np.int64], float]:
    """Return the indices of the ``size`` largest, ascending so that ties go to the lowest, and the next largest value.

    With about as many as there are it is all of them, and -inf.
    """
    n = len(upper)
    if 4 * size >= n:
        return np.arange(n), -np.inf
    order = np.argpartition(upper, n - size - 1)
    return np.sort(order[n - size :]), float(upper[order[n - size - 1]])


def _greedy_among(
    rows: NDArray[np.float32],
    norms: NDArray[np.float32],
    distances: NDArray[np.float32],
    most: int,
    outside: float,
    bound: float,
) -> list[int]:
    """Return up to ``most`` picks among ``rows`` [P, D], while they are certainly farther than any vector outside.

    Args:
        rows: The candidates.
        norms: [P] float32, half the squared length of each.
        distances: [P] float32, to the nearest centre; -inf for a centre. Brought up to date in place.
        most: Stop after so many.
        outside: Half the squared distance that no vector outside exceeds; -inf if there is none outside.
        bound: How far half a squared distance by products may be off.
    """
    picks: list[int] = []
    # Only a centre whose product with a row reaches this can be nearer to the row than the ones before.
    least = norms - np.float32(0.5) * distances**2 - np.float32(bound)
    least[np.isneginf(distances)] = np.inf
    while len(picks) < most:
        pick = int(np.argmax(distances))
        farthest = float(distances[pick])
        if farthest == 0 and np.isneginf(outside):
            # All that are left coincide with centres, and stay so.
            return [*picks, *map(int, np.flatnonzero(distances == 0)[: most - len(picks)])]
        if farthest < 0 or 0.5 * farthest**2 <= outside:
            break
        picks.append(pick)
        distances[pick], least[pick] = -np.inf, np.inf
        near = np.flatnonzero(rows @ rows[pick] >= least + norms[pick])
        measured = pair_distances(rows, near, rows, np.full(len(near), pick))
        distances[near] = np.minimum(distances[near], measured)
        least[near] = norms[near] - np.float32(0.5) * distances[near] ** 2 - np.float32(bound)
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
