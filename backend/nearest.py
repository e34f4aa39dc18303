"""Exact nearest neighbours in a memory bank, by FAISS or, without it, by scikit-learn."""

from __future__ import annotations

import importlib.util
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Backend = Literal["auto", "faiss", "sklearn"]


class _CandidateSearch(Protocol):
    def __call__(self, query: NDArray[np.float32], k: int) -> NDArray[np.int64]: ...


class NearestNeighbours:
    """An exact index over the vectors of a memory bank.

    The search engine only names the neighbours. Distances are then taken from the differences themselves, because
    |a|² + |b|² - 2ab loses all digits of a distance near zero; so every engine returns the same distances.
    """

    def __init__(self, vectors: NDArray[np.float32], *, backend: Backend = "auto") -> None:
        """Index vectors [M, D] float32; see ``build_index``."""
        if vectors.ndim != 2 or len(vectors) == 0:
            raise ValueError(f"an index needs vectors [M, D] with M ≥ 1, got {vectors.shape}")
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if backend == "auto":
            backend = "faiss" if importlib.util.find_spec("faiss") is not None else "sklearn"
        self.backend = backend
        self._candidates = _faiss_search(self._vectors) if backend == "faiss" else _sklearn_search(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def search(self, query: NDArray[np.float32], k: int = 1) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return distances and indices of the k nearest vectors, nearest first.

        Args:
            query: [N, D] float32.
            k: Neighbours per query, 1 … M.

        Returns:
            Distances [N, k] float32 (plain L2, not squared; in [0, 2] for unit rows) and indices [N, k] int64.

        Raises:
            ValueError: If ``k`` is not in 1 … M or the query has another D.
        """
        if query.ndim != 2 or query.shape[1] != self._vectors.shape[1]:
            raise ValueError(f"query must be [N, {self._vectors.shape[1]}], got {query.shape}")
        if not 1 <= k <= len(self):
            raise ValueError(f"k must be in 1 … {len(self)}, got {k}")
        query = np.ascontiguousarray(query, dtype=np.float32)
        if len(query) == 0:
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        indices = self._candidates(query, k)
        distances = np.stack(
            [np.linalg.norm(query - self._vectors[indices[:, rank]], axis=1) for rank in range(k)], axis=1
        )
        if k > 1:
            order = np.argsort(distances, axis=1, kind="stable")
            distances, indices = np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1)
        return distances.astype(np.float32, copy=False), indices

    def knn(self, query: NDArray[np.float32], k: int = 1) -> NDArray[np.float32]:
        """Return the mean distance [N] to the k nearest vectors; see ``search``."""
        distances, _ = self.search(query, k)
        return np.asarray(distances.mean(axis=1, dtype=np.float32))


def build_index(memory: NDArray[np.float32], *, backend: Backend = "auto") -> NearestNeighbours:
    """Return an exact index over a memory [M, D] float32.

    Args:
        memory: The vectors.
        backend: ``faiss``, ``sklearn``, or ``auto`` for FAISS where it is installed.

    Raises:
        ValueError: If the memory is empty or not two-dimensional.
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

    def search(query: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        _, indices = index.search(query, k)
        return np.asarray(indices, dtype=np.int64)

    return search


def _sklearn_search(vectors: NDArray[np.float32]) -> _CandidateSearch:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(algorithm="brute", metric="euclidean").fit(vectors)

    def search(query: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        return np.asarray(index.kneighbors(query, k, return_distance=False), dtype=np.int64)

    return search
