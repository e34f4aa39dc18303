from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.calib import SCORE_MODES, ScoreRule
from backend.scoring.area_score import area_score
from backend.scoring.image_score import image_score
from backend.scoring.image_score import image_scores as scores_by_rule


def rule(mode="percentile", percentile=99.0, area_mm2_thr=1.0) -> ScoreRule:
    return ScoreRule(mode=mode, percentile=percentile, blur_sigma=0.0, area_mm2_thr=area_mm2_thr)


def image_scores(image_map, mask, *, percentile):
    """All but the area score, which has tests of its own."""
    scores = scores_by_rule(image_map, mask, rule(percentile=percentile), mm_per_px=1.0)
    scores.pop("area")
    return scores


@given(st.integers(1, 400), st.floats(0.01, 100), st.integers(0, 2**32 - 1), st.booleans())
def test_the_statistics_agree_with_numpy(n, percentile, seed, coarse):
    rng = np.random.default_rng(seed)
    values = rng.random(n, dtype=np.float32)
    if coarse:
        values = np.round(values, 1)
    image_map = np.full((2, n), 9, np.float32)
    image_map[1] = values
    mask = np.zeros((2, n), bool)
    mask[1] = True
    before = image_map.copy()
    scores = image_scores(image_map, mask, percentile=percentile)
    assert scores["percentile"] == pytest.approx(np.percentile(values.astype(np.float64), percentile), abs=2e-6)
    top = max(1, round(n * (1 - percentile / 100)))
    assert scores["top_mean"] == pytest.approx(np.sort(values)[-top:].mean(dtype=np.float64), abs=1e-6)
    assert scores["max"] == values.max()
    np.testing.assert_array_equal(image_map, before)


@pytest.mark.parametrize(
    ("percentile", "expected"),
    [
        # Of 0 … 100: 99 % of the way is 99; the top 1 % of 101 values is one; the top 10 % are ten.
        (99, {"percentile": 99, "top_mean": 100, "max": 100}),
        (90, {"percentile": 90, "top_mean": 95.5, "max": 100}),
        (100, {"percentile": 100, "top_mean": 100, "max": 100}),
        (50.5, {"percentile": 50.5, "top_mean": 75.5, "max": 100}),
    ],
)
def test_the_statistics_by_hand(percentile, expected):
    values = np.random.default_rng(0).permutation(101).astype(np.float32)[None, :]
    assert image_scores(values, np.ones((1, 101), bool), percentile=percentile) == pytest.approx(expected, abs=1e-4)


def test_what_lies_outside_the_mask_does_not_score():
    image_map = np.array([[1, 0, 9], [2, 0, 9]], np.float32)
    assert image_scores(image_map, np.array([[1, 1, 0], [1, 1, 0]], bool), percentile=100)["max"] == 2


@pytest.mark.parametrize(("mm_per_px", "area_px"), [(1.0, 5), (0.5, 20), (0.2, 125), (3.0, 1)])
def test_the_area_is_counted_in_pixels_of_the_map(mm_per_px, area_px):
    image_map = np.random.default_rng(2).random((30, 40), dtype=np.float32)
    mask = np.ones((30, 40), bool)
    scores = scores_by_rule(image_map, mask, rule(area_mm2_thr=5.0), mm_per_px=mm_per_px)
    assert scores["area"] == area_score(image_map, mask, area_px)


@pytest.mark.parametrize("mode", SCORE_MODES)
def test_the_score_of_a_mode_is_that_one_of_all(mode):
    image_map = np.random.default_rng(3).random((30, 40), dtype=np.float32)
    mask = np.random.default_rng(4).random((30, 40)) < 0.7
    asked = rule(mode, percentile=97.0, area_mm2_thr=3.0)
    assert (
        image_score(image_map, mask, asked, mm_per_px=0.5)
        == scores_by_rule(image_map, mask, asked, mm_per_px=0.5)[mode]
    )
