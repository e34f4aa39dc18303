from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.imaging.placement import place
from backend.roi_mask import Annulus, Circle, Rect, shape_mask
from backend.scoring.anomaly_map import HEATMAP_AT_THRESHOLD, anomaly_map, heatmap
from tests.testkit.fakes import grid_placement

WHOLE = place((384, 384), input_size=384, cell_px=14)


def everywhere(image_hw) -> np.ndarray:
    return np.ones(image_hw, bool)


@pytest.mark.parametrize("blur_sigma", [0.0, 1.0, 6.0])
@pytest.mark.parametrize(
    "shape",
    [
        None,
        Rect(x=3, y=5, w=40, h=2),
        Rect(x=0, y=0, w=1, h=1),
        Circle(cx=60, cy=20, r=30),
        Annulus(cx=55, cy=30, r=29, r_inner=27),
    ],
)
def test_a_constant_stays_constant_inside_any_shape_and_is_zero_outside(shape, blur_sigma):
    placement = place((61, 113), input_size=384, cell_px=14)
    mask = shape_mask(shape, (61, 113))
    distances = np.full(math.prod(placement.grid_hw), 0.7, np.float32)
    image_map = anomaly_map(distances, placement, mask, blur_sigma=blur_sigma)
    np.testing.assert_allclose(image_map[mask], 0.7, rtol=1e-5)
    assert (image_map[~mask] == 0).all()
    assert image_map.shape == (61, 113)
    assert image_map.dtype == np.float32


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.8, 3.0]), st.floats(0.02, 0.98), st.booleans())
def test_a_constant_stays_constant_inside_any_mask_at_all(seed, blur_sigma, share, some_unknown):
    rng = np.random.default_rng(seed)
    placement = grid_placement(4, 5, cell_px=6)
    mask = rng.random((24, 30)) < share
    mask[seed % 24, seed % 30] = True
    distances = np.full(20, 0.7, np.float32)
    if some_unknown:
        distances[(placement.cell_coverage(mask) == 0).ravel()] = np.nan
    image_map = anomaly_map(distances, placement, mask, blur_sigma=blur_sigma)
    np.testing.assert_allclose(image_map[mask], 0.7, rtol=1e-5)
    assert (image_map[~mask] == 0).all()


def test_without_mask_and_blur_the_map_is_the_placements():
    distances = np.random.default_rng(0).random(27 * 27, dtype=np.float32)
    image_map = anomaly_map(distances, WHOLE, everywhere((384, 384)), blur_sigma=0)
    np.testing.assert_array_equal(image_map, WHOLE.to_image(distances.reshape(27, 27)))


def test_the_blur_is_a_gaussian_of_that_many_image_pixels():
    placement = grid_placement(41, 61)
    distances = np.zeros((41, 61), np.float32)
    distances[20, 30] = 1
    image_map = anomaly_map(distances.ravel(), placement, everywhere((41, 61)), blur_sigma=2.0)
    ys, xs = np.mgrid[:41, :61]
    gaussian = np.exp(-((ys - 20) ** 2 + (xs - 30) ** 2) / (2 * 2.0**2)) / (2 * np.pi * 2.0**2)
    np.testing.assert_allclose(image_map, gaussian, atol=2e-4)
    assert image_map.sum() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("blur_sigma", [0.0, 1.0, 5.0])
def test_a_hot_cell_just_outside_the_shape_leaves_the_inside_untouched(blur_sigma):
    # Cells are 14.22 px wide: cell 13 ends at 199.1, so a shape that ends at column 199 does not touch cell 14.
    mask = shape_mask(Rect(x=0, y=0, w=199, h=384), (384, 384))
    cold = np.random.default_rng(0).random((27, 27), dtype=np.float32)
    hot = cold.copy()
    hot[:, 14:] = 2
    expected, image_map = (anomaly_map(grid.ravel(), WHOLE, mask, blur_sigma=blur_sigma) for grid in (cold, hot))
    np.testing.assert_array_equal(image_map, expected)
    assert image_map.max() <= 1
    touching = cold.copy()
    touching[:, 13] = 2
    assert anomaly_map(touching.ravel(), WHOLE, mask, blur_sigma=blur_sigma).max() > 1.5


@pytest.mark.parametrize("blur_sigma", [0.0, 1.0])
def test_the_inner_disc_of_a_ring_does_not_leak_into_the_ring(blur_sigma):
    mask = shape_mask(Annulus(cx=192, cy=192, r=180, r_inner=100), (384, 384))
    untouched = WHOLE.cell_coverage(mask) == 0
    distances = np.where(untouched, 2, 0.3).astype(np.float32)
    image_map = anomaly_map(distances.ravel(), WHOLE, mask, blur_sigma=blur_sigma)
    np.testing.assert_allclose(image_map[mask], 0.3, rtol=1e-5)


