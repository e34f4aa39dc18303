from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.calib import SCORE_MODES, ScoreRule
from backend.scoring.agreement import contradictions, regions_of
from backend.scoring.image_score import image_scores
from backend.scoring.regions import find_regions


def rule(mode: str, area_mm2_thr: float = 2.0) -> ScoreRule:
    return ScoreRule(mode=mode, percentile=90.0, blur_sigma=0.0, area_mm2_thr=area_mm2_thr)


def judged(image_map, threshold, score_rule, mask=None, mm_per_px=1.0):
    """The score, the regions and the warnings of a map."""
    mask = np.ones(image_map.shape, bool) if mask is None else mask
    score = image_scores(image_map, mask, score_rule, mm_per_px=mm_per_px)[score_rule.mode]
    how = {"score": score, "threshold": threshold, "mm_per_px": mm_per_px}
    regions = regions_of(image_map, mask, score_rule, **how)
    return score, regions, list(contradictions(mask, score_rule, regions, **how))


def spots(*areas_px_and_values: tuple[int, float]) -> np.ndarray:
    """[20, 40] float32 of 0.1 with horizontal lines of so many pixels and such a value."""
    image_map = np.full((20, 40), 0.1, np.float32)
    for row, (area_px, value) in enumerate(areas_px_and_values):
        image_map[1 + 3 * row, 2 : 2 + area_px] = value
    return image_map


def test_in_max_the_area_of_the_maximum_is_drawn_however_small_and_the_others_by_their_size():
    image_map = spots((1, 0.9), (1, 0.8), (5, 0.7), (3, 0.6))
    score, regions, warnings = judged(image_map, 0.5, rule("max", area_mm2_thr=4))
    assert score == np.float32(0.9)
    assert [(region.area_px, region.peak_score) for region in regions] == [(5, np.float32(0.7)), (1, np.float32(0.9))]
    assert warnings == []


def test_in_area_small_hot_spots_neither_decide_nor_are_drawn():
    image_map = spots((3, 0.9), (4, 0.6))
    assert judged(image_map, 0.7, rule("area", area_mm2_thr=4)) == (float(np.float32(0.6)), (), [])
    score, (region,), warnings = judged(image_map, 0.5, rule("area", area_mm2_thr=4))
    assert (region.area_px, warnings) == (4, [])
    assert score > 0.5


@pytest.mark.parametrize("mode", SCORE_MODES)
def test_a_score_that_equals_the_threshold_is_ok_and_nothing_is_drawn(mode):
    image_map = spots((5, 0.7))
    threshold = float(np.float32(0.7))
    assert judged(image_map, threshold, rule(mode))[1:] == ((), [])
    # And one that is above it by less than float32 can tell apart: numpy alone would take both for equal.
    (region,) = judged(image_map, np.nextafter(threshold, 0.0), rule(mode))[1]
    assert region.area_px == 5
    assert judged(image_map, np.nextafter(threshold, 1.0), rule(mode))[1] == ()


def test_a_mask_without_room_for_the_area_draws_its_largest_part_and_says_so():
    image_map = np.full((4, 6), 0.6, np.float32)
    mask = np.zeros((4, 6), bool)
    mask[0, :3] = mask[3, 4:] = True
    score, regions, warnings = judged(image_map, 0.5, rule("area", area_mm2_thr=9), mask)
    assert (score, [region.area_px for region in regions]) == (float(np.float32(0.6)), [3])
    (sentence,) = warnings
    assert "has 5 mm², less than area_mm2_thr (9 mm²)" in sentence
    assert judged(image_map, 0.7, rule("area", area_mm2_thr=9), mask)[1] == ()


@pytest.mark.parametrize("mode", ["percentile", "top_mean"])
def test_the_ordered_statistics_name_regions_on_an_ok(mode):
    score, regions, (sentence,) = judged(spots((4, 0.9), (3, 0.8)), 0.7, rule(mode))
    assert score < 0.7
    assert [region.area_px for region in regions] == [4, 3]
    assert sentence.startswith(f"The part is ok, but 2 regions lie above the threshold: the score ({mode})")
    assert "score_mode=area" in sentence
    assert "area_mm2_thr above 4." in sentence


def test_what_is_said_of_one_region_is_said_of_one():
    assert "but a region lies above" in judged(spots((4, 0.9)), 0.7, rule("percentile"))[2][0]


@pytest.mark.parametrize("mode", ["percentile", "top_mean"])
def test_the_ordered_statistics_name_an_ng_without_regions(mode):
    image_map = np.full((20, 40), 0.1, np.float32)
    image_map[::3, ::2] = 0.9  # a sixth of all pixels, none beside another
    score, regions, (sentence,) = judged(image_map, 0.5, rule(mode))
    assert score > 0.5
    assert regions == ()
    assert sentence.startswith("The part is ng, but no connected area of 2 mm² lies above the threshold")
    assert "score_mode=area" in sentence


@pytest.mark.parametrize("mode", ["percentile", "top_mean"])
def test_the_ordered_statistics_are_silent_where_both_say_the_same(mode):
    image_map = np.full((20, 40), 0.1, np.float32)
    assert judged(image_map, 0.5, rule(mode))[1:] == ((), [])
    image_map[5:15] = 0.9
    assert judged(image_map, 0.5, rule(mode))[2] == []


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hw = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    image_map = rng.random(hw, dtype=np.float32)
    if draw(st.booleans()):
        image_map = cv2.GaussianBlur(image_map, (0, 0), 2).reshape(hw)
    if draw(st.booleans()):
        image_map = np.round(image_map * 8) / np.float32(8)
    mask = rng.random(hw) < draw(st.sampled_from([1.0, 1.0, 0.8, 0.3]))
    mask[0, 0] = True
    value = float(rng.choice(image_map[mask]))
    near = draw(st.sampled_from([value, np.nextafter(value, 2.0), np.nextafter(value, 0.0), value * 0.9, 0.5, 0.0]))
    return image_map, mask, float(near), draw(st.floats(0, 40)), draw(st.sampled_from([1.0, 0.5, 0.2]))


@given(cases(), st.sampled_from(["area", "max"]))
def test_in_area_and_max_what_is_decided_is_what_is_drawn(case, mode):
    image_map, mask, threshold, area_mm2_thr, mm_per_px = case
    score, regions, _ = judged(image_map, threshold, rule(mode, area_mm2_thr), mask, mm_per_px)
    assert bool(regions) == (score > threshold)
    assert all(region.peak_score > threshold for region in regions)


@given(cases(), st.sampled_from(["percentile", "top_mean"]))
def test_in_the_ordered_modes_regions_are_whatever_lies_above_the_threshold(case, mode):
    image_map, mask, threshold, area_mm2_thr, mm_per_px = case
    score, regions, warnings = judged(image_map, threshold, rule(mode, area_mm2_thr), mask, mm_per_px)
    level = np.float32(threshold)
    if float(level) <= threshold:
        level = np.nextafter(level, np.float32(np.inf))
    assert regions == find_regions(
        image_map, mask, threshold=float(level), area_mm2_thr=area_mm2_thr, mm_per_px=mm_per_px
    )
    assert bool(warnings) == (bool(regions) != (score > threshold))


def test_every_mode_has_its_regions():
    assert set(SCORE_MODES) == {"percentile", "top_mean", "max", "area"}
