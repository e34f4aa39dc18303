"""PatchCore's arithmetic on plain arrays: the coreset of many embeddings, and the distances to it.

Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection", arXiv:2106.08265. What a ROI keeps of it is a
``MemoryBank`` (``backend/memory_bank/bank.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.bank import MemoryBank, PatchGrid
from backend.memory_bank.coreset import coreset_size, kcenter_greedy
from backend.memory_bank.index import build_index
from backend.memory_bank.nearest import NearestNeighbours

__all__ = [
    "MemoryBank",
    "NearestNeighbours",
    "PatchGrid",
    "build_index",
    "build_memory",
    "coreset_size",
    "kcenter_greedy",
]


def build_memory(
    emb_list: Sequence[NDArray[np.float32]], coreset_rate: float = 0.02, seed: int = 0
) -> NDArray[np.float32]:
    """Return the coreset [M, D] of the unit rows of several images, M = max(1, ceil(N · coreset_rate)).

    Args:
        emb_list: One [N_i, D] float32 array per image.
        coreset_rate: In (0, 1].
        seed: Draws the first centre.

    Raises:
        ValueError: If the list is empty, the arrays do not share D, or the rate is out of range.
    """
    if len(emb_list) == 0:
        raise ValueError("a memory needs at least one image")
    rows = np.concatenate(list(emb_list), axis=0)
    return np.ascontiguousarray(rows[kcenter_greedy(rows, coreset_size(len(rows), coreset_rate), seed=seed)])
