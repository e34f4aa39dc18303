from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.imaging.placement import place
from backend.scoring.anomaly_map import anomaly_map
from backend.scoring.regions import find_regions


def picture(*rows: str) -> np.ndarray:
    """[H, W] float32 from rows of digits; '.' is 0."""
    return np.array([[0 if c == "." else int(c) for c in row] for row in rows], np.float32)


def regions_of(image_map, *, threshold=1.0, area_mm2_thr=0.0, mm_per_px=1.0, mask=None):
    mask = np.ones(image_map.shape, bool) if mask is None else mask
    return find_regions(image_map, mask, threshold=threshold, area_mm2_thr=area_mm2_thr, mm_per_px=mm_per_px)


@pytest.mark.parametrize(
    ("h", "w"), [(1, 20), (20, 1), (3, 3), (1, 1), (2, 2)], ids=["scratch", "upright scratch", "3x3", "pixel", "2x2"]
)
def test_an_area_is_a_number_of_pixels_and_not_that_of_the_outlines_polygon(h, w):
    # cv2.contourArea gives 0 for one pixel width and 4 for 3 × 3.
    image_map = np.zeros((40, 40), np.float32)
    image_map[7 : 7 + h, 9 : 9 + w] = 2
    (region,) = regions_of(image_map, mm_per_px=0.2)
    assert region.area_px == h * w
    assert region.area_mm2 == pytest.approx(h * w * 0.04)
    assert region.bbox_xywh_px == (9, 7, w, h)
    assert region.peak_score == 2


@pytest.mark.parametrize(
    ("mm_per_px", "area_mm2_thr", "kept_px"),
    [
        (0.2, 1.0, [30, 25]),  # 1 mm² is 25 px
        (0.2, 1.01, [30]),
        (0.1, 1.0, []),  # 100 px
        (0.1, 0.24, [30, 25, 24]),  # 24 px
        (1.0, 1.0, [30, 25, 24, 1]),
        (0.5, 6.25, [30, 25]),  # 25 px again
        (0.2, 0.0, [30, 25, 24, 1]),
    ],
)
def test_islands_below_the_area_are_dropped_at_any_scale(mm_per_px, area_mm2_thr, kept_px):
    image_map = np.zeros((12, 60), np.float32)
    for x, (h, w) in zip((0, 12, 24, 50), ((5, 5), (6, 5), (4, 6), (1, 1)), strict=True):
        image_map[3 : 3 + h, x : x + w] = 1
    regions = regions_of(image_map, area_mm2_thr=area_mm2_thr, mm_per_px=mm_per_px)
    assert [region.area_px for region in regions] == kept_px


def test_the_threshold_itself_is_hot_and_anything_below_is_not():
    image_map = picture("12.", "...", "..9")
    assert [region.area_px for region in regions_of(image_map, threshold=2)] == [1, 1]
    assert [region.bbox_xywh_px[:2] for region in regions_of(image_map, threshold=2)] == [(1, 0), (2, 2)]
    assert regions_of(image_map, threshold=9.5) == ()


def test_pixels_that_touch_at_a_corner_are_one_region():
    (region,) = regions_of(picture("1....", ".1...", "..1..", ".....", "....."))
    assert (region.area_px, region.bbox_xywh_px) == (3, (0, 0, 3, 3))


def test_a_region_in_the_hole_of_another_has_its_own_outline_and_peak():
    image_map = np.zeros((60, 60), np.float32)
    image_map[10:50, 10:50] = 0.7
    image_map[15:45, 15:45] = 0.1
    image_map[25:30, 27:33] = 0.9
    ring, dot = find_regions(image_map, np.ones((60, 60), bool), threshold=0.5, area_mm2_thr=0, mm_per_px=1)
    assert (ring.bbox_xywh_px, ring.area_px, ring.peak_score) == ((10, 10, 40, 40), 1600 - 900, np.float32(0.7))
    assert set(ring.contour_xy) == {(10, 10), (10, 49), (49, 49), (49, 10)}
    assert (dot.bbox_xywh_px, dot.area_px, dot.peak_score) == ((27, 25, 6, 5), 30, np.float32(0.9))
    assert set(dot.contour_xy) == {(27, 25), (27, 29), (32, 29), (32, 25)}
    assert all(type(value) is int for point in dot.contour_xy for value in point)


