"""Candidates for the nearest neighbours: ask the cheapest precision first, and a finer one only where it cannot tell.

Every rung returns all vectors that can be among the k nearest given how far its arithmetic may be off, so nothing is
lost by asking a coarse rung. A query for which a rung leaves many candidates is passed up.

- bf16 matrix units, twice float32's speed or more: for large memories, where the processor has them (`backend.bf16`);
- float32 BLAS;
- float64 BLAS: for memories full of (nearly) equal vectors.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from backend.distances import classes, fold, half_squares, slack

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Indices of queries and of vectors, both [P]."""

_Rung = Callable[[NDArray[np.float32], int], Pairs]

_BF16_FROM = 2048
"""Vectors from which a bf16 copy, half the memory again, may pay."""

_BF16_AFTER = 1024
"""Queries after which it has paid; many an index is asked once, for the scores of one left-out image."""

_BLOCK = 4096
"""Vectors whose products with the queries are held at one time."""


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
        self._bf16: _Rung | None = None
        self._bf16_lock = threading.Lock()
        self._asked = 0

    def __call__(self, query: NDArray[np.float32], k: int) -> Pairs:
        """Return pairs (query, vector) in which the k nearest vectors of each query [N, D] float32, finite, occur."""
        largest = 0.5 * float(np.einsum("nd,nd->n", query, query).max()) * 1.001  # einsum sums in float32
        off = slack(query.shape[1], max(largest, self._largest_half))
        rungs: list[_Rung] = [partial(self._float32, off=off), partial(self._float64, off=off)]
        bf16 = self._bf16_rung(len(query))
        if bf16 is not None:
            rungs.insert(0, bf16)

        most = max(64, 4 * k)  # more differences than that cost as much as the next rung
        open_rows = np.arange(len(query))
        found: list[Pairs] = []
        for rung in rungs:
            rows, columns = rung(query[open_rows], k)
            settled = np.bincount(rows, minlength=len(open_rows)) <= most
            keep = settled[rows]
            found.append((open_rows[rows[keep]], columns[keep]))
            open_rows = open_rows[~settled]
            if len(open_rows) == 0:
                break
        rows, columns = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return rows, columns

    def _bf16_rung(self, queries: int) -> _Rung | None:
        # Only where torch is loaded for the network's sake anyway: it takes seconds and hundreds of megabytes.
        if len(self._vectors) < _BF16_FROM or "torch" not in sys.modules:
            return None
        from backend.bf16 import Bf16Candidates, has_bf16_units

        with self._bf16_lock:
            self._asked += queries
            if self._bf16 is None and self._asked >= _BF16_AFTER and has_bf16_units():
                self._bf16 = Bf16Candidates(self._vectors)
            return self._bf16

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
