"""What an image's size, its mm_per_px and a shape's coordinates say, where they do not agree with the fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from tests.testkit.app import Api, answer_of, error_of, heatmap_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, plate, plates

NAMED = {"role_id": ROLE, "roi_id": ROI}
HW = (192, 192)
BOX = (60, 100, 48, 40)


def darkened() -> np.ndarray:
    """Return a plate with a dark rectangle: one that is as dark at half the size."""
    image = plate(20, HW)
    x, y, width, height = BOX
    image[y : y + height, x : x + width] //= 3
    return image


SPECK = darkened()


def resized(image: np.ndarray, width: int, height: int) -> bytes:
    return encoded(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def fit(api: Api) -> None:
    answer_of(api.fit(plates(range(8), HW)))
    answer_of(api.calibrate(score_mode="area", area_mm2_thr=1))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service with a fitted and calibrated ROI of 192×192 px at 0.2 mm, 38.4 mm wide; tests leave it as it is."""
    with running_app(tmp_path_factory.mktemp("geometry") / "models", input_size=128) as api:
        fit(api)
        yield api


@pytest.fixture
def api(tmp_path: Any) -> Iterator[Api]:
    with running_app(tmp_path / "models", input_size=128) as started:
        yield started


def area_of(answer: dict[str, Any]) -> float:
    return float(sum(region["area_mm2"] for region in answer["regions"]))


def of_size(answer: dict[str, Any]) -> list[str]:
    return [text for text in answer["warnings"] if "another size" in text]


# --- physical size ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("px", "mm"), [(96, 0.4), (144, 0.2667), (384, 0.1), (190, 0.2), (192, 0.2035), (97, 0.4)])
def test_an_image_of_the_same_physical_size_is_judged_as_ever_and_without_a_word(
    fitted: Api, px: int, mm: float
) -> None:
    full = answer_of(fitted.infer(encoded(SPECK)))
    answer = answer_of(fitted.infer(resized(SPECK, px, px), mm_per_px=str(mm)))
    assert (answer["decision"], of_size(answer)) == ("ng", [])
    assert answer["threshold"] == full["threshold"]
    assert area_of(answer) == pytest.approx(area_of(full), rel=0.25)
    for region in answer["regions"]:
        assert region["area_mm2"] == pytest.approx(region["area_px"] * answer["params"]["mm_per_px"] ** 2, rel=1e-6)
    assert answer["params"]["cell_mm"] == pytest.approx(full["params"]["cell_mm"], rel=0.03)
    assert heatmap_of(answer).shape == (px, px)
    good = answer_of(fitted.infer(resized(plate(40, HW), px, px), mm_per_px=str(mm)))
    assert of_size(good) == []


@pytest.mark.parametrize("px", [96, 384])
def test_another_size_at_the_same_scale_is_resized_with_a_warning_and_right_areas(fitted: Api, px: int) -> None:
    full = answer_of(fitted.infer(encoded(SPECK)))
    answer = answer_of(fitted.infer(resized(SPECK, px, px)))
    (text,) = of_size(answer)
    assert f"{px}×{px} px" in text
    assert "192×192 px" in text
    assert f"{0.2 * 192 / px:.4g} mm per pixel" in text
    assert area_of(answer) == pytest.approx(area_of(full), rel=0.25)


@pytest.mark.parametrize(("px", "mm"), [(96, 0.3), (96, 0.1), (384, 0.4), (192, 0.205), (192, 0.5)])
def test_where_both_differ_it_is_409_and_both_are_named(fitted: Api, px: int, mm: float) -> None:
    image = resized(SPECK, px, px)
    for reply in (fitted.infer(image, mm_per_px=str(mm)), fitted.fit([image], mm_per_px=str(mm))):
        body = error_of(reply, 409, "mm_per_px_mismatch")
        for named in (f"{px}×{px} px", f"{mm:g}", "192×192 px", "0.2", "38.4×38.4 mm"):
            assert named in body["error"]
        assert body["details"] == {"field": "mm_per_px", "fitted_with": 0.2, "sent": mm}


