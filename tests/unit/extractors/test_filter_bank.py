"""The extractor that needs no download: its contract, and that a response lies where the defect lies."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend.extractors.base import FeatureExtractor
from backend.extractors.filter_bank import FilterBankFeatures, _pool
from backend.memory_bank.whitening import NOISE_FLOOR, fit_whitening

Image = NDArray[np.uint8]

_FILTERED = 36
"""The first columns are pooled responses, mean, maximum and minimum of each of twelve; then come three means."""
_TONE, _A, _B = 36, 37, 38
_CELL_PX = 8


def _texture(height: int = 384, width: int = 384, seed: int = 0) -> Image:
    rng = np.random.default_rng(seed)
    grey = cv2.GaussianBlur(rng.normal(128, 12, (height, width)), (0, 0), 1.0)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _plain(value: int | tuple[int, int, int] = 128, size_px: int = 384) -> Image:
    """Return an image of one grey, or of one colour (B, G, R)."""
    return np.full((size_px, size_px, 3), value, dtype=np.uint8)


def _scores(
    extractor: FilterBankFeatures, learned: list[Image], image: Image, columns: slice = slice(None)
) -> NDArray[np.float32]:
    """Return the distance of each cell to the nearest cell of the learned images, in some of the columns: [Ht, Wt]."""
    raw = np.concatenate([extractor.extract(ok)[0][:, columns] for ok in learned])
    whitening = fit_whitening(raw)
    rows, grid_hw = extractor.extract(image)
    rows = rows[:, columns]
    similarity = whitening.apply(rows) @ whitening.apply(raw).T
    return np.sqrt(np.maximum(2 - 2 * similarity.max(axis=1), 0)).reshape(grid_hw)


def test_it_is_a_feature_extractor() -> None:
    extractor: FeatureExtractor = FilterBankFeatures()
    assert (extractor.name, extractor.device, extractor.whitens, extractor.batch_size) == (
        "filter-bank",
        "cpu",
        True,
        1,
    )


def test_a_square_roi_of_384_px_gets_a_grid_of_48_by_48_without_being_resampled() -> None:
    rows, grid_hw = FilterBankFeatures().extract(_texture())
    assert grid_hw == (48, 48)
    assert rows.shape == (48 * 48, 39)
    assert FilterBankFeatures().placement((384, 384)).input_hw == (384, 384)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous


def test_a_long_roi_keeps_its_aspect_ratio_unless_resize_is_square() -> None:
    image = _texture(200, 500)
    rows, grid_hw = FilterBankFeatures().extract(image)
    assert grid_hw == FilterBankFeatures().placement((200, 500)).grid_hw == (30, 76)
    assert len(rows) == 30 * 76
    assert FilterBankFeatures(resize="square").extract(image)[1] == (48, 48)


def test_the_same_image_gives_the_same_bytes_whatever_the_number_of_threads() -> None:
    image = _texture(300, 420)
    threads = cv2.getNumThreads()
    try:
        outcomes = set()
        for n_threads in (1, 2, 4, 4):
            cv2.setNumThreads(n_threads)
            outcomes.add(FilterBankFeatures().extract(image)[0].tobytes())
    finally:
        cv2.setNumThreads(threads)
    assert len(outcomes) == 1


def test_a_batch_gives_what_single_images_give() -> None:
    extractor = FilterBankFeatures(input_size=140)
    images = [_texture(150, 150, seed) for seed in range(3)]
    batch = extractor.extract_batch(images)
    assert len(batch) == 3
    for rows, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(rows, extractor.extract(image)[0])
    assert extractor.extract_batch([]) == []


def test_rows_are_row_major() -> None:
    image = np.full((384, 384, 3), 128, dtype=np.uint8)
    image[58:62, 298:302] = 0  # In the middle of row 7 and column 37 of 48.
    rows, (_, columns) = FilterBankFeatures().extract(image)
    assert np.abs(rows[:, :_FILTERED]).sum(axis=1).argmax() == 7 * columns + 37


@pytest.mark.parametrize(
    ("start_xy", "end_xy", "cells"),
    [
        ((100, 204), (160, 204), {(25, column) for column in range(13, 20)}),
        ((204, 60), (204, 120), {(row, 25) for row in range(8, 15)}),
        ((381, 100), (381, 160), {(row, 47) for row in range(13, 20)}),
        ((100, 381), (160, 381), {(47, column) for column in range(13, 20)}),
    ],
    ids=["horizontal", "vertical", "in the last 6 px of x", "in the last 6 px of y"],
)
@pytest.mark.parametrize("grey", [50, 235], ids=["dark", "bright"])
def test_a_scratch_lights_the_cells_it_lies_in(
    start_xy: tuple[int, int], end_xy: tuple[int, int], cells: set[tuple[int, int]], grey: int
) -> None:
    image = _texture(seed=9)
    cv2.line(image, start_xy, end_xy, (grey, grey, grey), 2)
    scores = _scores(FilterBankFeatures(), [_texture(seed=1), _texture(seed=2)], image)
    lit = np.zeros(scores.shape, dtype=bool)
    lit[tuple(np.array(sorted(cells)).T)] = True
    far = cv2.dilate(lit.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
    assert scores[lit].min() > 1.5 * scores[far].max()


def test_slow_unevenness_of_the_light_moves_the_filters_less_than_a_faint_scratch() -> None:
    learned = [_texture(seed=1), _texture(seed=2)]
    good = _texture(seed=9)
    ramp = np.linspace(0.85, 1.15, 384)[None, :, None]
    uneven = (good * ramp).clip(0, 255).astype(np.uint8)
    scratched = good.copy()
    cv2.line(scratched, (100, 200), (160, 230), (90, 90, 90), 2)
    extractor, filters = FilterBankFeatures(), slice(_FILTERED)
    plain, ramped, faint = (_scores(extractor, learned, image, filters).max() for image in (good, uneven, scratched))
    assert ramped < plain + 0.2 * (faint - plain)


def _strongest(image: Image) -> NDArray[np.float32]:
    """Return the strongest response of each filter, without sign: [12]."""
    rows, _ = FilterBankFeatures().extract(image)
    return np.abs(rows[:, :_FILTERED]).max(axis=0).reshape(-1, 3).max(axis=1)


def test_the_line_filters_prefer_a_line_to_a_speck_of_its_width() -> None:
    line, speck = (np.full((384, 384, 3), 128, dtype=np.uint8) for _ in range(2))
    cv2.line(line, (150, 180), (230, 210), (100, 100, 100), 3)
    speck[190:193, 190:193] = 100
    ratio = _strongest(line) / _strongest(speck)
    blob, dark_line = ratio[2], ratio[8]  # Of each family the one of this width that answers to dark things.
    assert dark_line > 2 * blob


def test_a_scratch_of_the_same_contrast_answers_alike_on_dark_and_on_bright_ground() -> None:
    strengths = []
    for ground in (100, 200):
        image = np.full((384, 384, 3), ground, dtype=np.uint8)
        cv2.line(image, (150, 180), (230, 210), (ground * 4 // 5,) * 3, 3)
        strengths.append(_strongest(image).max())
    assert strengths[1] < 1.5 * strengths[0]  # On a linear scale it would be twice as strong.


def test_a_line_thinner_than_a_pixel_of_the_network_input_is_seen_wherever_it_falls() -> None:
    strengths = []
    for offset in range(4):
        image = np.full((1512, 1512, 3), 128, dtype=np.uint8)
        image[:, 700 + offset] = 0
        strengths.append(_strongest(image).max())
    assert min(strengths) > 0.7 * max(strengths)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_constant_image_answers_with_its_tone_alone_and_stays_finite(grey: int) -> None:
    rows, _ = FilterBankFeatures().extract(_plain(grey))
    assert np.isfinite(rows).all()
    assert np.abs(np.delete(rows, _TONE, axis=1)).max() < 0.05
    assert rows[:, _TONE] == pytest.approx(228 * np.log1p(grey / 100), abs=1e-3)
    assert np.isfinite(fit_whitening(rows).apply(rows)).all()


def test_a_defect_shows_on_a_part_learned_from_one_constant_image() -> None:
    image = np.full((384, 384, 3), 128, dtype=np.uint8)
    scratched = image.copy()
    cv2.line(scratched, (100, 200), (160, 200), (110, 110, 110), 2)
    scores = _scores(FilterBankFeatures(), [image], scratched)
    assert scores[25, 16] > 0.5
    assert scores[0, 0] < 0.05


@pytest.mark.parametrize("image_hw", [(1, 1), (5, 300), (300, 5), (13, 17), (2, 2)])
def test_small_images_do_not_crash(image_hw: tuple[int, int]) -> None:
    rows, (height, width) = FilterBankFeatures().extract(_texture(*image_hw))
    assert len(rows) == height * width
    assert np.isfinite(rows).all()


def test_the_smallest_network_input_is_one_cell() -> None:
    rows, grid_hw = FilterBankFeatures(input_size=8).extract(_texture(40, 40))
    assert grid_hw == (1, 1)
    assert np.isfinite(rows).all()


def test_an_image_that_is_not_contiguous_gives_the_same_numbers() -> None:
    image = _texture(200, 200)
    wide = np.concatenate([image, image], axis=1)
    np.testing.assert_array_equal(
        FilterBankFeatures().extract(wide[:, :200])[0], FilterBankFeatures().extract(image)[0]
    )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 20), dtype=np.uint8),
        np.zeros((20, 20, 4), dtype=np.uint8),
        np.zeros((20, 20, 3), dtype=np.float32),
        np.zeros((0, 20, 3), dtype=np.uint8),
    ],
)
def test_an_image_of_another_kind_is_refused_with_what_is_expected(image: Any) -> None:
    with pytest.raises(ValueError, match=r"an image must be \[H, W, 3\] uint8, got"):
        FilterBankFeatures().extract(image)


def test_what_gives_other_numbers_has_another_extractor_id() -> None:
    variants: list[dict[str, Any]] = [{}, {"input_size": 512}, {"resize": "square"}]
    assert len({FilterBankFeatures(**parameters).extractor_id for parameters in variants}) == len(variants)
    assert FilterBankFeatures().extractor_id == FilterBankFeatures(input_size=384).extractor_id
    assert FilterBankFeatures().extractor_id == (
        "filter-bank/v2:blobs=1,2,4,8:lines=1.4x10,2.8x20*12:log=100:means=tone,a,b*0.5:cell=8:window=16:input=384:aspect"
    )


# --- where a cell looks -----------------------------------------------------------------------------------------------


def _changed(image: Image, column: int) -> set[tuple[int, int]]:
    """Return the cells whose value in a column differs from that of a plain grey image."""
    extractor = FilterBankFeatures()
    rows, grid_hw = extractor.extract(image)
    plain, _ = extractor.extract(_plain())
    return {(int(r), int(c)) for r, c in np.argwhere(np.abs(rows - plain)[:, column].reshape(grid_hw) > 1e-3)}


@pytest.mark.parametrize(
    ("at", "cells"),
    [
        (0, {0}),  # Only [-4, 12) holds it.
        (3, {0}),
        (4, {0, 1}),  # [4, 20) begins.
        (11, {0, 1}),
        (12, {1, 2}),  # [-4, 12) has ended, and [12, 28) begins.
        (100, {12, 13}),  # [92, 108) and [100, 116)
        (99, {11, 12}),
        (379, {46, 47}),  # [364, 380) ends with it.
        (380, {47}),
        (383, {47}),
    ],
)
def test_a_dot_moves_the_tone_of_the_cells_whose_windows_hold_it(at: int, cells: set[int]) -> None:
    image = _plain()
    image[at, 204] = 0
    assert _changed(image, _TONE) == {(row, column) for row in cells for column in (25, 26)}
    image = _plain()
    image[204, at] = 0
    assert _changed(image, _TONE) == {(row, column) for row in (25, 26) for column in cells}


def test_the_tone_of_a_cell_is_the_mean_over_its_window_of_a_mirrored_image() -> None:
    image = np.random.default_rng(3).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    extractor = FilterBankFeatures(input_size=32)
    assert extractor.placement((24, 40)).input_hw == (24, 40), "not resampled"
    rows, grid_hw = extractor.extract(image)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float64)
    mirrored = np.pad(228 * np.log1p(grey / 100), 4, mode="symmetric")
    means = [[mirrored[8 * r : 8 * r + 16, 8 * c : 8 * c + 16].mean() for c in range(5)] for r in range(3)]
    np.testing.assert_allclose(rows[:, _TONE].reshape(grid_hw), means, rtol=1e-5)


@pytest.mark.parametrize("cell", [8, 4], ids=["full", "half resolution"])
@pytest.mark.parametrize("grid_hw", [(1, 1), (1, 3), (5, 2)])
def test_windows_are_pooled_as_the_definition_says(cell: int, grid_hw: tuple[int, int]) -> None:
    rows, columns = grid_hw
    response = np.random.default_rng(0).normal(0, 30, (rows * cell, columns * cell)).astype(np.float32)
    mirrored = np.pad(response.astype(np.float64), cell // 2, mode="symmetric")
    windows = [
        mirrored[cell * r : cell * (r + 2), cell * c : cell * (c + 2)] for r in range(rows) for c in range(columns)
    ]
    expected = [[window.mean(), window.max(), window.min()] for window in windows]
    np.testing.assert_allclose(_pool(response, grid_hw), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("image_hw", [(384, 384), (300, 420), (500, 470), (100, 30)])
@pytest.mark.parametrize("axis", [0, 1], ids=["up-down", "left-right"])
def test_the_grid_of_a_flipped_image_is_the_flipped_grid(image_hw: tuple[int, int], axis: int) -> None:
    # A shift of half a cell, or a window that reaches farther to one side, would show here.
    rng = np.random.default_rng(5)
    image = cv2.GaussianBlur(rng.integers(0, 256, (*image_hw, 3), dtype=np.uint8), (0, 0), 1.0)
    extractor = FilterBankFeatures()
    rows, grid_hw = extractor.extract(image)
    flipped, flipped_hw = extractor.extract(np.ascontiguousarray(np.flip(image, axis)))
    assert flipped_hw == grid_hw
    # Equal to the rounding of a smoothed tone, which the curvature at the coarsest scale multiplies by 64.
    np.testing.assert_allclose(np.flip(flipped.reshape(*grid_hw, -1), axis), rows.reshape(*grid_hw, -1), atol=0.03)


@given(st.integers(16, 366), st.integers(16, 366), st.sampled_from([60, 220]))
@settings(max_examples=25, deadline=None)
def test_the_map_peaks_on_a_spot_wherever_it_lies(y: int, x: int, grey: int) -> None:
    image = _plain()
    image[y : y + 2, x : x + 2] = grey
    extractor = FilterBankFeatures()
    rows, grid_hw = extractor.extract(image)
    distances = np.linalg.norm(rows - extractor.extract(_plain())[0], axis=1).reshape(grid_hw)
    image_map = extractor.placement((384, 384)).to_image(distances)
    # A spot between two cells lights both alike: the middle of the plateau counts.
    peak = np.argwhere(image_map >= 0.999 * image_map.max()).mean(axis=0)
    assert np.abs(peak - (y + 0.5, x + 0.5)).max() <= _CELL_PX / 2


@pytest.mark.parametrize("at", [0, 4, 8, 374, 378, 382])
def test_a_spot_at_the_border_lights_the_border(at: int) -> None:
    # Its mirror image beyond the border draws the peak towards the border, by a cell at the most.
    image = _plain()
    image[at : at + 2, 203:205] = 60
    extractor = FilterBankFeatures()
    rows, grid_hw = extractor.extract(image)
    distances = np.linalg.norm(rows - extractor.extract(_plain())[0], axis=1).reshape(grid_hw)
    assert abs(int(np.unravel_index(distances.argmax(), grid_hw)[0]) - at // _CELL_PX) <= 1


# --- tone and colour --------------------------------------------------------------------------------------------------


def _moved(before: Image, after: Image) -> set[int]:
    """Return the columns that an image has changed by more than the whitening's noise floor anywhere."""
    extractor = FilterBankFeatures()
    difference = np.abs(extractor.extract(after)[0] - extractor.extract(before)[0]).max(axis=0)
    return {int(column) for column in np.flatnonzero(difference > NOISE_FLOOR)}


