"""What is normal at each place of an aligned part: every learned patch row, kept with the cell that it was seen at.

The coreset knows every normal texture, but not where it belongs: a bolt hole that was never drilled looks like the face
around it. Where all parts lie alike in the image, a patch is therefore compared with what good parts show *there*, in
the 3×3 cells around its own, and its distance is measured in units of how much good parts differ there:

    z_L = d / (α q + (1 - α) r),

d the distance to the nearest row of the window, ρ of a row its own distance to the nearest row of another part within
its window, r the mean ρ of the nearest rows of the five nearest images, q the root mean square of all ρ. The coreset
has the like,

    z_G = d' / (α q' + (1 - α) r'),

d' the plain distance, r' the mean leave-one-out distance of the good patches that chose the same vector, shrunken
towards that of all. A cell scores min(z_L, z_G + c · median z_L): good parts are not cut out exactly alike, and what is
normal elsewhere is a little less suspicious. How little depends on how well the parts are aligned (``slack``). Scores
are multiplied by one number, the median plain leave-one-out distance, so that they keep the size of distances; large
ones are bent to stay below 2.

Rows are whitened within places for it (``local_learning``): what tells places apart varies most over a part, and would
drown in any other measure the little that good parts vary at one place.

Normalising distances by what is usual nearby is the idea of the local outlier factor (Breunig et al. 2000); comparing
with the same place only is that of SPADE and PaDiM (Cohen & Hoshen 2020, arXiv:2005.02357; Defard et al. 2020,
arXiv:2011.08785), here with windows and with the coreset as a way out. All of it can leave out one part exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.global_evidence import GlobalEvidence
from backend.memory_bank.windows import FixedPoint, LearnedCells, Offset, WindowRows, WindowSearch, nearest_in_windows

ALPHA: Final = 0.3
"""Weight of what is usual everywhere beside what is usual nearby. Below, rows that happen to lie close make noise;
0.2 to 0.4 find the same on rendered and on cast parts."""

_NEIGHBOURS: Final = 5
_SHRINKAGE: Final = 5.0
"""Patches whose weight the mean of all patches has in the mean of those that chose one vector."""

_REACH: Final = 2
"""Cells that a part may lie away from where it was learned, and how far from the image's edge that is then seen."""

_STEPS: Final = range(-_REACH, _REACH + 1)
_OFFSETS: Final[Sequence[Offset]] = sorted(
    ((row, column) for row in _STEPS for column in _STEPS), key=lambda offset: (abs(offset[0]) + abs(offset[1]), offset)
)
"""Where a part may lie, the nearest first."""

_CELLS_COMPARED: Final = 256
"""Cells that are enough to see how far a part was moved."""

_LARGEST_ALIGNMENT: Final = 0.99
_LEAST: Final = 1e-4
"""Smallest distance that is divided by: images that agree to the last grey level differ by nothing."""

LARGEST: Final = 2.0
"""What scores stay below, since no two unit rows are farther apart: 1 is bent to 0.9, 0.2 to 0.199."""