def test_the_smallest_area_that_counts_is_of_the_part_and_not_of_pixels(fitted: Api) -> None:
    """16 mm² are 400 px at 0.2 mm and 100 px at 0.4 mm."""
    binned = resized(SPECK, 96, 96)
    params = answer_of(fitted.infer(binned, mm_per_px="0.4"))["params"]
    assert params["mm_per_px"] == pytest.approx(0.4)
    score, full = (
        answer_of(fitted.infer(image, mm_per_px=str(mm)))["params"]["scores"]["area"]
        for image, mm in ((binned, 0.4), (encoded(SPECK), 0.2))
    )
    assert score == pytest.approx(full, rel=0.15)


def test_the_size_of_the_first_fit_stays_whatever_is_learned_later(api: Api) -> None:
    answer_of(api.fit(plates(range(4), HW)))
    binned = [resized(plate(seed, HW), 96, 96) for seed in range(10, 16)]
    assert of_size(answer_of(api.fit(binned[:3], mm_per_px="0.4"))) == []
    assert len(of_size(answer_of(api.fit(binned[3:])))) == 1
    manifest = answer_of(api.client.get("/manifest", params=NAMED))["fit"]
    assert (manifest["image_width"], manifest["image_height"], manifest["mm_per_px"]) == (192, 192, 0.2)
    answer_of(api.client.post("/refit", json={**NAMED, "force": True}))
    assert answer_of(api.client.get("/manifest", params=NAMED))["fit"]["image_width"] == 192
    assert of_size(answer_of(api.infer(encoded(SPECK)))) == []
    error_of(api.infer(encoded(SPECK), mm_per_px="0.4"), 409, "mm_per_px_mismatch")


def upload(api: Api, label: str, images: list[bytes], meta: dict[str, Any]) -> Any:
    files: list[Any] = [("images", (f"{n}.png", data, "image/png")) for n, data in enumerate(images)]
    files += [("metas", (None, json.dumps(meta), "application/json")) for _ in images]
    return api.client.post(f"/datasets/{label}/upload", data=NAMED, files=files)


def test_data_sets_follow_the_same_rule(api: Api) -> None:
    fit(api)
    binned = resized(SPECK, 96, 96)
    answer_of(upload(api, "ng", [binned], {"mm_per_px": 0.4}))
    error_of(upload(api, "ng", [binned], {"mm_per_px": 0.3}), 409, "mm_per_px_mismatch")
    answer_of(upload(api, "ok", [resized(plate(30, HW), 96, 96)], {"mm_per_px": 0.4}))
    full = answer_of(api.infer(encoded(SPECK)))
    items = answer_of(api.client.post("/infer_dataset", json=NAMED))["items"]
    (bad,) = [item for item in items if item["label"] == "ng"]
    assert (bad["error"], bad["mm_per_px"], bad["decision"]) == (None, 0.4, "ng")
    assert area_of(bad) == pytest.approx(area_of(full), rel=0.25)
    by_dataset = answer_of(api.client.post("/calibrate_dataset", json={**NAMED, "default_mm_per_px": 0.2}))
    assert (by_dataset["n_ng"], by_dataset["failed"]) == (1, [])
    assert answer_of(api.calibrate())["n_ng"] == 1
    learned = answer_of(api.fit([], use_dataset="true"))
    assert (learned["n_ok_total"], of_size(learned)) == (9, [])


def test_a_data_set_of_binned_images_is_fitted_at_their_scale(api: Api) -> None:
    answer_of(upload(api, "ok", [resized(plate(seed, HW), 96, 96) for seed in range(4)], {"mm_per_px": 0.4}))
    answer_of(upload(api, "ok", plates(range(4, 6), HW), {"mm_per_px": 0.2}))
    fitted = answer_of(api.fit([], use_dataset="true"))
    assert (fitted["n_ok_total"], of_size(fitted)) == (6, [])
    assert answer_of(api.client.get("/manifest", params=NAMED))["fit"]["image_width"] == 192