def test_nothing_outside_the_mask_is_a_region():
    mask = np.zeros((4, 4), bool)
    mask[:, :2] = True
    (region,) = regions_of(np.full((4, 4), 3, np.float32), mask=mask)
    assert (region.area_px, region.bbox_xywh_px) == (8, (0, 0, 2, 4))
    assert regions_of(np.full((4, 4), 3, np.float32), mask=np.zeros((4, 4), bool)) == ()


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.6), st.integers(1, 25), st.integers(1, 25))
def test_regions_are_the_connected_areas_and_their_outlines_run_on_them(seed, share, height, width):
    hot = np.random.default_rng(seed).random((height, width)) < share
    image_map = hot.astype(np.float32)
    regions = regions_of(image_map)
    assert sum(region.area_px for region in regions) == hot.sum()
    assert [region.area_px for region in regions] == sorted((region.area_px for region in regions), reverse=True)
    drawn = np.zeros((height, width), np.uint8)
    for region in regions:
        contour = np.array(region.contour_xy)
        assert contour.dtype.kind == "i"
        assert image_map[contour[:, 1], contour[:, 0]].all()
        x, y, w, h = region.bbox_xywh_px
        assert (contour.min(axis=0).tolist(), contour.max(axis=0).tolist()) == ([x, y], [x + w - 1, y + h - 1])
        cv2.drawContours(drawn, [contour[:, None, :]], -1, 1, thickness=cv2.FILLED)
    # The outlines, filled, cover all that is hot; what they cover beside it are holes.
    assert drawn[hot].all()
    _, background = cv2.connectedComponents(np.pad((~hot).astype(np.uint8), 1, constant_values=1), connectivity=4)
    assert not drawn[(background == background[0, 0])[1:-1, 1:-1]].any()


@pytest.mark.parametrize("edge", ["top", "bottom", "left", "right"])
def test_a_defect_in_the_last_six_pixels_of_an_image_is_a_region_there(edge):
    grid = np.zeros((27, 27), np.float32)
    grid[
        {"top": np.s_[0, 10:12], "bottom": np.s_[26, 10:12], "left": np.s_[10:12, 0], "right": np.s_[10:12, 26]}[edge]
    ] = 1
    mask = np.ones((384, 384), bool)
    image_map = anomaly_map(grid.ravel(), place((384, 384), input_size=384, cell_px=14), mask)
    (region,) = find_regions(image_map, mask, threshold=0.5, area_mm2_thr=1, mm_per_px=0.2)
    x, y, w, h = region.bbox_xywh_px
    assert {"top": y, "left": x, "bottom": 384 - y - h, "right": 384 - x - w}[edge] == 0
    along = x if edge in ("top", "bottom") else y
    assert along == pytest.approx(10 * 384 / 27, abs=2)


@pytest.mark.parametrize("seed", range(12))
def test_regions_are_those_of_a_plain_walk_over_the_whole_image(seed):
    rng = np.random.default_rng(seed)
    image_map = cv2.GaussianBlur(rng.random(rng.integers(20, 200, 2), dtype=np.float32), (0, 0), rng.uniform(0.5, 5))
    mask = rng.random(image_map.shape) > 0.02
    threshold = float(np.percentile(image_map, rng.choice([50, 90, 99])))
    hot = ((image_map >= threshold) & mask).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(hot, connectivity=8)
    expected = sorted(
        (-int(area), (int(x), int(y), int(w), int(h)), float(image_map[labels == label].max()))
        for label, (x, y, w, h, area) in enumerate(stats)
        if label
    )
    found = find_regions(image_map, mask, threshold=threshold, area_mm2_thr=0, mm_per_px=1)
    assert sorted((-region.area_px, region.bbox_xywh_px, region.peak_score) for region in found) == expected
    for region in found:
        x, y, w, h = region.bbox_xywh_px
        outline = np.array(region.contour_xy)
        assert outline.min(axis=0).tolist() == [x, y]
        assert outline.max(axis=0).tolist() == [x + w - 1, y + h - 1]
