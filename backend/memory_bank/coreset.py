"""k-center greedy: the few vectors whose balls cover all others with the smallest radius that greed can find."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.distances import half_squared_norms, pair_distances, rounding_bound
from backend.memory_bank.threads import one_blas_thread, parallel_width
from backend.utils import generator

_ROUND_MIN, _ROUND_MAX = 256, 4096
"""How many candidates a round may have, unless more are needed to tell the farthest one."""

_BLOCK = 1024
"""Rows whose products a thread holds at one time: [4096, 1024] float32 are 16 MiB."""

_THREADS_MAX = 4
"""Threads that the products are spread over."""

_WORTH_THREADS = 1 << 28
"""Multiplications from which more than one thread pays."""

_AHEAD = 64
"""Candidates whose products are computed at one time, the farthest first."""

_TABLE = 1 << 22
"""Products that a round may keep: 16 MiB."""

Progress = Callable[[int, int], None]
"""Called with (done, total) now and then."""

_Spread = Callable[[Callable[[int], None], Iterable[int]], Iterator[None]]
"""``map``, or that of a pool of threads."""


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
    vectors, first = np.ascontiguousarray(vectors, dtype=np.float32), int(generator(seed).integers(n))
    if vectors.size * m < _WORTH_THREADS:
        return _in_rounds(_Greedy(vectors, first, map), m, progress)
    with one_blas_thread(), ThreadPoolExecutor(min(parallel_width(), _THREADS_MAX)) as pool:
        return _in_rounds(_Greedy(vectors, first, pool.map), m, progress)


def _in_rounds(greedy: _Greedy, m: int, progress: Progress | None) -> NDArray[np.int64]:
    size, picked = _ROUND_MIN, 1
    while True:
        if progress is not None and picked:
            progress(len(greedy.picks), m)
        if len(greedy.picks) == m:
            return greedy.picks
        picked = greedy.round(size, m - len(greedy.picks))
        # Covering costs N · picked and running a round about size²; at the root of N · picked they are of one order.
        even = math.isqrt(len(greedy.vectors) * picked)
        size = min(max(even, _ROUND_MIN), _ROUND_MAX) if picked else 4 * size


class _Greedy:
    """One run of the greedy, in rounds.

    Picking needs few vectors, covering needs all. A round takes the ``size`` vectors farthest from the centres and runs
    the greedy among them alone. That is the whole greedy for as long as the farthest of them is farther than every
    vector left outside was at the start of the round, since distances to the nearest centre only fall. Then all picks
    of the round cover all vectors in one matrix product; one pick at a time that is a walk through memory per pick.

    Attributes:
        vectors: [N, D] float32.
        halves: [N] float32, half the squared length of each vector.
        slack: How far half a squared distance by products may be off.
        upper: [N] float32, half the squared distance to the nearest of the centres at the start of a round, within
            ``slack``; -inf for a centre.
        picks: The centres, in order of picking.
    """

    def __init__(self, vectors: NDArray[np.float32], first: int, spread: _Spread) -> None:
        self.vectors = vectors
        self.halves = half_squared_norms(vectors)
        largest = float(self.halves.max())
        if not np.isfinite(largest):
            raise ValueError("vectors must be finite, and so must be their squared lengths in float32")
        self.slack = rounding_bound(vectors.shape[1], largest)
        self.upper = np.full(len(vectors), np.inf, dtype=np.float32)
        self.picks = np.array([first], dtype=np.int64)
        self._covered = 0
        self._spread = spread

    def round(self, size: int, most: int) -> int:
        """Append the next picks, at most ``most``, and return how many.

        None if the ``size`` candidates cannot be told from the vectors outside: more are needed.
        """
        self._cover()
        n = len(self.vectors)
        if 4 * size >= n:  # all of them then, without a copy
            candidates = np.arange(n)
            rows, outside = self.vectors, -np.inf
        else:
            order = np.argpartition(self.upper, n - size - 1)
            candidates = np.sort(order[n - size :])  # ascending, so that argmax settles ties by the lowest index
            rows, outside = self.vectors[candidates], float(self.upper[order[n - size - 1]]) + self.slack
        distances = self._distances(rows, candidates)
        picks = candidates[_greedy_among(rows, self.halves[candidates], distances, most, outside, self.slack)]
        self.picks = np.concatenate([self.picks, picks])
        return len(picks)

    def _cover(self) -> None:
        new = self.picks[self._covered :]
        if len(new) == 0:
            return
        centres, centre_halves = self.vectors[new], self.halves[new][:, None]

        def cover(start: int) -> None:
            part = slice(start, start + _BLOCK)
            products = centres @ self.vectors[part].T
            products -= centre_halves
            np.minimum(self.upper[part], self.halves[part] - products.max(axis=0), out=self.upper[part])

        for _ in self._spread(cover, range(0, len(self.vectors), _BLOCK)):
            pass
        self.upper[new] = -np.inf
        self._covered = len(self.picks)

    def _distances(self, rows: NDArray[np.float32], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return each candidate's distance [P] to its nearest centre, as the definition has it; -inf for a centre."""
        distances = np.where(np.isneginf(self.upper[candidates]), -np.inf, np.inf).astype(np.float32)
        # A centre whose product lies below this is farther than another one, whatever rounding did to either.
        least = self.halves[candidates] - self.upper[candidates] - np.float32(2 * self.slack)

        def measure(top: int) -> None:
            for start in range(0, len(self.picks), _BLOCK):
                picks = self.picks[start : start + _BLOCK]
                centres = self.vectors[picks]
                products = rows[top : top + _BLOCK] @ centres.T
                products -= self.halves[picks]
                row, column = np.divmod(np.flatnonzero(products >= least[top : top + _BLOCK, None]), len(picks))
                row += top
                np.minimum.at(distances, row, pair_distances(rows, row, centres, column))

        for _ in self._spread(measure, range(0, len(rows), _BLOCK)):
            pass
        return distances


