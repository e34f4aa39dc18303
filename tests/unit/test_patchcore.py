"""The names that the order fixed."""

from __future__ import annotations

import numpy as np
import pytest

from backend.patchcore import build_index, build_memory
from backend.utils import generator


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_build_memory_keeps_rows_of_all_images():
    emb_list = [unit_rows(30, 8, 0), unit_rows(20, 8, 1)]
    memory = build_memory(emb_list, coreset_rate=0.1, seed=4)
    assert memory.shape == (5, 8)
    rows = np.concatenate(emb_list)
    assert all((rows == vector).all(axis=1).any() for vector in memory)
    np.testing.assert_array_equal(memory[0], rows[int(generator(4).integers(50))])
    np.testing.assert_array_equal(build_memory(emb_list, coreset_rate=1.0), rows)


def test_build_memory_build_index_and_knn_work_as_the_order_wrote_them():
    memory = build_memory([unit_rows(200, 16, 0)])
    assert len(memory) == 4  # 2 %
    distances = build_index(memory).knn(unit_rows(10, 16, 1), k=1)
    assert distances.shape == (10,)
    assert ((distances >= 0) & (distances <= 2)).all()


@pytest.mark.parametrize(
    ("emb_list", "rate"),
    [([], 0.1), ([unit_rows(3, 4, 0), unit_rows(3, 5, 0)], 0.1), ([unit_rows(3, 4, 0)], 0.0)],
    ids=["nothing", "other D", "rate"],
)
def test_build_memory_refuses_what_it_cannot_join(emb_list, rate):
    with pytest.raises(ValueError, match=r"at least one image|dimensions|rate"):
        build_memory(emb_list, coreset_rate=rate)
