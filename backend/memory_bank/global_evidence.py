"""What the coreset says of the rows of an image: how far they are from it, and which vectors are nearest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.index import build_index
from backend.memory_bank.nearest import NearestNeighbours


@dataclass(frozen=True, kw_only=True)
class GlobalEvidence:
    """What the coreset says of the rows of an image.

    Attributes:
        distances: [L] float32, plain distances.
        chosen: [L], the nearest vector of each row.
    """

    distances: NDArray[np.float32]
    chosen: NDArray[np.int64]


def evidence(
    vectors: NDArray[np.float32],
    among: NearestNeighbours | NDArray[np.bool_],
    unit_rows: NDArray[np.float32],
    k: int,
) -> GlobalEvidence:
    """Return what vectors [M, D] say of unit rows [N, D].

    Args:
        vectors: All of them.
        among: An index of all, or [M] bool: the vectors that count, at least one.
        unit_rows: The rows.
        k: Neighbours that a distance is the mean of, as far as there are so many.
    """
    if isinstance(among, NearestNeighbours):
        distances, chosen = among.search(unit_rows, min(k, len(among)))
    else:
        kept = np.flatnonzero(among)
        distances, chosen = build_index(vectors[kept]).search(unit_rows, min(k, len(kept)))
        chosen = kept[chosen]
    return GlobalEvidence(distances=distances.mean(axis=1, dtype=np.float32), chosen=chosen[:, 0])
