"""Vectors in fewer dimensions, in which no two are farther apart: a cheap way to rule out what is far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.distances import half_squared_norms
from backend.utils import generator

_SAMPLE = 1024
"""Vectors that are enough to find the directions in which all vary most."""


@dataclass(frozen=True, eq=False)
class Space:
    """Vectors [M, P] float32 with their half squared norms [M]: as they are, or projected onto a basis [D, P]."""

    vectors: NDArray[np.float32]
    norms: NDArray[np.float32]
    basis: NDArray[np.float32] | None = None

    def project(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return queries [N, D] float32 in this space, [N, P]."""
        return query if self.basis is None else query @ self.basis

    def rounding(self, length: float) -> float:
        """Return how far rounding moves the projection of a vector of this length: D·u·|v| at most per direction."""
        if self.basis is None:
            return 0.0
        d, p = self.basis.shape
        return float(p**0.5 * (d + 8) * (2.0**-24 * length + float(np.finfo(np.float32).tiny)))


def projected(vectors: NDArray[np.float32]) -> Space:
    """Return vectors [M, D] in about the D/4 orthonormal directions that they vary in most.

    By one step of Halko, Martinsson & Tropp 2011 (arXiv:0909.4061), algorithm 4.1: the range of the product of
    the second moments and a random matrix. How good the directions are decides the speed of a search, not its result.
    """
    sample = vectors[:: -(-len(vectors) // _SAMPLE)].astype(np.float64)
    random = generator(0).standard_normal((vectors.shape[1], vectors.shape[1] // 4))
    basis = np.linalg.qr(sample.T @ (sample @ random))[0].astype(np.float32)
    rows = vectors @ basis
    return Space(rows, half_squared_norms(rows), basis)
