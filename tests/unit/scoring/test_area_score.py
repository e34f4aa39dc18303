from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from backend.scoring.area_score import area_score
from backend.scoring.regions import find_regions


def picture(*rows: str) -> np.ndarray:
    """[H, W] float32 from rows of digits; '.' is 0."""
    return np.array([[0 if c == "." else int(c) for c in row] for row in rows], np.float32)


def score_of(image_map: np.ndarray, min_area_px: int, mask: np.ndarray | None = None) -> float:
    return area_score(image_map, np.ones(image_map.shape, bool) if mask is None else mask, min_area_px)


def scan_of_all_levels(image_map: np.ndarray, mask: np.ndarray, min_area_px: int) -> float:
    """The definition: label {map ≥ t} for every value t of the map, from the highest."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    enough_px = min(max(min_area_px, 1), int(np.bincount(labels[mask]).max()))
    for level in np.unique(image_map[mask])[::-1]:
        hot = (image_map >= level) & mask
        labels, _ = ndimage.label(hot, np.ones((3, 3)))
        if np.bincount(labels[hot]).max() >= enough_px:
            return float(level)
    raise AssertionError("the lowest level holds the whole mask")


HILL = picture(
    ".....",
    ".123.",
    ".145.",
    ".222.",
    "....7",
)


@pytest.mark.parametrize(
    ("min_area_px", "score"),
    [
        (0, 7),
        (1, 7),
        (2, 4),  # 5 and 4; the 7 touches only a 2
        (3, 3),  # 5, 4, 3
        (4, 2),  # and the three 2 at once, the 2 of the first row, and by its corner the 7
        (8, 2),
        (9, 1),
        (10, 1),
        (11, 0),
        (25, 0),
    ],
)
def test_the_levels_of_a_hill_by_hand(min_area_px, score):
    assert score_of(HILL, min_area_px) == score


def test_pixels_that_touch_at_a_corner_are_one_area():
    diagonal = picture("9....", ".8...", "..7..", ".....")
    assert [score_of(diagonal, n) for n in (1, 2, 3, 4)] == [9, 8, 7, 0]


def test_equal_values_come_all_at_once():
    plateau = picture("3333.", "3333.", ".....")
    assert [score_of(plateau, n) for n in (1, 2, 8, 9)] == [3, 3, 3, 0]
    assert score_of(np.full((6, 7), 4, np.float32), 20) == 4


def test_two_areas_that_are_too_small_do_not_make_one():
    apart = picture("99.99", "99.99", ".....", "44444")
    assert [score_of(apart, n) for n in (4, 5)] == [9, 4]


def test_the_hole_of_an_area_does_not_count_to_it():
    ring = picture("6666", "6..6", "6..6", "6666")
    assert [score_of(ring, n) for n in (12, 13)] == [6, 0]


def test_what_lies_inside_a_ring_is_an_area_of_its_own():
    nested = picture("55555", "5...5", "5.9.5", "5...5", "55555")
    assert [score_of(nested, n) for n in (1, 2, 16, 17)] == [9, 5, 5, 0]


def test_nothing_outside_the_mask_counts_or_connects():
    image_map = picture("99999", "1.8.1", "99999")
    mask = np.array([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    assert [score_of(image_map, n, mask) for n in (1, 2, 5)] == [8, 0, 0]
    mask[0, :3] = True  # 9 9 9, then 8 by its side
    assert [score_of(image_map, n, mask) for n in (3, 4, 5, 6)] == [9, 8, 1, 0]


def test_an_area_at_the_edge_of_the_image_counts_only_what_is_in_it():
    corner = picture("77..", "77..", "....", "....")
    assert [score_of(corner, n) for n in (4, 5)] == [7, 0]


@pytest.mark.parametrize("min_area_px", [7, 8, 1000, 10**12])
def test_an_area_larger_than_the_mask_takes_the_lowest_level_of_its_largest_part(min_area_px):
    image_map = picture("2345.67", "2345.67", ".......")
    mask = picture("1111011", "1100011", "0000000").astype(bool)
    # Of 6 and of 4 pixels: the smallest value in the six.
    assert score_of(image_map, min_area_px, mask) == 2
    assert score_of(image_map, 4, mask) == 6


def test_of_two_largest_parts_the_one_with_the_higher_lowest_level_decides():
    assert score_of(picture("29.48"), 99, picture("11011").astype(bool)) == 4


def test_a_single_pixel_is_its_value():
    assert score_of(np.array([[0.25]], np.float32), 30) == 0.25


@st.composite
def maps(draw) -> tuple[np.ndarray, np.ndarray]:
    """A map up to 24 × 24 px, rough, soft or of few values, and a mask with a pixel at least."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hw = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    image_map = rng.random(hw, dtype=np.float32)
    sigma = draw(st.sampled_from([0, 0, 1, 3]))
    if sigma:
        image_map = cv2.GaussianBlur(image_map, (0, 0), sigma).reshape(hw)
    if draw(st.booleans()):
        image_map = np.round(image_map * 6) / np.float32(6)
    mask = rng.random(hw) < draw(st.sampled_from([1.0, 1.0, 0.9, 0.5]))
    mask[rng.integers(hw[0]), rng.integers(hw[1])] = True
    return image_map, mask


@given(maps(), st.integers(0, 80))
def test_the_score_is_that_of_a_scan_of_all_levels(drawn, min_area_px):
    image_map, mask = drawn
    before = image_map.copy()
    assert area_score(image_map, mask, min_area_px) == scan_of_all_levels(image_map, mask, min_area_px)
    np.testing.assert_array_equal(image_map, before)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("min_area_px", [2, 25, 26, 100, 700])
def test_a_large_map_has_an_area_at_its_score_and_none_above(seed, min_area_px):
    """Checked at the two levels that matter: a scan of all would take minutes."""
    rng = np.random.default_rng(seed)
    kinds = (rng.random((384, 384), dtype=np.float32), cv2.resize(rng.random((27, 27), dtype=np.float32), (384, 300)))
    image_map = cv2.GaussianBlur(kinds[seed % 2], (0, 0), 1 + seed // 2 / 2)
    mask = np.ones(image_map.shape, bool)
    mask[:, :20] = False
    score = area_score(image_map, mask, min_area_px)

    def largest_at(level: float) -> int:
        regions = find_regions(image_map, mask, threshold=level, area_mm2_thr=0, mm_per_px=1)
        return max((region.area_px for region in regions), default=0)

    assert largest_at(score) >= min_area_px
    assert largest_at(float(np.nextafter(np.float32(score), np.float32(9)))) < min_area_px
