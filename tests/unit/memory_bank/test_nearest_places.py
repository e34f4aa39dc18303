from __future__ import annotations

import numpy as np
import pytest

from backend.memory_bank.nearest_places import Place, nearest_places
from tests.testkit.fakes import bank_on_a_line, grid_placement

# On a line: image a shows 0, 10, 30; b shows 5, 20, 31.
VALUES = {"a": [0.0, 10.0, 30.0], "b": [5.0, 20.0, 31.0]}


def rows(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)[:, None]


def test_a_cell_is_most_like_the_place_whose_value_is_nearest_wherever_it_lies() -> None:
    bank = bank_on_a_line(VALUES)
    found = nearest_places(bank, rows(10.4, 30.9, 4.0), [0, 1, 2])
    assert found == [Place(0, 1), Place(1, 2), Place(1, 0)]
    assert nearest_places(bank, rows(10.4, 30.9, 4.0), [2, 0]) == [Place(1, 0), Place(0, 1)]


def test_a_part_that_was_learned_is_compared_with_others() -> None:
    bank = bank_on_a_line(VALUES)
    assert nearest_places(bank, rows(0.0, 10.0, 30.0), [0, 1, 2], part_id="a") == [
        Place(1, 0),
        Place(1, 0),
        Place(1, 2),
    ]
    together = bank_on_a_line(VALUES, part_ids={"a": "one", "b": "one"})
    assert nearest_places(together, rows(0.0, 10.0, 30.0), [1], part_id="one") == [None]


def test_places_are_numbered_on_the_whole_grid_where_a_shape_was_learned() -> None:
    bank = bank_on_a_line(VALUES, mask_cells=[False, True, True])
    assert nearest_places(bank, rows(0.0, 19.0, 30.2), [1, 2]) == [Place(1, 1), Place(0, 2)]


def test_rows_on_another_device_are_taken_from_there() -> None:
    class Elsewhere:
        shape = (3, 1)

        def __array__(self, dtype=None, copy=None):
            return rows(10.4, 30.9, 4.0)

    assert nearest_places(bank_on_a_line(VALUES), Elsewhere(), [0, 2]) == [Place(0, 1), Place(1, 0)]


@pytest.fixture(scope="module")
def aligned():
    """Eight parts of 6 × 6 cells, each cell with a value of its own place and a little of its part."""
    rng = np.random.default_rng(0)
    place = np.arange(36) * 10.0
    values = {f"{part}": (place + rng.normal(0, 1, 36)).tolist() for part in range(8)}
    bank = bank_on_a_line(values, placement=grid_placement(6, 6), alignment=0.9, aligned=True)
    assert bank.local is not None
    return bank, {int(part): np.asarray(row, np.float32) for part, row in values.items()}


def test_in_an_aligned_roi_it_is_the_nearest_in_the_window(aligned) -> None:
    bank, values = aligned
    image = values[3].copy()
    image[14] = 150.0  # what cell 15 shows, beside it; and all parts but its own are near
    image[21] = 0.5  # what cell 0 shows, far away
    for part_id, skipped in ((None, ()), ("3", (3,))):
        for cell in (14, 21):
            row, column = divmod(cell, 6)
            window = [6 * y + x for y in range(row - 1, row + 2) for x in range(column - 1, column + 2)]
            expected = min(
                (abs(values[part][each] - image[cell]), part, each)
                for part in range(8)
                if part not in skipped
                for each in window
            )
            assert nearest_places(bank, image[:, None], [cell], part_id=part_id) == [Place(*expected[1:])]
