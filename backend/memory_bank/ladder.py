"""Candidates for the nearest neighbours: ask the cheapest precision first, and a finer one only where it cannot tell.

Every rung returns all vectors that can be among the k nearest given how far its arithmetic may be off, so nothing is
lost by asking a coarse rung. A query for which a rung leaves many candidates is passed up.

- the directions that the vectors vary in most, a sixth of the products (`projection`): for large memories;
- bf16 matrix units, twice float32's speed or more: likewise, where the processor has them (`bf16`);
- float32 BLAS;
- float64 BLAS: for memories full of (nearly) equal vectors.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.distances import classes, fold, half_squares, slack
from backend.memory_bank.projection import ProjectedCandidates
from backend.memory_bank.threads import one_blas_thread, spread, spread_width

T = TypeVar("T")

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Indices of queries and of vectors, both [P]."""

_Rung = Callable[[NDArray[np.float32], int], Pairs]

_LARGE = 2048
"""Vectors from which a projection or a bf16 copy, half the memory again, may pay."""

_PAYS_AFTER = 1024
"""Queries after which they have paid; many an index is asked once, for the scores of one left-out image."""

_PROJECTED_FROM = 256
"""Dimensions from which a third of them saves more than the projection costs."""

_TRIED_WITH = 4096
"""Queries that tell whether a projection settles most of what it is asked."""

_BLOCK = 1024
"""Vectors whose products with the queries are held at one time: a few hundred queries' stay in the cache."""

_WORTH_THREADS = 1 << 26
"""Multiplications from which more than one thread pays."""