def test_the_scale_of_a_calibration_is_the_roi_s(fitted: Api) -> None:
    answer_of(fitted.calibrate(mm_per_px=0.203, dry_run=True))
    error_of(fitted.calibrate(mm_per_px=0.4, dry_run=True), 409, "mm_per_px_mismatch")


# --- shapes that are no pixels ----------------------------------------------------------------------------------------

TOO_SMALL = {
    "unit rect": {"kind": "rect", "x": 0, "y": 0, "w": 1, "h": 1},
    "centred unit rect": {"kind": "rect", "cx": 0.5, "cy": 0.5, "w": 1, "h": 1},
    "unit circle": {"kind": "circle", "cx": 0.5, "cy": 0.5, "r": 1},
    "circle around a pixel": {"kind": "circle", "cx": 1, "cy": 1, "r": 0.5},
    "small rect": {"kind": "rect", "x": 50, "y": 50, "w": 7, "h": 7},
    "hardly in the image": {"kind": "rect", "x": 190, "y": 0, "w": 50, "h": 8},
}


@pytest.mark.parametrize("shape", TOO_SMALL.values(), ids=TOO_SMALL)
def test_a_shape_of_less_than_a_cell_is_422_with_a_hint_that_coordinates_are_pixels(
    fitted: Api, shape: dict[str, Any]
) -> None:
    for reply in (
        fitted.infer(encoded(SPECK), shape=shape),
        fitted.fit(plates([9], HW), shape=shape),
        fitted.fit(plates([9], HW), shape=shape, roi_id="new"),
    ):
        body = error_of(reply, 422, "shape_too_small")
        assert "pixels of the uploaded image" in body["error"]
        assert body["details"]["field"] == "shape"
    assert not fitted.roi_folder("new").exists()


@pytest.mark.parametrize(
    "shape",
    [
        {"kind": "rect", "x": 0.1, "y": 0.1, "w": 0.8, "h": 0.8},
        {"kind": "circle", "cx": 0.5, "cy": 0.5, "r": 0.5},
        {"kind": "annulus", "cx": 0.5, "cy": 0.5, "r": 0.5, "r_inner": 0.2},
    ],
    ids=str,
)
def test_normalised_coordinates_that_cover_no_pixel_are_422_with_the_hint(fitted: Api, shape: dict[str, Any]) -> None:
    body = error_of(fitted.infer(encoded(SPECK), shape=shape), 422, "shape_outside_image")
    assert "pixels of the uploaded image" in body["error"]


def test_a_unit_shape_is_refused_where_a_cell_is_a_pixel_too(api: Api) -> None:
    answer_of(api.fit(plates(range(3), (16, 16)), roi_id="tiny"))
    error_of(api.infer(plates([5], (16, 16))[0], shape=TOO_SMALL["unit rect"], roi_id="tiny"), 422, "shape_too_small")


def test_a_sliver_of_what_was_learned_is_422_and_all_of_it_is_not(api: Api) -> None:
    left = {"kind": "rect", "x": 0, "y": 0, "w": 96, "h": 192}
    answer_of(api.fit(plates(range(3), HW), shape=left))
    sliver = {"kind": "rect", "x": 95, "y": 0, "w": 97, "h": 50}
    error_of(api.infer(encoded(SPECK), shape=sliver), 422, "shape_too_small")
    answer_of(api.infer(encoded(SPECK), shape=left))


def test_a_shape_of_one_cell_is_inspected(fitted: Api) -> None:
    answer = answer_of(fitted.infer(encoded(SPECK), shape={"kind": "rect", "x": 72, "y": 108, "w": 12, "h": 12}))
    assert answer["decision"] == "ng"


def test_a_stored_image_with_such_a_shape_has_its_line_and_takes_no_part(api: Api) -> None:
    fit(api)
    answer_of(upload(api, "ng", [encoded(SPECK)], {"shape": TOO_SMALL["unit rect"]}))
    items = answer_of(api.client.post("/infer_dataset", json=NAMED))["items"]
    (bad,) = [item for item in items if item["label"] == "ng"]
    assert "pixels of the uploaded image" in bad["error"]
    assert bad["decision"] is None