def test_the_blur_inside_a_mask_is_the_mean_over_what_lies_inside():
    rng = np.random.default_rng(1)
    placement = grid_placement(20, 30)
    mask = rng.random((20, 30)) < 0.6
    values = rng.random((20, 30), dtype=np.float32)
    image_map = anomaly_map(values.ravel(), placement, mask, blur_sigma=1.5)
    ys, xs = np.nonzero(mask)
    kernel = cv2.getGaussianKernel(13, 1.5).ravel()  # what OpenCV takes for 1.5 px of float: 4 sigma to each side

    def weight(step: np.ndarray) -> np.ndarray:
        return np.where(abs(step) <= 6, kernel[np.clip(step + 6, 0, 12)], 0)

    for y, x in [(10, 15), (9, 14), (11, 17)]:
        if mask[y, x]:  # far from the border, so that nothing is mirrored
            weights = weight(ys - y) * weight(xs - x)
            assert image_map[y, x] == pytest.approx((weights * values[mask]).sum() / weights.sum(), rel=1e-4)


def test_unknown_cells_take_no_part_and_are_no_zeros():
    distances = np.full((4, 4), 0.5, np.float32)
    distances[:, 2:] = np.nan
    placement = grid_placement(4, 4, cell_px=10)
    mask = shape_mask(Rect(x=0, y=0, w=20, h=40), (40, 40))
    image_map = anomaly_map(distances.ravel(), placement, mask, blur_sigma=1.0)
    np.testing.assert_allclose(image_map[mask], 0.5, rtol=1e-5)
    assert np.isfinite(image_map).all()


@pytest.mark.parametrize("image_hw", [(100, 300), (300, 100), (203, 97)])
def test_a_hot_cell_lies_where_it_was_seen_on_images_that_are_not_square(image_hw):
    placement = place(image_hw, input_size=384, cell_px=14)
    rows, columns = placement.grid_hw
    for row, column in [(0, 0), (rows - 1, 0), (0, columns - 1), (rows // 2, columns // 3)]:
        grid = np.zeros((rows, columns), np.float32)
        grid[row, column] = 1
        image_map = anomaly_map(grid.ravel(), placement, everywhere(image_hw), blur_sigma=1.0)
        ys, xs = np.nonzero(image_map > 0.5 * image_map.max())
        y0, y1 = (edge * image_hw[0] / rows for edge in (row, row + 1))
        x0, x1 = (edge * image_hw[1] / columns for edge in (column, column + 1))
        assert abs(ys.mean() + 0.5 - (y0 + y1) / 2) < 1
        assert abs(xs.mean() + 0.5 - (x0 + x1) / 2) < 1


def test_a_blur_wider_than_the_image_is_its_mean():
    placement = grid_placement(8, 8)
    values = np.random.default_rng(0).random(64, dtype=np.float32)
    image_map = anomaly_map(values, placement, everywhere((8, 8)), blur_sigma=50)
    np.testing.assert_allclose(image_map, values.mean(), atol=0.02)


# -- the heat map --


@pytest.mark.parametrize(
    ("value", "grey"),
    [(0.0, 0), (0.25, 64), (0.5, 128), (0.75, 192), (0.996, 255), (1.0, 255), (5.0, 255), (0.001, 0), (0.002, 1)],
)
def test_the_heat_map_shows_the_threshold_as_128_and_twice_of_it_as_255(value, grey):
    assert HEATMAP_AT_THRESHOLD == 128
    assert heatmap(np.full((2, 3), value, np.float32), 1.0).tolist() == [[grey] * 3] * 2


@given(st.floats(1e-4, 4))
def test_every_threshold_is_shown_as_128(threshold):
    levels = heatmap(np.array([[0, 1, 2, 3]], np.float32) * np.float32(threshold), 2 * threshold)
    assert levels.tolist() == [[0, 128, 255, 255]]


def test_the_heat_map_is_not_stretched_to_the_images_own_range():
    faint = np.linspace(0, 0.1, 50, dtype=np.float32).reshape(5, 10)
    assert heatmap(faint, 2.0).max() == 13  # 0.05 · 256 = 12.8


def test_above_a_threshold_of_zero_everything_is_white_that_is_not_zero():
    levels = heatmap(np.array([[0.0, 1e-6], [0.3, 2.0]], np.float32), 0.0)
    assert levels.dtype == np.uint8
    assert levels.tolist() == [[0, 255], [255, 255]]
