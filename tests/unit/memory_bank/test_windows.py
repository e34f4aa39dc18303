from __future__ import annotations

import numpy as np
import pytest

from backend.memory_bank.windows import LearnedCells, WindowRows, nearest_in_windows

# Cells of a 3 × 4 grid, of which one was not learned:   0 1 2 3
#                                                        4 - 5 6
#                                                        7 8 9 10
MASK = np.array([True] * 5 + [False] + [True] * 6)
CELLS = LearnedCells(grid_hw=(3, 4), mask_cells=MASK)
ONE = np.ones(1, np.float32)


def on_a_line(values) -> np.ndarray:
    """Return rows [L, n, 1] of n images."""
    return np.asarray(values, np.int16).T[:, :, None]


def test_a_window_holds_the_learned_cells_around_a_cell():
    windows = CELLS.windows()
    assert windows[0].tolist() == [-1, -1, -1, -1, 0, 1, -1, 4, -1]  # a corner
    assert windows[5].tolist() == [1, 2, 3, -1, 5, 6, 8, 9, 10]  # beside the hole
    assert windows[8].tolist() == [4, -1, 5, 7, 8, 9, -1, -1, -1]  # the lower edge


def test_a_window_can_lie_elsewhere_and_be_empty():
    assert CELLS.windows((0, 1))[0].tolist() == [-1, -1, -1, 0, 1, 2, 4, -1, 5]
    assert (CELLS.windows((-2, 0))[0] == -1).all()


def test_the_cells_at_an_edge_that_is_crossed_are_those_of_that_axis():
    assert not CELLS.near_edge((0, 0), 1).any()
    assert np.flatnonzero(CELLS.near_edge((0, 1), 1)).tolist() == [0, 3, 4, 6, 7, 10]
    assert np.flatnonzero(CELLS.near_edge((-1, 0), 1)).tolist() == [0, 1, 2, 3, 7, 8, 9, 10]


def test_the_nearest_row_of_each_image_is_found_in_the_window_alone():
    rows = on_a_line([[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100], [5, 15, 25, 35, 45, 55, 65, 75, 85, 95, 105]])
    query = np.full((11, 1), 46, np.float32)
    halves, cell = nearest_in_windows(query, WindowRows(rows=rows, step=ONE, cells=CELLS), (0, 0))
    assert cell[0].tolist() == [4, 4]
    np.testing.assert_allclose(np.sqrt(2 * halves[0]), [6, 1], atol=1e-3)
    assert cell[10].tolist() == [5, 5]
    np.testing.assert_allclose(np.sqrt(2 * halves[10]), [4, 9], atol=1e-3)


@pytest.mark.parametrize("offset", [(0, 0), (1, 0), (-1, 2), (2, -2)])
def test_it_agrees_with_a_search_cell_by_cell(offset):
    rng = np.random.default_rng(0)
    mask = rng.random(7 * 9) > 0.2
    cells = LearnedCells(grid_hw=(7, 9), mask_cells=mask)
    places = np.argwhere(mask.reshape(7, 9))
    rows = rng.integers(-100, 100, (len(places), 4, 6)).astype(np.int8)
    step = rng.uniform(0.01, 0.02, 6).astype(np.float32)
    query = rng.standard_normal((len(places), 6)).astype(np.float32)
    halves, cell = nearest_in_windows(query, WindowRows(rows=rows, step=step, cells=cells), offset)
    values = rows * step
    for x, place in enumerate(places):
        inside = np.flatnonzero(np.abs(places - place - offset).max(axis=1) <= 1)
        if not len(inside):
            assert np.isinf(halves[x]).all()
            continue
        distances = np.linalg.norm(values[inside] - query[x], axis=2)
        np.testing.assert_allclose(np.sqrt(2 * halves[x]), distances.min(axis=0), rtol=1e-5)
        assert cell[x].tolist() == inside[distances.argmin(axis=0)].tolist()
