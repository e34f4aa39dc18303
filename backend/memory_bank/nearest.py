"""Exact nearest neighbours in a memory bank: a matrix product names candidates, differences decide.

½|q - v|² = ½|q|² + ½|v|² - q·v, so the likeliest vectors v of a query q are those with the largest q·v - ½|v|². They
are measured, and the k-th smallest distance r is an upper bound. A vector that is as near as r has
q·v - ½|v|² ≥ ½|q|² - ½r², less what rounding may do to either side (``rounding_bound``): whatever reaches that is
measured too, and all else is farther than k others.

The patches of one part vary in few directions. So a large memory is searched in a quarter of the dimensions first
(``projected``): no two vectors are farther apart there, so the same inequality rules out what is farther than r.
Where that leaves much to measure, all dimensions decide.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.distances import half_squared_norms, pair_distances, quick_norms, rounding_bound
from backend.memory_bank.projection import Space, projected
from backend.memory_bank.threads import parallel_map, parallel_width
from backend.memory_bank.windows import WindowSearch

_PRODUCTS_AT_ONCE = 1 << 21
"""Products that a thread holds at one time: 8 MiB."""

_WORTH_THREADS = 1 << 24
"""Multiplications from which more than one thread pays."""

_LARGE_M, _LARGE_D = 4096, 256
"""Vectors and dimensions from which a projection saves more than it costs."""

_FEW = 16
"""Candidates per neighbour up to which measuring them costs less than products in all dimensions."""


class RowsOnDevice(Protocol):
    """Embeddings [N, D] float32 that lie on another device, and are searched for there; numpy copies them here."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (N, D)."""
        ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]: ...

    def nearest(self, name: str, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return distances [N, k] float32 and indices [N, k] of the k nearest of vectors [M, D], the nearest first.

        The name tells memories apart.
        """
        ...

    def window_search(self, name: str) -> WindowSearch:
        """Return ``windows.nearest_in_windows``, computed on the device; the name tells local banks apart."""
        ...


class NearestNeighbours:
    """An exact index over vectors [M, D] float32, M ≥ 1, finite; it keeps the array that it was given, not a copy.

    Several threads may search at once.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        if vectors.ndim != 2 or len(vectors) == 0:
            raise ValueError(f"an index needs vectors [M, D] with M ≥ 1, got {vectors.shape}")
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._whole = Space(self._vectors, half_squared_norms(self._vectors))
        self._largest_norm = float(self._whole.norms.max())

    @cached_property
    def _spaces(self) -> list[Space]:
        """The spaces to search in, each where the one before leaves much to measure."""
        is_large = len(self) >= _LARGE_M and self._vectors.shape[1] >= _LARGE_D
        return [projected(self._vectors), self._whole] if is_large else [self._whole]

    def __len__(self) -> int:
        return len(self._vectors)

    def search(self, query: NDArray[np.float32], k: int = 1) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return distances and indices of the k nearest vectors, nearest first.

        Args:
            query: [N, D] float32.
            k: Neighbours per query, 1 … M.

        Returns:
            Distances [N, k] float32 (plain L2, not squared; in [0, 2] for unit rows) and indices [N, k] int64. Of
            vectors at the same distance the one with the lower index comes first.

        Raises:
            ValueError: If ``k`` is not in 1 … M, the query has another D or is not finite.
        """
        if query.ndim != 2 or query.shape[1] != self._vectors.shape[1]:
            raise ValueError(f"query must be [N, {self._vectors.shape[1]}], got {query.shape}")
        if not 1 <= k <= len(self):
            raise ValueError(f"k must be in 1 … {len(self)}, got {k}")
        if len(query) == 0:
            return np.empty((0, k), dtype=np.float32), np.empty((0, k), dtype=np.int64)
        return self._search(np.ascontiguousarray(query, dtype=np.float32), k)

    def knn(self, query: NDArray[np.float32], k: int = 1) -> NDArray[np.float32]:
        """Return the mean distance [N] float32 to the k nearest vectors; see ``search``."""
        distances, _ = self.search(query, k)
        return np.asarray(distances.mean(axis=1, dtype=np.float32))

    def _search(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        width = parallel_width() if query.size * len(self) >= _WORTH_THREADS else 1
        n_parts = width * -(-len(query) * len(self) // (width * _PRODUCTS_AT_ONCE))
        parts = np.array_split(query, min(n_parts, len(query)))
        found = parallel_map(lambda part: self._search_part(part, k), parts)
        return np.concatenate([distances for distances, _ in found]), np.concatenate([indices for _, indices in found])

    def _search_part(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        norms = quick_norms(query)
        largest = max(float(norms.max()) * 1.001, self._largest_norm)
        # Twice, because the squares of the query are summed in single precision too.
        bound = 2 * rounding_bound(query.shape[1], largest)
        for space in self._spaces:
            moved = 2 * space.rounding((2 * largest) ** 0.5)
            projection = space.project(query)
            products = projection @ space.vectors.T
            products -= space.norms
            likely = _likely(products, k)
            rows, columns = np.repeat(np.arange(len(query)), likely.shape[1]), likely.ravel()
            distances = pair_distances(query, rows, self._vectors, columns)
            # The measured distances and the basis are exact to five digits.
            reach = np.partition(distances.reshape(likely.shape), k - 1)[:, k - 1] * (1 + 1e-5) + moved
            least = (norms if space is self._whole else quick_norms(projection)) - 0.5 * reach**2 - bound
            products[rows, columns] = -np.inf
            left = np.flatnonzero(products.max(axis=1) >= least)  # queries for which a product does not rule out all
            more_rows, more_columns = np.nonzero(products[left] >= least[left, None])
            more_rows = left[more_rows]
            if space is self._whole or len(more_rows) <= _FEW * k * len(query):
                break
        more_distances = pair_distances(query, more_rows, self._vectors, more_columns)
        return nearest_first(
            k,
            np.concatenate([rows, more_rows]),
            np.concatenate([columns, more_columns]),
            np.concatenate([distances, more_distances]),
        )


def nearest_first(
    k: int, rows: NDArray[np.int64], columns: NDArray[np.int64], distances: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return distances and indices [N, k] of the nearest among pairs that hold each query k times or more."""
    order = np.lexsort((columns, distances, rows))
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    chosen = order[first[:, None] + np.arange(k)]
    return distances[chosen], columns[chosen]


def _likely(products: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the column of the largest product [N, G] in each of G ≥ k groups of columns."""
    m = products.shape[1]
    starts = np.linspace(0, m, min(m, 2 * k - 1), endpoint=False).astype(np.int64)
    groups = np.split(products, starts[1:], axis=1)
    return np.stack([group.argmax(axis=1) for group in groups], axis=1) + starts
