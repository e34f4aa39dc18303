from __future__ import annotations

import inspect
import math
from contextlib import closing

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import BadShape, MemoryNotFound
from backend.extractors.loader import ExtractorLoader
from backend.imaging.placement import place
from backend.infer import infer_one
from backend.roi_mask import Annulus, Circle, Rect, shape_mask
from backend.scoring.anomaly_map import HEATMAP_AT_THRESHOLD, anomaly_map, heatmap
from backend.scoring.image_score import image_scores
from backend.scoring.inspection import Inspection
from backend.scoring.regions import find_regions
from backend.services.fit_request import Upload
from backend.settings import Settings
from backend.wiring import build_service
from tests.testkit.fakes import FakeExtractor, defective_image, encoded, good_image, grid_placement

WHOLE = place((384, 384), input_size=384, cell_px=14)


def everywhere(image_hw) -> np.ndarray:
    return np.ones(image_hw, bool)


def picture(*rows: str) -> np.ndarray:
    """[H, W] float32 from rows of digits; '.' is 0."""
    return np.array([[0 if c == "." else int(c) for c in row] for row in rows], np.float32)


# -- the map ------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("edge", ["top", "bottom", "left", "right"])
def test_a_defect_in_the_last_six_pixels_of_an_image_is_a_region_there(edge):
    grid = np.zeros((27, 27), np.float32)
    grid[
        {"top": np.s_[0, 10:12], "bottom": np.s_[26, 10:12], "left": np.s_[10:12, 0], "right": np.s_[10:12, 26]}[edge]
    ] = 1
    mask = everywhere((384, 384))
    image_map = anomaly_map(grid.ravel(), WHOLE, mask)
    (region,) = find_regions(image_map, mask, threshold=0.5, area_mm2_thr=1, mm_per_px=0.2)
    x, y, w, h = region.bbox_xywh_px
    assert {"top": y, "left": x, "bottom": 384 - y - h, "right": 384 - x - w}[edge] == 0
    along = x if edge in ("top", "bottom") else y
    assert along == pytest.approx(10 * 384 / 27, abs=2)


def test_a_blur_wider_than_the_image_is_its_mean():
    placement = grid_placement(8, 8)
    values = np.random.default_rng(0).random(64, dtype=np.float32)
    image_map = anomaly_map(values, placement, everywhere((8, 8)), blur_sigma=50)
    np.testing.assert_allclose(image_map, values.mean(), atol=0.02)


# -- the score ----------------------------------------------------------------------------------------------------


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
    image_map = picture("1.9", "2.9")
    assert image_scores(image_map, np.array([[1, 1, 0], [1, 1, 0]], bool), percentile=100)["max"] == 2


# -- regions ------------------------------------------------------------------------------------------------------


def regions_of(image_map, *, threshold=1.0, area_mm2_thr=0.0, mm_per_px=1.0, mask=None):
    mask = everywhere(image_map.shape) if mask is None else mask
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


def test_a_region_inside_the_box_of_another_is_told_apart():
    image_map = picture(
        "11111",
        "1...1",
        "1.5.1",
        "1...1",
        "11111",
    )
    ring, dot = regions_of(image_map)
    assert (ring.area_px, ring.peak_score, ring.bbox_xywh_px) == (16, 1, (0, 0, 5, 5))
    assert (dot.area_px, dot.peak_score, dot.contour_xy) == (1, 5, ((2, 2),))


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


def test_the_outline_of_a_rectangle_is_its_four_corners():
    image_map = np.zeros((20, 20), np.float32)
    image_map[4:9, 6:16] = 1
    (region,) = regions_of(image_map)
    assert set(region.contour_xy) == {(6, 4), (15, 4), (15, 8), (6, 8)}
    assert all(type(value) is int for point in region.contour_xy for value in point)


# -- the heat map -------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("full_scale", [0.0, -1.0])
def test_without_a_scale_the_heat_map_is_black(full_scale):
    levels = heatmap(np.ones((2, 2), np.float32), full_scale)
    assert levels.dtype == np.uint8
    assert not levels.any()


def test_the_heat_map_of_an_inspection_is_black_outside_the_mask():
    mask = shape_mask(Circle(cx=30, cy=30, r=20), (64, 64))
    image_map = anomaly_map(np.full(64, 0.9, np.float32), grid_placement(8, 8, cell_px=8), mask)
    inspection = Inspection(
        score=0.9,
        calibration=None,
        map=image_map,
        mask=mask,
        regions=(),
        grid_hw=(8, 8),
        heatmap_full_scale=1.0,
        params={},
        timings_ms={},
    )
    assert (inspection.heatmap[~mask] == 0).all()
    assert (inspection.heatmap[mask] == 230).all()  # 0.9 · 256 = 230.4
    assert inspection.scores_under(50)["percentile"] == pytest.approx(0.9)