def test_a_brighter_image_changes_the_tone_alone() -> None:
    assert _moved(_plain(120), _plain(126)) == {_TONE}


def test_a_stain_without_an_edge_changes_the_tone_alone() -> None:
    y, x = np.mgrid[:384, :384] - 192.0
    stain = 30 * np.exp(-(y**2 + x**2) / (2 * 80**2))
    # Dithered, because the steps of 8 bits are edges.
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (384, 384))
    stained = np.repeat((128 - stain + noise).round().astype(np.uint8)[:, :, None], 3, axis=2)
    plain = np.repeat((128 + noise).round().astype(np.uint8)[:, :, None], 3, axis=2)
    extractor = FilterBankFeatures()
    difference = np.abs(extractor.extract(stained)[0] - extractor.extract(plain)[0]).max(axis=0)
    assert difference[_TONE] > 25
    assert difference[:_FILTERED].max() < 0.2 * difference[_TONE]
    assert difference[[_A, _B]].max() < 1e-3


def test_a_tint_of_the_same_grey_changes_the_colour_alone() -> None:
    # 0.114 · 36 = 0.299 · 14: bluer, less red, equally grey.
    assert _moved(_plain(128), _plain((164, 128, 114))) == {_A, _B}


@pytest.mark.parametrize(
    ("bgr", "a", "b"),
    [((0, 0, 255), 80.09, 67.20), ((0, 255, 0), -86.18, 83.18), ((255, 0, 0), 79.20, -107.86)],
    ids=["red", "green", "blue"],
)
def test_colour_is_cie_lab(bgr: tuple[int, int, int], a: float, b: float) -> None:
    rows, _ = FilterBankFeatures().extract(_plain(bgr, 64))
    assert rows[:, _A] == pytest.approx(0.5 * a, abs=0.3)
    assert rows[:, _B] == pytest.approx(0.5 * b, abs=0.3)


def test_a_grey_image_has_no_colour() -> None:
    grey = np.arange(64 * 64, dtype=np.int64).reshape(64, 64) % 256
    rows, _ = FilterBankFeatures(input_size=64).extract(np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2))
    assert np.abs(rows[:, [_A, _B]]).max() < 1e-3
