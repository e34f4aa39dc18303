"""The alignment: how much of the images their mean explains, by hand and on images that agree or do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.demo.samples import render_good
from backend.imaging.position_map import position_map
from backend.memory_bank.alignment import ALIGNED_FROM, MIN_PARTS_ALIGNED, alignment, alignment_of_parts

EVERYWHERE = np.ones(2, bool)


def maps(*images) -> np.ndarray:
    """Return [n, cells, channels] float16 of images that are given as one list per channel."""
    return np.asarray(images, np.float16).transpose(0, 2, 1)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        # Less their means: (-1, 1), (-1, 1); nothing is left beside the mean image.
        ([[[0, 2]], [[5, 7]]], 1.0),
        # (-1, 1), (1, -1): the mean image is 0 and explains nothing; 1 - 2/1 · 4/4.
        ([[[0, 2]], [[2, 0]]], -1.0),
        # (-1, 1), (0, 0): mean (-.5, .5), left 4 · .25 = 1 of 2; 1 - 2 · 1/2.
        ([[[0, 2]], [[7, 7]]], 0.0),
        # (-3, 3), (-1, 1): mean (-2, 2), left 4 of 20; 1 - 2 · 4/20.
        ([[[0, 6]], [[4, 6]]], 0.6),
        # (-1, 1) twice and (1, -1): mean (-1/3, 1/3), left 4 · 4/9 + 2 · 16/9 = 16/3 of 6; 1 - 3/2 · 8/9.
        ([[[0, 2]], [[0, 2]], [[2, 0]]], -1 / 3),
        # Two channels: 1 and .6. Their scale does not count.
        ([[[0, 200], [0, 6]], [[0, 200], [4, 6]]], 0.8),
        # A channel that is flat in all images is left out.
        ([[[0, 6], [3, 3]], [[4, 6], [8, 8]]], 0.6),
    ],
    ids=["same", "opposite", "one flat", "one stronger", "two against one", "two channels", "a flat channel"],
)
def test_the_alignment_is_as_by_hand(images, expected):
    assert alignment(maps(*images), EVERYWHERE) == pytest.approx(expected, abs=1e-6)


def test_cells_outside_the_mask_do_not_count():
    mask = np.array([True, True, False])
    images = maps([[0, 6, 100]], [[4, 6, -7]])
    assert alignment(images, mask) == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize("mask", [[True, True], [True, False], [False, False]])
def test_images_that_are_flat_wherever_they_count_have_none(mask):
    assert alignment(maps([[3, 3], [0, 0]], [[9, 9], [0, 0]]), np.array(mask)) == 0.0


def test_plain_images_of_any_grey_have_none():
    plain = [position_map(np.full((90, 120, 3), grey, np.uint8)) for grey in range(100, 140)]
    assert alignment(np.stack(plain), np.ones(27 * 27, bool)) == 0.0


def test_the_least_noise_on_flat_images_does_not_change_that_much():
    noise = np.random.default_rng(0).standard_normal((20, 700, 4)) * 1e-3
    assert alignment((noise + 0.5).astype(np.float16), np.ones(700, bool)) == pytest.approx(0, abs=0.01)


def test_one_image_alone_agrees_with_nobody():
    with pytest.raises(ValueError, match="two at least"):
        alignment(maps([[0, 2]]), EVERYWHERE)


@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_images_that_have_nothing_to_do_with_each_other_have_none_however_few(n, seed):
    unrelated = np.random.default_rng(seed).standard_normal((n, 700, 4)).astype(np.float16)
    assert alignment(unrelated, np.ones(700, bool)) == pytest.approx(0, abs=6 / np.sqrt(2800 * n))


@given(st.integers(2, 30), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_it_is_the_share_of_what_all_have_in_common_whatever_their_number(n, share, seed):
    rng = np.random.default_rng(seed)
    common, own = rng.standard_normal((1, 2000, 4)), rng.standard_normal((n, 2000, 4))
    images = np.sqrt(share) * common + np.sqrt(1 - share) * own
    assert alignment(images.astype(np.float16), np.ones(2000, bool)) == pytest.approx(share, abs=0.1)


@given(st.integers(2, 6), st.lists(st.floats(-100, 100, width=16), min_size=24, max_size=24), st.integers(0, 7))
def test_it_is_finite_and_within_its_bounds_and_light_does_not_count(n, values, lit):
    images = np.resize(np.asarray(values, np.float16), (n, 6, 4))
    mask = np.array([bool(lit & bit) for bit in (1, 2, 4)] * 2)
    found = alignment(images, mask)
    assert -1 / (n - 1) - 1e-9 <= found <= 1
    assert alignment(images[::-1], mask) == pytest.approx(found, abs=1e-9)


def test_each_part_counts_once_by_its_first_image():
    rng = np.random.default_rng(3)
    unrelated = {f"{n:02}": rng.standard_normal((700, 4)).astype(np.float16) for n in range(MIN_PARTS_ALIGNED)}
    mask = np.ones(700, bool)
    alone = alignment_of_parts(unrelated, {}, mask)
    repeats = {f"9{n}": unrelated["00"] for n in range(5)}
    parts = dict.fromkeys(["00", *repeats], "P")
    assert alignment_of_parts({**repeats, **unrelated}, parts, mask) == alone
    assert alignment_of_parts({**repeats, **unrelated}, {}, mask) > alone + 0.05


def test_too_few_parts_have_none():
    images = {f"{n}": np.zeros((2, 4), np.float16) for n in range(MIN_PARTS_ALIGNED)}
    assert alignment_of_parts(images, {}, EVERYWHERE) == 0.0
    assert alignment_of_parts(images, {"0": "P", "1": "P"}, EVERYWHERE) is None


def test_rendered_parts_are_aligned_and_pieces_of_them_from_anywhere_are_not():
    parts = [render_good(seed, size_px=128).image_bgr for seed in range(MIN_PARTS_ALIGNED)]
    everywhere = np.ones(27 * 27, bool)
    assert alignment(np.stack([position_map(part) for part in parts]), everywhere) > 0.9
    rng = np.random.default_rng(4)
    pieces = []
    for part in parts:
        top, left = rng.integers(0, 64, 2)
        pieces.append(np.ascontiguousarray(np.rot90(part[top : top + 64, left : left + 64], rng.integers(4))))
    assert alignment(np.stack([position_map(piece) for piece in pieces]), everywhere) < ALIGNED_FROM