def _greedy_among(
    rows: NDArray[np.float32],
    halves: NDArray[np.float32],
    distances: NDArray[np.float32],
    most: int,
    outside: float,
    slack: float,
) -> list[int]:
    """Return up to ``most`` picks among ``rows`` [P, D], while they are certainly farther than any vector outside.

    Args:
        rows: The candidates.
        halves: [P] float32, half the squared length of each.
        distances: [P] float32, to the nearest centre; -inf for a centre. Brought up to date in place.
        most: Stop after so many.
        outside: Half the squared distance that no vector outside exceeds; -inf if there is none outside.
        slack: How far products may be off.
    """
    picks: list[int] = []
    # Only a centre whose product with a row reaches this can be nearer to the row than the ones before.
    least = halves - np.float32(0.5) * distances**2 - np.float32(slack)
    least[np.isneginf(distances)] = np.inf
    ahead = max(1, min(_AHEAD, len(rows), _TABLE // len(rows)))
    table = np.empty((0, len(rows)), dtype=np.float32)  # products of all rows with some that are likely to be picked
    table_row = np.full(len(rows), -1)
    while len(picks) < most:
        pick = int(np.argmax(distances))
        farthest = float(distances[pick])
        if farthest == 0 and np.isneginf(outside):
            # All that are left coincide with centres, and stay so.
            return [*picks, *map(int, np.flatnonzero(distances == 0)[: most - len(picks)])]
        if farthest < 0 or 0.5 * farthest**2 <= outside:
            break
        if table_row[pick] < 0:
            likely = np.union1d(np.argpartition(distances, -ahead)[-ahead:], pick)
            table = rows[likely] @ rows.T
            table_row.fill(-1)
            table_row[likely] = np.arange(len(likely))
        picks.append(pick)
        distances[pick], least[pick] = -np.inf, np.inf
        near = np.flatnonzero(table[table_row[pick]] >= least + halves[pick])
        measured = pair_distances(rows, near, rows, np.full(len(near), pick))
        distances[near] = np.minimum(distances[near], measured)
        least[near] = halves[near] - np.float32(0.5) * distances[near] ** 2 - np.float32(slack)
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