class Ladder:
    """Finds candidates for the nearest of some vectors; safe to call from several threads.

    Args:
        vectors: [M, D] float32, finite. Kept, not copied.

    Raises:
        ValueError: If the vectors are not finite.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors
        self._halves = half_squares(vectors)
        self._largest_half = float(self._halves.max())
        if not np.isfinite(self._largest_half):
            raise ValueError("vectors must be finite, and so must be their squared lengths in float32")
        self._coarse: Future[_Rung | None] | None = None
        self._lock = threading.Lock()
        self._asked = self._tried = self._passed_up = 0

    def __call__(self, query: NDArray[np.float32], k: int) -> Pairs:
        """Return pairs (query, vector) in which the k nearest vectors of each query [N, D] float32, finite, occur."""
        largest = 0.5 * float(np.einsum("nd,nd->n", query, query).max()) * 1.001  # einsum sums in float32
        off = slack(query.shape[1], max(largest, self._largest_half))
        rungs: list[_Rung] = [partial(self._float32, off=off), partial(self._float64, off=off)]
        with one_blas_thread():
            return self._climb(rungs, query, k)

    def _climb(self, rungs: list[_Rung], query: NDArray[np.float32], k: int) -> Pairs:
        coarse = self._coarse_rung(len(query))
        if coarse is not None:
            rungs.insert(0, coarse)

        open_rows = np.arange(len(query))
        found: list[Pairs] = []
        for rung in rungs:
            rows, columns = self._on_all_cores(rung, query[open_rows], k)
            # More differences than this cost as much as the next rung does, whose least cost is a walk through memory.
            most = max(64, 4 * k) if len(rows) > 8 * k * len(query) else len(rows)
            settled = np.bincount(rows, minlength=len(open_rows)) <= most
            keep = settled[rows]
            found.append((open_rows[rows[keep]], columns[keep]))
            open_rows = open_rows[~settled]
            if rung is coarse:
                self._judge(len(query), len(open_rows))
            if len(open_rows) == 0:
                break
        rows, columns = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return rows, columns

    def _on_all_cores(self, rung: _Rung, query: NDArray[np.float32], k: int) -> Pairs:
        width = spread_width() if query.size * len(self._vectors) >= _WORTH_THREADS else 1
        if width == 1 or not _leaves_threads_to_us(rung):
            return rung(query, k)
        starts = np.linspace(0, len(query), width, endpoint=False).astype(int)
        parts = spread(lambda part: rung(part, k), np.split(query, starts[1:]))
        return (
            np.concatenate([rows + start for (rows, _), start in zip(parts, starts, strict=True)]),
            np.concatenate([columns for _, columns in parts]),
        )

    def _coarse_rung(self, queries: int) -> _Rung | None:
        """Return the rung below float32 once it is there; made beside the searches, which go on without it."""
        if len(self._vectors) < _LARGE:
            return None
        with self._lock:
            self._asked += queries
            if self._coarse is None and self._asked >= _PAYS_AFTER:
                self._coarse = _in_background(partial(_coarse_rung_of, self._vectors))
            return self._coarse.result() if self._coarse is not None and self._coarse.done() else None

    def _judge(self, queries: int, passed_up: int) -> None:
        """Drop a projection that settles less than half of what it is asked: then bf16 is worth more."""
        with self._lock:
            self._tried += queries
            self._passed_up += passed_up
            if self._tried >= _TRIED_WITH and 2 * self._passed_up > self._tried:
                self._tried = self._passed_up = 0
                self._coarse = _in_background(partial(_bf16_rung_of, self._vectors))

    def _float32(self, query: NDArray[np.float32], k: int, off: float) -> Pairs:
        n, m = len(query), len(self._vectors)
        scratch = np.empty(n * min(m, _BLOCK), dtype=np.float32)
        best = np.full((n, classes(m, k)), -np.inf, dtype=np.float32)
        found = []
        for start in range(0, m, _BLOCK):
            # ½|q|² is the same for all vectors: the nearest is the one with the largest q·v - ½|v|².
            block = self._vectors[start : start + _BLOCK]
            products = np.matmul(query, block.T, out=scratch[: n * len(block)].reshape(n, len(block)))
            products -= self._halves[start : start + _BLOCK]
            fold(np.maximum, products, best)
            least = np.partition(best, -k, axis=1)[:, -k] - np.float32(2 * off)
            rows, columns = np.divmod(np.flatnonzero(products >= least[:, None]), len(block))
            found.append((rows, columns + start, products[rows, columns]))
        rows, columns, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        keep = values >= least[rows]
        return rows[keep], columns[keep]

    def _float64(self, query: NDArray[np.float32], k: int, off: float) -> Pairs:
        # Exactly k: what double precision cannot tell apart is a tie, which the lower index wins.
        tie = 2 * off * 2.0**-29  # the unit roundoffs are 2⁻²⁴ and 2⁻⁵³
        columns = np.empty((len(query), k), dtype=np.int64)
        at_once = max(1, (1 << 22) // len(self._vectors))
        for top in range(0, len(query), at_once):
            part = query[top : top + at_once].astype(np.float64)
            products = np.empty((len(part), len(self._vectors)))
            for start in range(0, len(self._vectors), _BLOCK):
                block = self._vectors[start : start + _BLOCK].astype(np.float64)
                products[:, start : start + _BLOCK] = part @ block.T - 0.5 * np.einsum("nd,nd->n", block, block)
            kth = np.partition(products, -k, axis=1)[:, -k, None]
            above = products > kth + tie
            tied = (products >= kth - tie) & ~above
            tied &= np.cumsum(tied, axis=1) <= k - above.sum(axis=1, keepdims=True)
            columns[top : top + at_once] = np.nonzero(above | tied)[1].reshape(-1, k)
        return np.repeat(np.arange(len(query)), k), columns.ravel()


def _coarse_rung_of(vectors: NDArray[np.float32]) -> _Rung | None:
    projected = ProjectedCandidates.of(vectors) if vectors.shape[1] >= _PROJECTED_FROM else None
    return projected or _bf16_rung_of(vectors)


def _bf16_rung_of(vectors: NDArray[np.float32]) -> _Rung | None:
    # Only where torch is loaded for the network's sake anyway: it takes seconds and hundreds of megabytes.
    if "torch" not in sys.modules:
        return None
    from backend.memory_bank.bf16 import Bf16Candidates, has_bf16_units

    return Bf16Candidates(vectors) if has_bf16_units() else None


def _leaves_threads_to_us(rung: _Rung) -> bool:
    """Return whether a rung computes in the thread that calls it: torch's products use threads of their own."""
    return isinstance(rung, ProjectedCandidates | partial)


def _in_background(call: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="nearest-neighbours", daemon=True).start()
    return future
