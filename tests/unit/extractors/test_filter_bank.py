"""The extractor that needs no download: its contract, and that a response lies where the defect lies."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.extractors.base import FeatureExtractor
from backend.extractors.filter_bank import FilterBankFeatures
from backend.memory_bank.whitening import fit_whitening

Image = NDArray[np.uint8]


def _texture(height: int = 384, width: int = 384, seed: int = 0) -> Image:
    rng = np.random.default_rng(seed)
    grey = cv2.GaussianBlur(rng.normal(128, 12, (height, width)), (0, 0), 1.0)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _scores(extractor: FilterBankFeatures, learned: list[Image], image: Image) -> NDArray[np.float32]:
    """Return the distance of each cell to the nearest cell of the learned images: [Ht, Wt]."""
    raw = np.concatenate([extractor.extract(ok)[0] for ok in learned])
    whitening = fit_whitening(raw)
    rows, grid_hw = extractor.extract(image)
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


def test_a_square_roi_of_384_px_gets_a_grid_of_27_by_27() -> None:
    rows, grid_hw = FilterBankFeatures().extract(_texture())
    assert grid_hw == (27, 27)
    assert rows.shape == (27 * 27, 30)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous


def test_a_long_roi_keeps_its_aspect_ratio_unless_resize_is_square() -> None:
    image = _texture(200, 500)
    rows, grid_hw = FilterBankFeatures().extract(image)
    assert grid_hw == FilterBankFeatures().placement((200, 500)).grid_hw == (17, 43)
    assert len(rows) == 17 * 43
    assert FilterBankFeatures(resize="square").extract(image)[1] == (27, 27)


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
    image[60:64, 300:304] = 0  # Row 4 of 27, column 21 of 27.
    rows, (_, columns) = FilterBankFeatures().extract(image)
    assert np.abs(rows).max(axis=1).argmax() == 4 * columns + 21


@pytest.mark.parametrize(
    ("start_xy", "end_xy", "cells"),
    [
        ((100, 200), (160, 200), {(14, column) for column in range(8, 11)}),
        ((200, 60), (200, 120), {(row, 14) for row in range(5, 8)}),
        ((381, 100), (381, 160), {(row, 26) for row in range(8, 11)}),
        ((100, 381), (160, 381), {(26, column) for column in range(8, 11)}),
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


def test_slow_unevenness_of_the_light_moves_scores_less_than_a_faint_scratch() -> None:
    learned = [_texture(seed=1), _texture(seed=2)]
    good = _texture(seed=9)
    ramp = np.linspace(0.85, 1.15, 384)[None, :, None]
    uneven = (good * ramp).clip(0, 255).astype(np.uint8)
    scratched = good.copy()
    cv2.line(scratched, (100, 200), (160, 230), (90, 90, 90), 2)
    extractor = FilterBankFeatures()
    plain, ramped, faint = (_scores(extractor, learned, image).max() for image in (good, uneven, scratched))
    assert ramped < plain + 0.2 * (faint - plain)


def _strongest(image: Image) -> NDArray[np.float32]:
    """Return the strongest response of each channel, without sign: [10]."""
    rows, _ = FilterBankFeatures().extract(image)
    return np.abs(rows).max(axis=0).reshape(-1, 3).max(axis=1)


def test_the_line_filters_prefer_a_line_to_a_speck_of_its_width() -> None:
    line, speck = (np.full((384, 384, 3), 128, dtype=np.uint8) for _ in range(2))
    cv2.line(line, (150, 180), (230, 210), (100, 100, 100), 3)
    speck[190:193, 190:193] = 100
    ratio = _strongest(line) / _strongest(speck)
    blob, dark_line = ratio[0], ratio[6]  # The smallest of each family that answer to dark things.
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
def test_a_constant_image_answers_nothing_and_stays_finite(grey: int) -> None:
    rows, _ = FilterBankFeatures().extract(np.full((384, 384, 3), grey, dtype=np.uint8))
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() < 0.05
    assert np.isfinite(fit_whitening(rows).apply(rows)).all()


def test_a_defect_shows_on_a_part_learned_from_one_constant_image() -> None:
    image = np.full((384, 384, 3), 128, dtype=np.uint8)
    scratched = image.copy()
    cv2.line(scratched, (100, 200), (160, 200), (110, 110, 110), 2)
    scores = _scores(FilterBankFeatures(), [image], scratched)
    assert scores[14, 9] > 0.5
    assert scores[0, 0] < 0.05


@pytest.mark.parametrize("image_hw", [(1, 1), (5, 300), (300, 5), (13, 17), (2, 2)])
def test_small_images_do_not_crash(image_hw: tuple[int, int]) -> None:
    rows, (height, width) = FilterBankFeatures().extract(_texture(*image_hw))
    assert len(rows) == height * width
    assert np.isfinite(rows).all()


def test_the_smallest_network_input_is_one_cell() -> None:
    rows, grid_hw = FilterBankFeatures(input_size=14).extract(_texture(40, 40))
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
    variants = [{}, {"input_size": 512}, {"resize": "square"}]
    assert len({FilterBankFeatures(**parameters).extractor_id for parameters in variants}) == len(variants)
    assert FilterBankFeatures().extractor_id == FilterBankFeatures(input_size=384).extractor_id
