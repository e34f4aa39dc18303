import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.imaging.placement import Placement, place


def placement(image_hw, grid_hw):
    return Placement(image_hw=image_hw, input_hw=(grid_hw[0] * 14, grid_hw[1] * 14), grid_hw=grid_hw)


@pytest.mark.parametrize(
    ("image_hw", "resize", "grid_hw"),
    [
        ((384, 384), "aspect", (27, 27)),  # 384 is no multiple of 14: 378, from the whole image
        ((50, 50), "aspect", (27, 27)),
        ((100, 200), "aspect", (19, 38)),  # 27/√2 = 19.09, 27·√2 = 38.18
        ((200, 100), "aspect", (38, 19)),
        ((100, 200), "square", (27, 27)),
        ((8, 800), "aspect", (3, 270)),
        ((1, 10_000), "aspect", (1, 2700)),
    ],
)
def test_an_image_gets_the_grid_that_fits_its_aspect_ratio(image_hw, resize, grid_hw):
    placed = place(image_hw, input_size=384, cell_px=14, resize=resize)
    assert placed.grid_hw == grid_hw
    assert placed.input_hw == (grid_hw[0] * 14, grid_hw[1] * 14)
    assert placed.image_hw == image_hw


@given(st.integers(8, 3000), st.floats(1.0, 4.0), st.booleans())
def test_a_grid_has_about_as_many_cells_as_a_square_one_and_nearly_square_cells(edge, aspect, upright):
    image_hw = (round(edge * aspect), edge) if upright else (edge, round(edge * aspect))
    placed = place(image_hw, input_size=384, cell_px=14)
    assert placed.grid_hw[0] * placed.grid_hw[1] == pytest.approx(27 * 27, rel=0.06)
    cell_h, cell_w = image_hw[0] / placed.grid_hw[0], image_hw[1] / placed.grid_hw[1]
    assert cell_h / cell_w == pytest.approx(1, rel=0.06)


def test_an_input_without_a_cell_is_refused():
    with pytest.raises(ValueError, match="at least 14 px, got 13"):
        place((10, 10), input_size=13, cell_px=14)


def test_a_map_is_linear_between_cell_centres_and_flat_beyond_them():
    # Two cells over four pixels: the centres are at pixel coordinates 0.5 and 2.5.
    image_map = placement((1, 4), (1, 2)).to_image(np.array([[0.0, 1.0]], np.float32))
    assert image_map.tolist() == [[0.0, 0.25, 0.75, 1.0]]
    assert image_map.dtype == np.float32


def bilinear(grid, image_hw):
    """Map pixel centres to grid coordinates, clamp, and interpolate: the definition, in double precision."""
    positions = []
    for cells, pixels in zip(grid.shape, image_hw, strict=True):
        at = ((np.arange(pixels) + 0.5) * cells / pixels - 0.5).clip(0, cells - 1)
        low = np.floor(at).astype(int).clip(max=max(cells - 2, 0))
        positions.append((low, np.minimum(low + 1, cells - 1), at - low))
    (r0, r1, fr), (c0, c1, fc) = positions
    top = grid[r0][:, c0] * (1 - fc) + grid[r0][:, c1] * fc
    bottom = grid[r1][:, c0] * (1 - fc) + grid[r1][:, c1] * fc
    return top * (1 - fr)[:, None] + bottom * fr[:, None]


@pytest.mark.parametrize(
    ("image_hw", "grid_hw"),
    [((384, 384), (27, 27)), ((100, 200), (19, 38)), ((203, 97), (39, 19)), ((301, 15), (121, 6)), ((40, 40), (1, 1))],
)
def test_a_map_comes_to_image_pixels_as_the_definition_says(image_hw, grid_hw):
    grid = np.random.default_rng(0).random(grid_hw, dtype=np.float32)
    image_map = placement(image_hw, grid_hw).to_image(grid)
    assert image_map.shape == image_hw
    np.testing.assert_allclose(image_map, bilinear(grid.astype(np.float64), image_hw), atol=2e-6)