# -- infer_one ----------------------------------------------------------------------------------------------------


def test_infer_one_has_the_arguments_that_the_order_fixed():
    parameters = inspect.signature(infer_one).parameters
    assert {name: p.default for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY} == {
        "image": inspect.Parameter.empty,
        "role_id": inspect.Parameter.empty,
        "roi_id": inspect.Parameter.empty,
        "mm_per_px": inspect.Parameter.empty,
        "shape": None,
        "k": None,
        "p_score": None,
        "blur_sigma": None,
        "area_mm2_thr": None,
    }


@pytest.fixture
def fitted(service, key):
    uploads = [Upload(name=f"{seed}.png", data=encoded(good_image(seed))) for seed in range(6)]
    service.fit_ok(key, uploads, mm_per_px=0.2, coreset_rate=0.5)
    return service


def inspect_one(service, image, **options):
    return infer_one(image, "Inspection", "inspection-1", 0.2, service=service, **options)


def test_infer_one_takes_pixels_or_bytes_and_finds_the_same(fitted):
    image = defective_image(50)
    by_pixels, by_bytes = inspect_one(fitted, image), inspect_one(fitted, encoded(image))
    assert by_pixels == by_bytes
    assert (by_pixels.threshold, by_pixels.decision, by_pixels.regions) == (None, None, ())
    assert by_pixels.map.shape == (64, 64)


def test_infer_one_tells_a_defect_from_a_good_part_and_says_where(fitted, key):
    fitted.calibrate(key)
    good, bad = inspect_one(fitted, good_image(50)), inspect_one(fitted, defective_image(50))
    assert (good.decision, good.regions) == ("ok", ())
    assert bad.decision == "ng"
    assert bad.score > bad.threshold > good.score
    x, y, w, h = bad.regions[0].bbox_xywh_px
    assert abs(x + w / 2 - 32) <= 4
    assert abs(y + h / 2 - 32) <= 4
    assert bad.regions[0].peak_score == bad.map.max()


def test_infer_one_takes_a_shape_as_text_or_as_an_object(fitted):
    image = defective_image(50)
    by_text = inspect_one(fitted, image, shape='{"kind":"rect","x":0,"y":0,"w":16,"h":64}')
    by_object = inspect_one(fitted, image, shape={"kind": "rect", "x": 0, "y": 0, "w": 16, "h": 64})
    assert by_text == by_object
    assert by_text.mask.sum() == 16 * 64
    assert by_text.score < inspect_one(fitted, image).score
    with pytest.raises(BadShape):
        inspect_one(fitted, image, shape={"kind": "star"})


def test_infer_one_takes_what_is_left_out_from_the_roi(tmp_path, key):
    settings = Settings(models_dir=tmp_path / "models", k=3, blur_sigma=4.0, coreset_rate=0.5)
    service = build_service(settings, extractor=ExtractorLoader(lambda: (FakeExtractor(), None)))
    with closing(service):
        service.fit_ok(key, [Upload(name=f"{n}.png", data=encoded(good_image(n))) for n in range(6)], mm_per_px=0.2)
        service.calibrate(key)
        image = defective_image(50)
        by_service, by_script = service.infer(key, image, mm_per_px=0.2), inspect_one(service, image)
        assert by_script == by_service
        assert (by_script.params["k"], by_script.params["blur_sigma"], by_script.decision) == (3, 4.0, "ng")
        assert inspect_one(service, image, k=3, blur_sigma=4.0) == by_service
        for other in ({"k": 1}, {"blur_sigma": 1.0}):  # a score on another scale than the threshold
            found = inspect_one(service, image, **other)
            assert (found.threshold, found.decision, found.regions) == (None, None, ())
            assert found.score != by_service.score


def test_infer_one_uses_every_setting_that_it_takes(fitted):
    image = defective_image(50)
    plain = inspect_one(fitted, image)
    assert inspect_one(fitted, image, k=3).score > plain.score
    assert inspect_one(fitted, image, p_score=50).score < plain.score
    assert inspect_one(fitted, image, blur_sigma=9.0).map.max() < plain.map.max()
    assert inspect_one(fitted, image, area_mm2_thr=7.0).params["area_mm2_thr"] == 7.0


def test_a_learned_image_is_scored_without_itself(fitted):
    inspection = inspect_one(fitted, good_image(0))
    assert inspection.params["scoring"] == "leave_one_out"
    assert inspection.score > 0.3 * inspect_one(fitted, good_image(50)).score
    assert inspect_one(fitted, good_image(50)).params["scoring"] == "new"


def test_infer_one_on_a_roi_that_was_never_fitted_says_so(service):
    with pytest.raises(MemoryNotFound, match="run /fit_ok first"):
        inspect_one(service, good_image(0))


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
