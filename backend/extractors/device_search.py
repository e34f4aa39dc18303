"""Exact nearest neighbours on the device that made the embeddings: rows never leave it, only distances do.

As ``memory_bank.nearest`` on the processor: products only name candidates, distances are taken from differences, and
a query whose candidates might hide a nearer vector is measured against all of them. The windows of a local bank are
searched by products alone, as there: they only rank rows. Products here are in full float32;
of 10,000 vectors they are a few tenths of a millisecond on a large card.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from backend.memory_bank.distances import half_squared_norms, rounding_bound
from backend.memory_bank.windows import WINDOW, Offset, WindowRows, WindowSearch

_CANDIDATES: Final = 8
"""Vectors that are measured for each query, beside the k that are asked for."""

_NUMBERS_AT_ONCE: Final = 1 << 26
"""Products, or numbers of differences, that are held at one time: 256 MiB."""

_KEPT_NUMBERS: Final = 1 << 28
"""Numbers of vectors that stay on the device: 1 GiB. The least used memories make room."""


@dataclass(frozen=True, eq=False)
class _Index:
    """Vectors [M, D] with what bounds their rounding."""

    vectors: torch.Tensor
    half_squared_norms: torch.Tensor
    largest_half_squared_norm: float

    @property
    def n_numbers(self) -> int:
        return self.vectors.numel()


@dataclass(frozen=True, eq=False)
class _WindowIndex:
    """The rows [L, n, P] of a local bank and half their squared norms [L, n]."""

    rows: torch.Tensor
    halves: torch.Tensor

    @property
    def n_numbers(self) -> int:
        return self.rows.numel()


_Held = TypeVar("_Held", _Index, _WindowIndex)


class _Kept(OrderedDict[str, _Held]):
    """What stays on the device, by name; the least used make room."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def held(self, name: str, make: Callable[[], _Held]) -> _Held:
        """Return what has a name, made now if it is not there."""
        with self._lock:
            if name not in self:
                self[name] = make()
                while len(self) > 1 and sum(each.n_numbers for each in self.values()) > _KEPT_NUMBERS:
                    self.popitem(last=False)
            self.move_to_end(name)
            return self[name]


class DeviceSearch:
    """Keeps memories on a device and searches them there; safe to call from several threads."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._indices: _Kept[_Index] = _Kept()
        self._window_indices: _Kept[_WindowIndex] = _Kept()

    def nearest(
        self, rows: torch.Tensor, name: str, vectors: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return distances [N, k] float32 and indices [N, k] of the k nearest vectors of rows [N, D] on the device.

        Args:
            rows: float32.
            name: Tells one memory from another; of a name that is known, ``vectors`` are not looked at.
            vectors: [M, D] float32.
            k: 1 … M.
        """
        index = self._indices.held(name, lambda: self._index_of(vectors))
        m, d = index.vectors.shape
        at_once = max(1, _NUMBERS_AT_ONCE // max(m, (k + _CANDIDATES) * d))
        with torch.inference_mode():
            starts = range(0, len(rows), at_once)
            parts = [_nearest(rows[start : start + at_once], index, k) for start in starts]
            distances, indices = (torch.cat(found).cpu().numpy() for found in zip(*parts, strict=True))
        return distances, indices

    def nearest_in_windows(
        self, name: str, query: NDArray[np.float32], held: WindowRows, offset: Offset
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return what ``windows.nearest_in_windows`` does; of a name that is known, only the query is sent."""
        windows = held.cells.windows(offset)
        with torch.inference_mode():
            index = self._window_indices.held(name, lambda: self._window_index_of(held))
            asked = torch.tensor(query, device=self._device)
            found = torch.full((*index.halves.shape, len(WINDOW)), torch.inf, device=self._device)
            for place, cell in enumerate(torch.tensor(windows.T.copy(), device=self._device)):
                products = (index.rows[cell] @ asked[:, :, None]).squeeze(2)
                found[:, :, place] = (index.halves[cell] - products).masked_fill((cell < 0)[:, None], torch.inf)
            nearest, places = found.min(dim=2)
            nearest += 0.5 * asked.square().sum(dim=1)[:, None]
        return nearest.cpu().numpy(), np.take_along_axis(windows, places.cpu().numpy(), axis=1)

    def _index_of(self, vectors: NDArray[np.float32]) -> _Index:
        norms = half_squared_norms(vectors)
        return _Index(
            torch.tensor(vectors, device=self._device),
            torch.tensor(norms, device=self._device),
            float(norms.max()),
        )

    def _window_index_of(self, held: WindowRows) -> _WindowIndex:
        rows = torch.tensor(held.rows, device=self._device).float() * torch.tensor(held.step, device=self._device)
        return _WindowIndex(rows, 0.5 * rows.square().sum(dim=2))


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

    def nearest(self, name: str, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return distances and indices [N, k] of the k nearest of vectors [M, D]; see ``DeviceSearch.nearest``."""
        return self._search.nearest(self._rows, name, vectors, k)

    def window_search(self, name: str) -> WindowSearch:
        """Return ``DeviceSearch.nearest_in_windows`` for a local bank of a name."""
        return partial(self._search.nearest_in_windows, name)


def _nearest(rows: torch.Tensor, index: _Index, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distances and indices [N, k] of the k nearest vectors, the nearest first."""
    m, d = index.vectors.shape
    n_candidates = min(m, k + _CANDIDATES)
    # ½|q|² is the same for all vectors: the nearest is the one with the largest q·v - ½|v|².
    products, columns = (rows @ index.vectors.T - index.half_squared_norms).topk(n_candidates, dim=1)
    measured, order = torch.linalg.vector_norm(rows[:, None] - index.vectors[columns], dim=2).sort(dim=1)
    distances, indices = measured[:, :k], columns.gather(1, order)[:, :k]
    if n_candidates == m:
        return distances, indices
    row_norms = 0.5 * rows.square().sum(dim=1)
    bound = 2 * rounding_bound(d, max(index.largest_half_squared_norm, float(row_norms.max()) * 1.001))
    # No vector that was left out can be nearer than this.
    nearest_left_out = (row_norms - products[:, -1] - bound).clamp(min=0)
    for row in torch.nonzero(0.5 * distances[:, -1].square() > nearest_left_out).flatten().tolist():
        starts = range(0, m, max(1, _NUMBERS_AT_ONCE // d))
        parts = [
            torch.linalg.vector_norm(rows[row] - index.vectors[start : start + starts.step], dim=1) for start in starts
        ]
        distances[row], indices[row] = torch.cat(parts).topk(k, largest=False)
    return distances, indices
