"""Candidates for the nearest neighbours from a projection, with a bound on what it can hide.

The patches of one ROI look alike: a sixth of the dimensions holds nearly all of how they differ. An orthogonal
projection onto those never makes a distance longer. So whoever is farther in the projection than some vector is in
truth cannot be the nearest, and the products take a sixth of the work. Nothing is approximated: what the projection
cannot rule out is measured in full.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.distances import half_squares, pair_distances, slack

_KEPT = 0.98
"""Share of the variance that the projection keeps; less leaves more candidates than it saves products."""

_STEP = 32
"""Dimensions are kept in such steps: the width of a product's inner kernel, a few times over."""

_SAMPLE = 4096
"""Vectors that tell the directions."""

_BLOCK = 512
"""Vectors whose products with the queries are held at one time: a few hundred queries' stay in the cache."""


class ProjectedCandidates:
    """Finds the vectors that can be among the nearest; safe to call from several threads.

    Args:
        vectors: [M, D] float32, finite. Kept, not copied; the projection takes a third of their memory at most.
        mean: [D] float32, subtracted first: the part that all share tells nothing and costs digits.
        basis: [D, P] float32, columns nearly orthonormal.
    """

    def __init__(self, vectors: NDArray[np.float32], mean: NDArray[np.float32], basis: NDArray[np.float32]) -> None:
        self._vectors, self._mean, self._basis = vectors, mean, basis
        # A basis rounded to float32 stretches by this much at most.
        self._stretch = float(np.linalg.norm(basis.T.astype(np.float64) @ basis, 2)) ** 0.5 * (1 + 1e-5)
        # [-½|v|², v]: one product with [1, q] gives q·v - ½|v|², which is largest for the nearest vector.
        self._right = np.empty((len(vectors), 1 + basis.shape[1]), dtype=np.float32)
        self._move = 0.0
        for start in range(0, len(vectors), _BLOCK):
            projected, moves = self._project(vectors[start : start + _BLOCK])
            self._right[start : start + _BLOCK, 0] = -half_squares(projected)
            self._right[start : start + _BLOCK, 1:] = projected
            self._move = max(self._move, float(moves.max()))
        self._largest_half = -float(self._right[:, 0].min())

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> ProjectedCandidates | None:
        """Return the projection onto the directions that vectors [M, D] vary in; None where they vary in too many."""
        sample = vectors[:: -(-len(vectors) // _SAMPLE)]
        mean = sample.mean(axis=0, dtype=np.float64)
        centred = (sample - mean.astype(np.float32)).astype(np.float64)
        variances, directions = np.linalg.eigh(centred.T @ centred)
        kept = np.cumsum(variances[::-1])
        enough = int(np.searchsorted(kept, _KEPT * kept[-1])) + 1
        wanted = -(-(enough + 1) // _STEP) * _STEP - 1  # beside them stands a column of half squares
        if 3 * wanted > vectors.shape[1]:
            return None
        basis = np.ascontiguousarray(directions[:, ::-1][:, :wanted], dtype=np.float32)
        return cls(vectors, mean.astype(np.float32), basis)

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return pairs (query, vector) in which the k nearest vectors of each query [N, D] float32 occur."""
        projected, moves = self._project(query)
        halves = half_squares(projected)
        off = slack(self._right.shape[1], max(float(halves.max()), self._largest_half))
        left = np.concatenate([np.ones((len(query), 1), np.float32), projected], axis=1)
        move = moves + self._move
        best = np.full((len(query), k), np.inf, dtype=np.float32)  # true distances, of the k best that were measured
        least = np.full(len(query), -np.inf, dtype=np.float32)
        found = []
        for start in range(0, len(self._vectors), _BLOCK):
            products = left @ self._right[start : start + _BLOCK].T
            rows, columns = _likely(products, least, k)
            measured = np.full((len(query), columns.shape[1]), np.inf, dtype=np.float32)
            measured[rows] = pair_distances(
                query, np.repeat(rows, columns.shape[1]), self._vectors, columns.ravel() + start
            ).reshape(columns.shape)
            best = np.partition(np.concatenate([best, measured], axis=1), k - 1, axis=1)[:, :k]
            # From the k-th smallest distance so far to the least product that can still stand for one as small.
            reach = best.max(axis=1).astype(np.float64) * (1 + 1e-5) * self._stretch + move
            least = _rounded_down(halves - 0.5 * reach**2 - 2 * off)
            row, column = np.divmod(np.flatnonzero(products >= least[:, None]), products.shape[1])
            found.append((row, column + start, products[row, column]))
        rows, columns, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        keep = values >= least[rows]
        return rows[keep], columns[keep]

    def _project(self, rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return rows [N, D] projected [N, P], and by how much rounding may have moved each [N]."""
        centred = rows - self._mean
        lengths = np.linalg.norm(centred, axis=1).astype(np.float64) + np.linalg.norm(self._mean)
        # A product of D terms is off by (D + 8)·u·|x| (see ``slack``), each of the P of a row; and so is centring.
        unit_roundoff, (d, p) = 2.0**-24, self._basis.shape
        moves: NDArray[np.float64] = np.sqrt(p) * (d + 16) * (unit_roundoff * lengths + np.finfo(np.float32).tiny)
        return np.matmul(centred, self._basis), moves


def _likely(
    products: NDArray[np.float32], least: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the queries [R] that a block may hold a nearer vector for, and for each the likeliest ones [R, ≥ k]."""
    n_groups = 1 if k == 1 else min(products.shape[1], 2 * k)
    starts = np.linspace(0, products.shape[1], n_groups, endpoint=False).astype(np.int64)
    groups = np.split(products, starts[1:], axis=1)
    likeliest = np.stack([group.argmax(axis=1) for group in groups], axis=1) + starts
    rows = np.flatnonzero(np.take_along_axis(products, likeliest, axis=1).max(axis=1) >= least)
    return rows, likeliest[rows]


def _rounded_down(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.nextafter(values.astype(np.float32), np.float32(-np.inf))