def slack(alignment: float) -> float:
    """Return c, how much less a texture counts in a wrong place than one that is normal nowhere: 1.5 R² / (1 - R²).

    That grows with what the place explains of good parts, in units of what it leaves open. About 1.5 on castings that
    share no more than their outline: at 1 twice as many good ones are false alarms, at 2 fewer defects are found. Above
    30 on machined parts that agree everywhere: no limit any more, and a bolt hole that is missing needs 3 to be found.

    Args:
        alignment: R² of the position mean (``backend.memory_bank.alignment``).
    """
    explained = min(max(alignment, 0.0), _LARGEST_ALIGNMENT)
    return 1.5 * explained / (1.0 - explained)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What makes the scores of an image at L cells.

    Attributes:
        local: [L] float64, z_L; infinite where no row is in the window.
        globally: [L] float64, z_G.
        moved_in: [L] bool, where the image shows what no window can know: the cells at an edge of the image that the
            part was moved across, and those with no row in their window.
    """

    local: NDArray[np.float64]
    globally: NDArray[np.float64]
    moved_in: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class LocalBank:
    """The rows of n images at L learned cells, and what is usual there. Arrays are made read-only.

    Attributes:
        rows: [L, n, P] int16 or int8, in units of ``step``: unit rows, less ``centre``, times ``basis``.
        step: [P] float32, what an integer of ``rows`` is worth.
        centre: [D] float32.
        basis: [D, P] float32.
        parts: [n] int32, the part of each image, counted from 0.
        spread: [L, n, 2] float32, the distance of each row to the nearest row of another part in its window, and to
            the nearest of a third part.
        spread_part: [L, n] int32, the part of the former.
        plain: [n, L] float32, leave-one-part-out distances to the coreset.
        chosen: [n, L] int32, the vectors that these lead to.
        medians: [1 + n_parts] float64, the median leave-one-out z_L of all images, and of all but those of each part.
        scores: [n, L] float32, the leave-one-part-out scores.
        slack: See ``slack``.
    """

    rows: FixedPoint = field(compare=False)
    step: NDArray[np.float32] = field(compare=False)
    centre: NDArray[np.float32] = field(compare=False)
    basis: NDArray[np.float32] = field(compare=False)
    parts: NDArray[np.int32] = field(compare=False)
    spread: NDArray[np.float32] = field(compare=False)
    spread_part: NDArray[np.int32] = field(compare=False)
    plain: NDArray[np.float32] = field(compare=False)
    chosen: NDArray[np.int32] = field(compare=False)
    medians: NDArray[np.float64] = field(compare=False)
    scores: NDArray[np.float32] = field(compare=False)
    slack: float
    cells: LearnedCells = field(compare=False)

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything but the cells by name, for an npz; ``from_arrays`` reads it back."""
        return {each.name: np.asarray(getattr(self, each.name)) for each in fields(self) if each.name != "cells"}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], cells: LearnedCells) -> LocalBank:
        """Return the bank that ``to_arrays`` described.

        Raises:
            KeyError: If an array is missing.
            TypeError: If there is one that does not belong here.
        """
        values = dict(arrays)
        return cls(slack=float(values.pop("slack")), **values, cells=cells)

    def score(
        self,
        unit_rows: NDArray[np.float32],
        evidence: GlobalEvidence,
        part: int | None,
        *,
        search: WindowSearch = nearest_in_windows,
    ) -> NDArray[np.float32]:
        """Return the scores [L] float32 in [0, 2] of an image's unit rows [L, D] at the learned cells.

        Args:
            unit_rows: The rows, in the order of the cells.
            evidence: What the coreset says of them; without the vectors of ``part``.
            part: Nothing that this part has brought counts; None for a new part.
            search: Searches the windows.
        """
        terms = self.terms(unit_rows, evidence, part, search=search)
        return self.combined(terms, float(self.medians[0 if part is None else 1 + part]))

    def combined(self, terms: Terms, median: float) -> NDArray[np.float32]:
        """Return the scores [L] that terms make with a median z_L."""
        allowance = np.where(terms.moved_in, 0.0, self.slack * median)
        found = np.minimum(terms.local, terms.globally + allowance) * self.scale
        return np.asarray(found / np.sqrt(1 + np.square(found / LARGEST)), dtype=np.float32)

    def terms(
        self,
        unit_rows: NDArray[np.float32],
        evidence: GlobalEvidence,
        part: int | None,
        *,
        search: WindowSearch = nearest_in_windows,
    ) -> Terms:
        """Return what makes the scores of an image; arguments as of ``score``."""
        query = self.reduced(unit_rows)
        others = None if part is None else self.parts != part
        offset = self.offset(query, others)
        likely, place = search(query, self._window_rows, offset)
        local = self._local(query, likely, place, part, others)
        moved_in = self.cells.near_edge(offset, _REACH) | (self.cells.at(offset) < 0) | np.isinf(local)
        return Terms(local=local, globally=self._globally(evidence, others), moved_in=moved_in)

    @cached_property
    def _window_rows(self) -> WindowRows:
        return WindowRows(rows=self.rows, step=self.step, cells=self.cells)

    @cached_property
    def scale(self) -> float:
        """What one unit of z is worth as a distance: the median plain leave-one-out distance."""
        return max(float(np.median(self.plain)), _LEAST)

    def reduced(self, unit_rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return unit rows [..., D] as rows of this bank [..., P]."""
        return np.asarray((unit_rows - self.centre) @ self.basis, dtype=np.float32)

    def offset(self, query: NDArray[np.float32], others: NDArray[np.bool_] | None) -> Offset:
        """Return the rows and columns of the grid that lead from an image back to what was learned.

        Those of ``_OFFSETS`` with the smallest mean distance to the mean row of the cells.

        Args:
            query: [L, P], as ``reduced`` gives it.
            others: [n], the images that count; None for all.
        """
        sums, n = self._sums, len(self.parts)
        if others is not None:
            sums = sums - self.rows[:, ~others].sum(axis=1, dtype=np.int32)
            n = int(others.sum())
        compared = self._compared
        if not len(compared):
            return 0, 0
        wanted = query[compared]

        means = sums * (self.step / np.float32(n))

        def mean_distance(offset: Offset) -> float:
            differences = wanted - means[self.cells.at(offset)[compared]]
            return float(np.sqrt(np.einsum("ld,ld->l", differences, differences)).mean(dtype=np.float64))

        return min(_OFFSETS, key=mean_distance)

    @cached_property
    def _sums(self) -> NDArray[np.int32]:
        return np.asarray(self.rows.sum(axis=1, dtype=np.int32))

    @cached_property
    def _compared(self) -> NDArray[np.int64]:
        """Cells from which every offset leads to a learned cell, evenly chosen."""
        inner = np.flatnonzero(np.all([self.cells.at(offset) >= 0 for offset in _OFFSETS], axis=0))
        return inner[:: -(-len(inner) // _CELLS_COMPARED)] if len(inner) else inner

    def _local(
        self,
        query: NDArray[np.float32],
        likely: NDArray[np.float32],
        place: NDArray[np.int64],
        part: int | None,
        others: NDArray[np.bool_] | None,
    ) -> NDArray[np.float64]:
        if others is not None:
            likely[:, ~others] = np.inf
        count = min(_NEIGHBOURS, len(self.parts))
        image = np.argpartition(likely, count - 1, axis=1)[:, :count]
        is_there = np.isfinite(np.take_along_axis(likely, image, axis=1))
        cell = np.take_along_axis(place, image, axis=1)
        differences = self.rows[cell, image].astype(np.float32)
        differences *= self.step
        differences -= query[:, None]
        distances = np.sqrt(np.einsum("lkd,lkd->lk", differences, differences))
        distances[~is_there] = np.inf
        nearby = self._spread_without(part)[cell, image].astype(np.float64)
        usual = (nearby * is_there).sum(axis=1) / np.maximum(is_there.sum(axis=1), 1)
        typical = self._root_mean_square if part is None else self._spread_rms(part, others)
        return np.asarray(distances.min(axis=1) / np.maximum(ALPHA * typical + (1 - ALPHA) * usual, _LEAST))

    def _spread_without(self, part: int | None) -> NDArray[np.float32]:
        nearest = self.spread[:, :, 0]
        return nearest if part is None else np.where(self.spread_part == part, self.spread[:, :, 1], nearest)

    def _spread_rms(self, part: int | None, others: NDArray[np.bool_] | None) -> float:
        spread = self._spread_without(part)
        spread = spread if others is None else spread[:, others]
        return float(np.sqrt(np.square(spread, dtype=np.float64).mean()))

    @cached_property
    def _root_mean_square(self) -> float:
        return self._spread_rms(None, None)

    def _globally(self, evidence: GlobalEvidence, others: NDArray[np.bool_] | None) -> NDArray[np.float64]:
        usual, typical = self._vector_terms if others is None else self._terms_of_vectors(others)
        # A vector that nothing chose stands for as much as all together.
        nearby = usual[np.minimum(evidence.chosen, len(usual) - 1)]
        return np.asarray(evidence.distances / np.maximum(ALPHA * typical + (1 - ALPHA) * nearby, _LEAST))

    @cached_property
    def _vector_terms(self) -> tuple[NDArray[np.float64], float]:
        return self._terms_of_vectors(np.ones(len(self.parts), dtype=np.bool_))

    def _terms_of_vectors(self, images: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
        """Return r' of each vector up to one beyond the last that a patch chose, which nothing chose; and q'."""
        plain, chosen = self.plain[images].ravel().astype(np.float64), self.chosen[images].ravel()
        size = int(self.chosen.max()) + 2
        sums, counts = np.bincount(chosen, plain, minlength=size), np.bincount(chosen, minlength=size)
        return (sums + _SHRINKAGE * plain.mean()) / (counts + _SHRINKAGE), float(np.sqrt(np.square(plain).mean()))
