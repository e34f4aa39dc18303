"""The index over a memory by our own search, FAISS or scikit-learn, and the file ``index.faiss``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.distances import pair_distances, quick_norms
from backend.memory_bank.nearest import NearestNeighbours, nearest_first

Backend = Literal["auto", "numpy", "faiss", "sklearn"]

_IndicesOfNearest = Callable[[NDArray[np.float32], int], NDArray[np.int64]]
"""Takes a query [N, D] and k, returns indices [N, k]."""


def build_index(memory: NDArray[np.float32], *, backend: Backend = "auto") -> NearestNeighbours:
    """Return an exact index over a memory [M, D] float32.

    Args:
        memory: The vectors.
        backend: Who names the neighbours; distances are taken from differences all the same. ``numpy`` (``auto``
            chooses it), ``faiss`` or ``sklearn``.

    Raises:
        ValueError: If the memory is empty, not two-dimensional or not finite, or the backend is none of these.
        ImportError: If the backend that was asked for is not installed.
    """
    if backend in ("auto", "numpy"):
        return NearestNeighbours(memory)
    if backend not in _LIBRARIES:
        raise ValueError(f"backend must be auto, numpy, {', '.join(_LIBRARIES)}, got {backend!r}")
    return _ByLibrary(memory, _LIBRARIES[backend])


def faiss_bytes(memory: NDArray[np.float32]) -> bytes | None:
    """Return the serialised FAISS ``IndexFlatL2`` over a memory [M, D] float32, or None where FAISS is not installed.

    Serialised in memory: ``faiss.write_index`` fails on non-ASCII Windows paths.
    """
    if importlib.util.find_spec("faiss") is None:
        return None
    import faiss

    index = faiss.IndexFlatL2(memory.shape[1])
    index.add(np.ascontiguousarray(memory, dtype=np.float32))
    return bytes(faiss.serialize_index(index).tobytes())


class _ByLibrary(NearestNeighbours):
    def __init__(
        self, vectors: NDArray[np.float32], library: Callable[[NDArray[np.float32]], _IndicesOfNearest]
    ) -> None:
        super().__init__(vectors)
        self._indices_of_nearest = library(self._vectors)

    def _search(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        quick_norms(query)  # refuses what is not finite
        rows, columns = np.repeat(np.arange(len(query)), k), self._indices_of_nearest(query, k).ravel()
        return nearest_first(k, rows, columns, pair_distances(query, rows, self._vectors, columns))


def _faiss(vectors: NDArray[np.float32]) -> _IndicesOfNearest:
    import faiss

    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    return lambda query, k: np.asarray(index.search(query, k)[1], dtype=np.int64)


def _sklearn(vectors: NDArray[np.float32]) -> _IndicesOfNearest:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(algorithm="brute", metric="euclidean").fit(vectors)
    return lambda query, k: np.asarray(index.kneighbors(query, k, return_distance=False), dtype=np.int64)


_LIBRARIES = {"faiss": _faiss, "sklearn": _sklearn}