@pytest.mark.parametrize("edge", ["top", "bottom", "left", "right"])
def test_a_hot_outermost_row_or_column_reaches_the_last_six_pixels(edge):
    # 384 px fed as they are would leave the last 6 px of each axis outside the 27 cells of 14 px.
    grid = np.zeros((27, 27), np.float32)
    band, cells = {
        "top": (np.s_[:6], np.s_[0]),
        "bottom": (np.s_[-6:], np.s_[-1]),
        "left": (np.s_[:, :6], np.s_[:, 0]),
        "right": (np.s_[:, -6:], np.s_[:, -1]),
    }[edge]
    grid[cells] = 1
    image_map = place((384, 384), input_size=384, cell_px=14).to_image(grid)
    assert (image_map[band] == 1).all()
    assert image_map.sum() == pytest.approx(384 * 384 / 27, rel=0.01)


def test_rows_and_columns_of_a_map_are_not_exchanged():
    placed = place((100, 300), input_size=384, cell_px=14)
    grid = np.zeros(placed.grid_hw, np.float32)
    grid[0, -1] = 1
    image_map = placed.to_image(grid)
    assert image_map.shape == (100, 300)
    assert np.unravel_index(image_map.argmax(), image_map.shape)[1] > 290
    assert image_map[:3, 297:].min() == 1
    assert image_map[50:].max() == image_map[:, :200].max() == 0


def test_the_coverage_of_a_cell_is_the_share_of_its_pixels_inside_the_mask():
    mask = np.zeros((4, 6), bool)
    mask[0, 0] = True  # one of four pixels of the first cell
    mask[2:, 2:] = True  # two whole cells
    coverage = placement((4, 6), (2, 3)).cell_coverage(mask)
    assert coverage.tolist() == [[0.25, 0, 0], [0, 1, 1]]


def test_a_cell_that_shares_no_pixel_with_the_mask_is_not_covered_at_all():
    # A cell is 384/27 = 14.22 px wide: the first ends at 14.22, the second at 28.44.
    mask = np.zeros((384, 384), bool)
    mask[:, 15:] = True
    coverage = place((384, 384), input_size=384, cell_px=14).cell_coverage(mask)
    assert (coverage[:, 0] == 0).all()
    assert coverage[:, 1] == pytest.approx((2 * 384 / 27 - 15) / (384 / 27), abs=1e-5)
    assert coverage[:, 2:] == pytest.approx(1, abs=1e-5)


def shared(cells, pixels):
    """Return [cells, pixels]: how much of each cell lies in each pixel, in exact fractions."""
    width = Fraction(pixels, cells)
    overlap = [
        [max(Fraction(0), min((c + 1) * width, p + 1) - max(c * width, Fraction(p))) / width for p in range(pixels)]
        for c in range(cells)
    ]
    return np.array(overlap, dtype=np.float64)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 20), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_coverage_agrees_with_exact_fractions(rows, columns, more_rows, more_columns, seed):
    image_hw = (rows + more_rows, columns + more_columns)
    mask = np.random.default_rng(seed).random(image_hw) < 0.4
    exact = shared(rows, image_hw[0]) @ mask @ shared(columns, image_hw[1]).T
    coverage = placement(image_hw, (rows, columns)).cell_coverage(mask)
    np.testing.assert_allclose(coverage, exact, atol=2e-3)
    assert ((coverage > 0) == (exact > 1e-3)).all()


def test_a_cell_smaller_than_a_pixel_takes_the_pixels_value():
    mask = np.array([[True, False]])
    assert placement((1, 2), (2, 4)).cell_coverage(mask).tolist() == [[1, 1, 0, 0]] * 2


def test_the_size_of_a_cell_on_the_part_is_its_longer_edge():
    assert place((384, 384), input_size=384, cell_px=14).cell_mm(0.2) == pytest.approx(0.2 * 384 / 27)  # 2.84 mm
    assert placement((100, 100), (10, 5)).cell_mm(0.5) == 10.0
    assert math.isclose(placement((100, 100), (5, 10)).cell_mm(0.5), 10.0)
