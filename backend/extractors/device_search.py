"""Exact nearest neighbours on the device that made the embeddings: rows never leave it, only distances do.

As ``memory_bank.nearest`` on the processor: products only name candidates, distances are taken from differences, and
a query whose candidates might hide a nearer vector is measured against all of them. Products here are in full float32;
of 10,000 vectors they are a few tenths of a millisecond on a large card.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from backend.memory_bank.distances import half_squared_norms, rounding_bound

_CANDIDATES: Final = 8
"""Vectors that are measured for each query, beside the k that are asked for."""

_NUMBERS_AT_ONCE: Final = 1 << 26
"""Products, or numbers of differences, that are held at one time: 256 MiB."""

_KEPT_NUMBERS: Final = 1 << 28
"""Numbers of vectors that stay on the device: 1 GiB. The least used memories make room."""


@dataclass(frozen=True, eq=False)
class _Index:
    vectors: torch.Tensor
    half_squared_norms: torch.Tensor
    largest_half_squared_norm: float


class DeviceSearch:
    """Keeps memories on a device and searches them there; safe to call from several threads."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._indices: OrderedDict[str, _Index] = OrderedDict()
        self._lock = threading.Lock()

    def distances(self, rows: torch.Tensor, name: str, vectors: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        """Return the mean distance [N] float32 of rows [N, D] on the device to their k nearest vectors.

        Args:
            rows: float32.
            name: Tells one memory from another; of a name that is known, ``vectors`` are not looked at.
            vectors: [M, D] float32.
            k: 1 … M.
        """
        index = self._index(name, vectors)
        m, d = index.vectors.shape
        at_once = max(1, _NUMBERS_AT_ONCE // max(m, (k + _CANDIDATES) * d))
        with torch.inference_mode():
            starts = range(0, len(rows), at_once)
            parts = [_nearest(rows[start : start + at_once], index, k).mean(dim=1) for start in starts]
            found: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return found

    def _index(self, name: str, vectors: NDArray[np.float32]) -> _Index:
        with self._lock:
            if name not in self._indices:
                norms = half_squared_norms(vectors)
                self._indices[name] = _Index(
                    torch.tensor(vectors, device=self._device),
                    torch.tensor(norms, device=self._device),
                    float(norms.max()),
                )
                while len(self._indices) > 1 and self._held() > _KEPT_NUMBERS:
                    self._indices.popitem(last=False)
            self._indices.move_to_end(name)
            return self._indices[name]

    def _held(self) -> int:
        return sum(index.vectors.numel() for index in self._indices.values())


class DeviceRows:
    """The embeddings of one image where they were made, [N, D] float32 unit rows; numpy copies them to the processor.

    Args:
        rows: The embeddings.
        search: Searches on their device.
    """

    def __init__(self, rows: torch.Tensor, search: DeviceSearch) -> None:
        self._rows, self._search = rows, search
        self.shape: tuple[int, ...] = tuple(rows.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        return np.asarray(self._rows.cpu().numpy(), dtype=dtype)

    def distances_to(self, name: str, vectors: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        """Return the mean distance [N] float32 to the k nearest of vectors [M, D]; see ``DeviceSearch.distances``."""
        return self._search.distances(self._rows, name, vectors, k)


def _nearest(rows: torch.Tensor, index: _Index, k: int) -> torch.Tensor:
    """Return the distances [N, k] of the k nearest vectors, ascending."""
    m, d = index.vectors.shape
    n_candidates = min(m, k + _CANDIDATES)
    # ½|q|² is the same for all vectors: the nearest is the one with the largest q·v - ½|v|².
    products, columns = (rows @ index.vectors.T - index.half_squared_norms).topk(n_candidates, dim=1)
    distances: torch.Tensor = (
        torch.linalg.vector_norm(rows[:, None] - index.vectors[columns], dim=2).sort(dim=1).values[:, :k]
    )
    if n_candidates == m:
        return distances
    row_norms = 0.5 * rows.square().sum(dim=1)
    bound = 2 * rounding_bound(d, max(index.largest_half_squared_norm, float(row_norms.max()) * 1.001))
    # No vector that was left out can be nearer than this.
    nearest_left_out = (row_norms - products[:, -1] - bound).clamp(min=0)
    for row in torch.nonzero(0.5 * distances[:, -1].square() > nearest_left_out).flatten().tolist():
        starts = range(0, m, max(1, _NUMBERS_AT_ONCE // d))
        parts = [
            torch.linalg.vector_norm(rows[row] - index.vectors[start : start + starts.step], dim=1) for start in starts
        ]
        distances[row] = torch.cat(parts).topk(k, largest=False).values
    return distances
