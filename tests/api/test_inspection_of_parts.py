"""The whole way on rendered machined parts: learn good ones, inspect good and defective ones, over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.demo.samples import Sample, machined_ring, render_defective, render_good
from backend.roi_mask import shape_fields, shape_mask
from tests.testkit.app import MM_PER_PX, Api, answer_of, heatmap_of, running_app
from tests.testkit.fakes import encoded

SIZE_PX = 384
CELL_PX = SIZE_PX / 48
WINDOW_PX = 2 * CELL_PX
N_GOOD = 24
UNSEEN = range(100, 104)
RING = shape_fields(machined_ring(SIZE_PX))
INSIDE = shape_mask(machined_ring(SIZE_PX), (SIZE_PX, SIZE_PX))

LARGE = [("chipped_edge", 200), ("chipped_edge", 202), ("rust", 200)]
"""Defects that move the 99th percentile of the ring's map."""
SMALL = [("pit", 200), ("pit", 202), ("chipped_edge", 201)]
"""Defects of a few mm²: less than 1 % of the ring, so the calibration takes the maximum."""


@pytest.fixture(scope="module")
def good_images() -> list[bytes]:
    return [encoded(render_good(seed, size_px=SIZE_PX, mm_per_px=MM_PER_PX).image_bgr) for seed in range(N_GOOD)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts") / "models"


@pytest.fixture(scope="module")
def api(models: Path) -> Iterator[Api]:
    """The service with its default settings but for the extractor."""
    with running_app(models, input_size=384) as started:
        yield started


@pytest.fixture(scope="module")
def fitted(api: Api, good_images: list[bytes]) -> dict[str, Any]:
    return answer_of(api.fit(good_images, shape=RING))


@pytest.fixture(scope="module")
def calibrated(api: Api, fitted: dict[str, Any]) -> dict[str, Any]:
    return answer_of(api.calibrate(score_mode="percentile"))


@pytest.fixture(scope="module")
def by_maximum(models: Path, calibrated: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The same ROI, with the maximum of the map for its score."""
    copied = tmp_path_factory.mktemp("parts-by-maximum") / "models"
    shutil.copytree(models, copied)
    with running_app(copied, input_size=384) as started:
        answer_of(started.calibrate(score_mode="max"))
        yield started


def test_good_parts_become_a_coreset_of_one_to_five_percent(fitted: dict[str, Any]) -> None:
    assert fitted["n_ok_total"] == fitted["n_parts"] == N_GOOD
    assert fitted["token_shape"] == [48, 48]
    assert 0.01 <= fitted["coreset_rate_applied"] <= 0.05
    assert fitted["coreset_size"] == pytest.approx(0.02 * fitted["n_embeddings"], abs=1)
    assert fitted["n_embeddings"] % N_GOOD == 0
    cells = fitted["n_embeddings"] // N_GOOD
    assert INSIDE.sum() / CELL_PX**2 < cells < 48 * 48, "the cells that the ring touches, not the whole grid"


def test_the_threshold_is_the_largest_score_of_the_good_parts(
    fitted: dict[str, Any], calibrated: dict[str, Any]
) -> None:
    assert calibrated["threshold"] == pytest.approx(fitted["ok_scores"]["max"])
    assert calibrated["expected_false_alarm_rate"] == pytest.approx(1 / (N_GOOD + 1))


@pytest.mark.usefixtures("calibrated")
@pytest.mark.parametrize("seed", UNSEEN)
def test_a_good_part_that_nobody_has_seen_is_ok_and_cold(api: Api, seed: int) -> None:
    answer = answer_of(api.infer(encoded(render_good(seed).image_bgr), shape=RING))
    assert answer["decision"] == "ok"
    assert answer["score"] < answer["threshold"]
    heat = heatmap_of(answer)
    assert np.median(heat[INSIDE]) < 128
    assert np.mean(heat[INSIDE] > 128) < 0.01


@pytest.mark.usefixtures("calibrated")
@pytest.mark.parametrize(("kind", "seed"), LARGE)
def test_a_defective_part_is_ng_and_hot_on_its_defect_alone(api: Api, kind: str, seed: int) -> None:
    sample = _defective(kind, seed)
    answer = answer_of(api.infer(encoded(sample.image_bgr), shape=RING))
    assert answer["decision"] == "ng"
    assert answer["score"] > answer["threshold"]
    _check_hot_on_the_defect(answer, sample)


@pytest.mark.parametrize(("kind", "seed"), SMALL)
def test_a_small_defect_is_ng_where_the_score_is_the_maximum(by_maximum: Api, kind: str, seed: int) -> None:
    sample = _defective(kind, seed)
    answer = answer_of(by_maximum.infer(encoded(sample.image_bgr), shape=RING))
    assert answer["decision"] == "ng"
    _check_hot_on_the_defect(answer, sample)


def test_good_parts_are_ok_where_the_score_is_the_maximum(by_maximum: Api) -> None:
    images = [encoded(render_good(seed).image_bgr) for seed in range(100, 110)]
    answers = [answer_of(by_maximum.infer(image, shape=RING)) for image in images]
    assert all((answer["decision"] == "ok") == (answer["regions"] == []) for answer in answers)
    # 24 parts promise one false alarm in 25 on average.
    assert [answer["decision"] for answer in answers].count("ok") >= 9


def _check_hot_on_the_defect(answer: dict[str, Any], sample: Sample) -> None:
    heat = heatmap_of(answer)
    assert heat.shape == (SIZE_PX, SIZE_PX)
    near = _grown(sample.defect_mask, WINDOW_PX)
    row, column = np.argwhere(heat == heat.max()).mean(axis=0).round().astype(int)  # from twice the threshold on: 255
    assert near[row, column], "the middle of what is hottest lies on the defect, to within one window"
    assert heat.max() > 128
    far = INSIDE & ~_grown(sample.defect_mask, 3 * WINDOW_PX)
    assert np.median(heat[far]) < 128
    assert not heat[~INSIDE].any(), "0 outside the ring"
    x, y, w, h = max(answer["regions"], key=lambda region: region["peak"])["bbox"]
    assert near[y : y + h, x : x + w].any()


def test_the_hottest_place_of_a_good_part_is_colder_than_a_defect(api: Api, calibrated: dict[str, Any]) -> None:
    good = [heatmap_of(answer_of(api.infer(encoded(render_good(seed).image_bgr)))).max() for seed in UNSEEN]
    bad = [heatmap_of(answer_of(api.infer(encoded(_defective(*defect).image_bgr)))).max() for defect in LARGE]
    assert max(good) < min(bad)


@pytest.mark.usefixtures("calibrated")
def test_a_learned_part_is_scored_as_if_it_were_new(api: Api, good_images: list[bytes], fitted: dict[str, Any]) -> None:
    answers = [answer_of(api.infer(image, heatmap="none")) for image in good_images]
    assert {answer["params"]["scoring"] for answer in answers} == {"leave_one_out"}
    scores = [answer["score"] for answer in answers]
    assert max(scores) == pytest.approx(fitted["ok_scores"]["max"], rel=1e-4)
    assert np.median(scores) == pytest.approx(fitted["ok_scores"]["p50"], rel=1e-4)
    assert {answer["decision"] for answer in answers} == {"ok"}


@pytest.mark.usefixtures("calibrated")
def test_the_same_part_as_a_jpeg_is_judged_alike(api: Api) -> None:
    image = render_good(UNSEEN[0]).image_bgr
    ok, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert ok
    as_png, as_jpeg = answer_of(api.infer(encoded(image))), answer_of(api.infer(jpeg.tobytes()))
    assert as_jpeg["decision"] == as_png["decision"] == "ok"
    assert as_jpeg["score"] == pytest.approx(as_png["score"], rel=0.1)


def _defective(kind: str, seed: int) -> Sample:
    return render_defective(seed, kind, size_px=SIZE_PX, mm_per_px=MM_PER_PX)


def _grown(mask: NDArray[np.bool_], by_px: float) -> NDArray[np.bool_]:
    size = 2 * int(by_px) + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((size, size), np.uint8)).astype(bool)
