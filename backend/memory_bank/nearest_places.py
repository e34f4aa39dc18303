"""Which place of which good image a cell of an inspected image is most like: what its distance was taken to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.bank import MemoryBank
from backend.memory_bank.global_evidence import evidence
from backend.memory_bank.local_bank import LocalBank
from backend.memory_bank.nearest import RowsOnDevice


class Place(NamedTuple):
    """A cell of a learned image: indices into ``MemoryBank.image_digests`` and the grid."""

    image: int
    cell: int


def nearest_places(
    bank: MemoryBank,
    embeddings: NDArray[np.float32] | RowsOnDevice,
    cells: Sequence[int],
    *,
    part_id: str | None = None,
) -> list[Place | None]:
    """Return for cells of an image the nearest place of a good one.

    Of an aligned ROI it is the nearest within the window that a cell is compared with; where that is empty, and for any
    other ROI, where the nearest vector of the coreset was.

    Args:
        bank: The memory.
        embeddings: The extractor's rows [N, D'] of the image.
        cells: Learned cells of its grid.
        part_id: A part that does not count; None for all.

    Returns:
        None where no other part has left anything.
    """
    rows = bank.unit_rows(np.asarray(embeddings)[bank.mask_cells])
    learned = np.flatnonzero(bank.mask_cells)
    numbers = np.searchsorted(learned, cells)
    counts = np.asarray([part != part_id for part in bank.part_ids])
    found: list[Place | None] = [None] * len(numbers)
    if bank.local is not None:
        found = _in_windows(bank.local, rows, numbers, counts, learned)
    left = [n for n, place in enumerate(found) if place is None]
    among = counts[bank.source]
    if left and among.any():
        vectors = evidence(bank.vectors, among, rows[numbers[left]], 1).chosen
        for n, vector in zip(left, vectors.tolist(), strict=True):
            found[n] = Place(int(bank.source[vector]), int(bank.cells[vector]))
    return found


def _in_windows(
    local: LocalBank,
    rows: NDArray[np.float32],
    numbers: NDArray[np.int64],
    counts: NDArray[np.bool_],
    learned: NDArray[np.int64],
) -> list[Place | None]:
    query, images = local.reduced(rows), np.flatnonzero(counts)
    offset = local.offset(query, None if counts.all() else counts)
    found: list[Place | None] = []
    for number, window in zip(numbers, local.cells.windows(offset)[numbers], strict=True):
        there = window[window >= 0]
        if not len(there) or not len(images):
            found.append(None)
            continue
        values = local.rows[np.ix_(there, images)].astype(np.float32) * local.step
        distances = np.square(values - query[number]).sum(axis=2)
        cell, image = np.unravel_index(int(distances.argmin()), distances.shape)
        found.append(Place(int(images[image]), int(learned[there[cell]])))
    return found
