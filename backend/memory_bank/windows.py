"""The 3×3 cells around a cell: which they are on a grid of which only some cells were learned, and how near rows are.

All windows are searched by one small matrix product per learned cell: its rows times the nine query rows that look at
it. Products name candidates; what counts is measured by differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.threads import parallel_map

WINDOW: Final = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))
"""Where the cells of a window lie; the opposite of place j is place 8 - j."""

_CELLS_AT_ONCE = 128
"""Cells whose rows a thread holds at one time: 30 rows of 128 float32 each are 2 MiB."""

_QUERIES_AT_ONCE = 512
"""Query rows whose windows a thread compares at one time: of 30 images 60 kB."""

Offset = tuple[int, int]
"""Rows and columns of the grid."""


FixedPoint = NDArray[np.int8] | NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class LearnedCells:
    """The learned cells of a grid, numbered row by row from 0 to L - 1.

    Attributes:
        grid_hw: Rows and columns of the grid.
        mask_cells: [Ht*Wt] bool.
    """

    grid_hw: tuple[int, int]
    mask_cells: NDArray[np.bool_] = field(compare=False)
    _at: dict[Offset, NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _windows: dict[Offset, NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Row and column [L, 2] of each learned cell."""
        return np.argwhere(self.mask_cells.reshape(self.grid_hw))

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        numbers = np.full(len(self.mask_cells), -1, dtype=np.int64)
        numbers[self.mask_cells] = np.arange(int(self.mask_cells.sum()))
        return numbers.reshape(self.grid_hw)

    def at(self, offset: Offset) -> NDArray[np.int64]:
        """Return the number [L] of the cell that lies an offset away from each; -1 where none was learned."""
        if offset not in self._at:
            self._at[offset] = self._found_at(offset)
        return self._at[offset]

    def _found_at(self, offset: Offset) -> NDArray[np.int64]:
        rows, columns = (self.places + offset).T
        height, width = self.grid_hw
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        found = np.full(len(rows), -1, dtype=np.int64)
        found[inside] = self._numbers[rows[inside], columns[inside]]
        return found

    def windows(self, offset: Offset = (0, 0)) -> NDArray[np.int64]:
        """Return the cells [L, 9] of the window around what lies an offset away from each; -1 where none is."""
        if offset not in self._windows:
            around = [self.at((offset[0] + row, offset[1] + column)) for row, column in WINDOW]
            self._windows[offset] = np.stack(around, axis=1)
        return self._windows[offset]

    def near_edge(self, offset: Offset, reach: int) -> NDArray[np.bool_]:
        """Return the cells [L] that lie within ``reach`` cells of an edge of the grid which the offset crosses."""
        near = np.zeros(len(self.places), dtype=np.bool_)
        for axis in (0, 1):
            if offset[axis]:
                place = self.places[:, axis]
                near |= (place < reach) | (place >= self.grid_hw[axis] - reach)
        return near


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowRows:
    """What windows are searched in: the rows of n images at L learned cells.

    Attributes:
        rows: [L, n, D], integers in units of ``step``.
        step: [D] float32, what one of ``rows`` is worth in each dimension.
        cells: The learned cells.
    """

    rows: FixedPoint
    step: NDArray[np.float32]
    cells: LearnedCells

    @property
    def parts(self) -> list[slice]:
        """Slices of the cells whose rows a thread holds at one time."""
        return [slice(start, start + _CELLS_AT_ONCE) for start in range(0, len(self.rows), _CELLS_AT_ONCE)]

    def values(self, part: slice) -> NDArray[np.float32]:
        """Return the rows of some cells [l, n, D] float32."""
        values = self.rows[part].astype(np.float32)
        values *= self.step
        return values

    @cached_property
    def halves(self) -> NDArray[np.float32]:
        """Half the squared norm [L, n] float32 of each row."""
        norms = [np.einsum("lnd,lnd->ln", values, values) for values in map(self.values, self.parts)]
        return np.asarray(0.5 * np.concatenate(norms), dtype=np.float32)


def nearest_in_windows(
    query: NDArray[np.float32], held: WindowRows, offset: Offset
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return half the squared distance [L, n] of each query row to the nearest row of each image in its window.

    By products (½|q - r|² = ½|q|² + ½|r|² - q·r), so off by rounding, and now and then negative: good for ranking rows.

    Args:
        query: [L, D] float32.
        held: What is searched.
        offset: Where the windows lie.

    Returns:
        The halves, inf where a window holds no cell; and the cell [L, n] that each nearest row lies in.
    """
    windows = held.cells.windows(offset)
    lookers = held.cells.windows((-offset[0], -offset[1]))  # the query rows that look at each cell, in opposite order
    halves = held.halves

    def of_cells(part: slice) -> NDArray[np.float32]:
        products: NDArray[np.float32] = query[lookers[part]] @ held.values(part).transpose(0, 2, 1)
        return products

    products = np.concatenate(parallel_map(of_cells, held.parts))

    def of_queries(start: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        part = slice(start, start + _QUERIES_AT_ONCE)
        nearest = np.full((len(windows[part]), halves.shape[1]), np.inf, dtype=np.float32)
        place = np.zeros(nearest.shape, dtype=np.int8)
        for column, cell in enumerate(windows[part].T):
            found = halves[cell]
            found -= products[cell, len(WINDOW) - 1 - column]
            found[cell < 0] = np.inf
            np.copyto(place, np.int8(column), where=found < nearest)
            np.minimum(nearest, found, out=nearest)
        nearest += 0.5 * np.einsum("ld,ld->l", query[part], query[part])[:, None]
        return nearest, place

    queries = range(0, len(query), _QUERIES_AT_ONCE)
    nearest, place = (np.concatenate(found) for found in zip(*parallel_map(of_queries, queries), strict=True))
    return nearest, np.take_along_axis(windows, place.astype(np.int64), axis=1)


WindowSearch = Callable[[NDArray[np.float32], WindowRows, Offset], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""``nearest_in_windows``, or the same on another device."""
