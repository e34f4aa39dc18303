"""Exact nearest neighbours in a memory bank."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.distances import pair_distances
from backend.memory_bank.ladder import Ladder, Pairs

Backend = Literal["auto", "numpy", "faiss", "sklearn"]

_QUERIES_AT_ONCE = 1024
"""Bounds the memory of a search: 16 MiB of products, however many queries there are."""


class RowsOnDevice(Protocol):
    """Embeddings [N, D] float32 that lie on another device, and are searched for there; numpy copies them here."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (N, D)."""
        ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]: ...

    def distances_to(self, name: str, vectors: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        """Return the mean distance [N] float32 to the k nearest of vectors [M, D]; the name tells memories apart."""
        ...


class _CandidateSearch(Protocol):
    def __call__(self, query: NDArray[np.float32], k: int) -> Pairs:
        """Return pairs (query, vector) in which the k nearest vectors of every query occur, and perhaps others."""
        ...


class NearestNeighbours:
    """An exact index over the vectors of a memory bank. It keeps the vectors it was given, not a copy of them.

    A search engine only names candidates. Distances are then taken from the differences themselves, because
    |a|² + |b|² - 2ab loses all digits of a distance near zero; so every engine returns the same distances. Several
    threads may search at once.
    """

    def __init__(self, vectors: NDArray[np.float32], *, backend: Backend = "auto") -> None:
        """Index vectors [M, D] float32; see ``build_index``."""
        if vectors.ndim != 2 or len(vectors) == 0:
            raise ValueError(f"an index needs vectors [M, D] with M ≥ 1, got {vectors.shape}")
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self.backend: Backend = "numpy" if backend == "auto" else backend
        if self.backend not in _ENGINES:
            raise ValueError(f"backend must be auto, {', '.join(_ENGINES)}, got {backend!r}")
        self._candidates = _ENGINES[self.backend](self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def search(self, query: NDArray[np.float32], k: int = 1) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return distances and indices of the k nearest vectors, nearest first.

        Args:
            query: [N, D] float32.
            k: Neighbours per query, 1 … M.

        Returns:
            Distances [N, k] float32 (plain L2, not squared; in [0, 2] for unit rows) and indices [N, k] int64. Of
            vectors that coincide the one with the lower index comes first.

        Raises:
            ValueError: If ``k`` is not in 1 … M, the query has another D or is not finite.
        """
        if query.ndim != 2 or query.shape[1] != self._vectors.shape[1]:
            raise ValueError(f"query must be [N, {self._vectors.shape[1]}], got {query.shape}")
        if not 1 <= k <= len(self):
            raise ValueError(f"k must be in 1 … {len(self)}, got {k}")
        query = np.ascontiguousarray(query, dtype=np.float32)
        if not np.isfinite(np.einsum("nd,nd->n", query, query)).all():
            raise ValueError("the query must be finite, and so must be its squared lengths in float32")
        distances = np.empty((len(query), k), dtype=np.float32)
        indices = np.empty((len(query), k), dtype=np.int64)
        for start in range(0, len(query), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            distances[part], indices[part] = self._search(query[part], k)
        return distances, indices

    def _search(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rows, columns = self._candidates(query, k)
        distances = pair_distances(query, rows, self._vectors, columns)
        order = np.lexsort((columns, distances, rows))
        first = np.searchsorted(rows[order], np.arange(len(query)))
        nearest = order[first[:, None] + np.arange(k)]
        return distances[nearest], columns[nearest]

    def knn(self, query: NDArray[np.float32], k: int = 1) -> NDArray[np.float32]:
        """Return the mean distance [N] to the k nearest vectors; see ``search``."""
        distances, _ = self.search(query, k)
        return np.asarray(distances.mean(axis=1, dtype=np.float32))


def build_index(memory: NDArray[np.float32], *, backend: Backend = "auto") -> NearestNeighbours:
    """Return an exact index over a memory [M, D] float32.

    Args:
        memory: The vectors.
        backend: ``numpy`` (``auto`` chooses it: `backend.memory_bank.ladder.Ladder`), ``faiss`` or ``sklearn``.

    Raises:
        ValueError: If the memory is empty, not two-dimensional or not finite.
        ImportError: If the backend that was asked for is not installed.
    """
    return NearestNeighbours(memory, backend=backend)


def faiss_bytes(memory: NDArray[np.float32]) -> bytes | None:
    """Return the serialised FAISS ``IndexFlatL2`` over a memory, or None where FAISS is not installed.

    Serialised in memory: ``faiss.write_index`` fails on non-ASCII Windows paths.
    """
    if importlib.util.find_spec("faiss") is None:
        return None
    import faiss

    index = faiss.IndexFlatL2(memory.shape[1])
    index.add(np.ascontiguousarray(memory, dtype=np.float32))
    return bytes(faiss.serialize_index(index).tobytes())


def _faiss_search(vectors: NDArray[np.float32]) -> _CandidateSearch:
    import faiss

    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)

    def search(query: NDArray[np.float32], k: int) -> Pairs:
        return _as_pairs(index.search(query, k)[1])

    return search


def _sklearn_search(vectors: NDArray[np.float32]) -> _CandidateSearch:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(algorithm="brute", metric="euclidean").fit(vectors)

    def search(query: NDArray[np.float32], k: int) -> Pairs:
        return _as_pairs(index.kneighbors(query, k, return_distance=False))

    return search


def _as_pairs(indices: NDArray[np.int64]) -> Pairs:
    return np.repeat(np.arange(len(indices)), indices.shape[1]), np.asarray(indices, dtype=np.int64).ravel()


_ENGINES = {"numpy": Ladder, "faiss": _faiss_search, "sklearn": _sklearn_search}
