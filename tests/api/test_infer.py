"""Inspections over HTTP: score, decision, heat map and regions, and that they lie where the defect lies."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.testkit.app import MM_PER_PX, SMALL_INPUT_PX, Api, answer_of, error_of, heatmap_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, plate, plates, with_defect

HW = (96, 128)  # 7 × 9 cells
DEFECT = (70, 30, 28, 28)
N_OK = 6


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A ROI of six plates, calibrated without a smallest area; and ``raw``, the same without a calibration."""
    with running_app(tmp_path_factory.mktemp("infer") / "models") as started:
        for roi_id in (ROI, "raw"):
            answer_of(started.fit(plates(range(N_OK), HW), roi_id=roi_id))
        answer_of(started.calibrate(area_mm2_thr=0, score_mode="max"))
        yield started


@pytest.fixture(scope="module")
def good() -> bytes:
    return plates([90], HW)[0]


@pytest.fixture(scope="module")
def defective() -> bytes:
    return encoded(with_defect(plate(91, HW), DEFECT))


@pytest.fixture(scope="module")
def found(api: Api, defective: bytes) -> dict[str, Any]:
    """The answer to the defective plate."""
    return answer_of(api.infer(defective, headers={"X-Request-Id": "infer-1"}))


def test_an_inspection_answers_every_field_with_its_type(found: dict[str, Any]) -> None:
    expected = {
        **dict.fromkeys(("roi_id", "model_key"), ROI),
        "role_id": ROLE,
        "recipe_id": "default",
        "request_id": "infer-1",
        "decision": "ng",
        "warnings": [],
        "heatmap_path": None,
        "token_shape": [7, 9],
    }
    assert {name: found[name] for name in expected} == expected
    assert 0 < found["threshold"] < found["score"] <= 2
    assert found["regions"]
    assert {"decode", "queue", "extract", "search", "post", "encode", "total"} <= set(found["timings_ms"])


def test_the_parameters_say_how_the_score_came_about(found: dict[str, Any]) -> None:
    expected = {
        "extractor": "filter-bank",
        "coreset_rate": 0.02,
        "k": 1,
        "p_score": 99,
        "score_percentile": 99,
        "blur_sigma": 1.0,
        "mm_per_px": MM_PER_PX,
        "score_mode": "max",
        "scoring": "new",
        "area_mm2_thr": 0,
        "cell_mm": pytest.approx(128 / 9 * MM_PER_PX),
        "calibration_stale": False,
        "shape": None,
        "learned_shape": None,
        "n_ok": N_OK,
    }
    params = found["params"]
    assert {name: params[name] for name in expected} == expected
    assert f"input={SMALL_INPUT_PX}" in params["extractor_id"]
    assert params["scores"].keys() == {"percentile", "top_mean", "max", "area"}
    assert params["scores"]["max"] == found["score"]
    assert params["heatmap_scale"] == pytest.approx(2 * found["threshold"])
    assert len(params["memory_checksum"]) == len(params["image_digest"]) == 64


# --- decision ---------------------------------------------------------------------------------------------------------


def test_before_a_calibration_there_is_a_score_and_no_decision(api: Api, defective: bytes) -> None:
    answer = answer_of(api.infer(defective, roi_id="raw"))
    assert (answer["threshold"], answer["decision"], answer["regions"]) == (None, None, [])
    assert answer["score"] > 0
    assert answer["params"]["calibration_stale"] is False
    assert heatmap_of(answer).shape == HW


def test_a_good_plate_is_ok_and_a_defective_one_is_ng(api: Api, good: bytes, found: dict[str, Any]) -> None:
    answer = answer_of(api.infer(good))
    assert answer["decision"] == "ok"
    assert answer["score"] <= answer["threshold"] < found["score"]
    assert found["decision"] == "ng"


def test_every_image_of_the_fit_is_scored_without_its_own_part(api: Api) -> None:
    fitted = answer_of(api.fit(plates(range(N_OK), HW), roi_id="raw"))
    answers = [answer_of(api.infer(image, roi_id="raw")) for image in plates(range(N_OK), HW)]
    assert {answer["params"]["scoring"] for answer in answers} == {"leave_one_out"}
    scores = [answer["score"] for answer in answers]
    stored = fitted["ok_scores"]
    assert stored["max"] == pytest.approx(max(scores), rel=1e-4)
    expected = np.percentile(scores, (50, 95, 99))
    assert [stored["p50"], stored["p95"], stored["p99"]] == pytest.approx(expected, rel=1e-4)


def test_the_score_of_the_only_part_is_said_to_be_worth_nothing(api: Api, good: bytes) -> None:
    answer_of(api.fit([good], roi_id="only"))
    answer = answer_of(api.infer(good, roi_id="only"))
    assert answer["params"]["scoring"] == "own_image_only"
    assert answer_of(api.infer(plates([91], HW)[0], roi_id="only"))["params"]["scoring"] == "new"


# --- heat map and regions ---------------------------------------------------------------------------------------------


def test_the_heat_map_peaks_on_the_defect_and_is_cold_elsewhere(found: dict[str, Any]) -> None:
    heat = heatmap_of(found)
    x, y, w, h = DEFECT
    assert _within(_peaks(heat), (x - 15, y - 14, w + 30, h + 28)), "within one cell of the defect"
    far = np.ones(HW, bool)
    far[max(0, y - 28) : y + h + 28, max(0, x - 30) : x + w + 30] = False
    assert np.median(heat[far]) < 128
    assert heat[y + h // 2, x + w // 2] > 128


def test_a_good_heat_map_is_not_stretched_to_its_own_range(api: Api, good: bytes) -> None:
    heat = heatmap_of(answer_of(api.infer(good)))
    assert heat.max() <= 128, "128 is the threshold, and this plate lies below it"


def test_the_heat_map_is_128_exactly_where_the_regions_begin(found: dict[str, Any]) -> None:
    heat, inside = heatmap_of(found), _covered(found["regions"], HW)
    assert inside.any()
    assert heat[inside].min() >= 128
    assert heat[~inside].max() <= 128, "128 itself is also what lies a rounding below the threshold"
    assert np.count_nonzero(heat > 128) <= np.count_nonzero(inside) <= np.count_nonzero(heat >= 128)


def test_before_a_calibration_the_heat_map_has_a_fixed_scale_too(api: Api, good: bytes, defective: bytes) -> None:
    plain, hot = (answer_of(api.infer(image, roi_id="raw")) for image in (good, defective))
    assert plain["params"]["heatmap_scale"] == hot["params"]["heatmap_scale"]
    assert heatmap_of(plain).max() < heatmap_of(hot).max()


def test_regions_are_described_in_one_geometry(found: dict[str, Any]) -> None:
    inside = _covered(found["regions"], HW)
    assert [region["area_px"] for region in found["regions"]] == sorted(
        (region["area_px"] for region in found["regions"]), reverse=True
    )
    for region in found["regions"]:
        x, y, w, h = region["bbox"]
        assert [region["x"], region["y"], region["w"], region["h"]] == region["bbox"]
        assert all(type(value) is int for value in (*region["bbox"], region["area_px"]))
        assert 0 <= x < x + w <= HW[1]
        assert 0 <= y < y + h <= HW[0]
        assert region["area_mm2"] == pytest.approx(region["area_px"] * MM_PER_PX**2)
        assert region["peak"] >= found["threshold"]
        contour = np.array(region["contour"])
        assert (contour.min(axis=0) == (x, y)).all(), "the contour touches the box on every side"
        assert (contour.max(axis=0) == (x + w - 1, y + h - 1)).all()
    assert sum(region["area_px"] for region in found["regions"]) == np.count_nonzero(inside)
    assert max(region["peak"] for region in found["regions"]) == pytest.approx(found["params"]["scores"]["max"])


def test_regions_below_the_smallest_area_are_dropped_and_an_ng_without_a_region_says_so(
    api: Api, defective: bytes
) -> None:
    answer_of(api.fit(plates(range(N_OK), HW), roi_id="large-only"))

    def found_with(thr: float) -> dict[str, Any]:
        answer_of(api.calibrate(roi_id="large-only", area_mm2_thr=thr, score_mode="percentile"))
        return answer_of(api.infer(defective, roi_id="large-only"))

    largest = found_with(0)["regions"][0]["area_mm2"]
    for thr, expected in ((largest, 1), (largest + MM_PER_PX**2, 0)):
        answer = found_with(thr)
        assert len(answer["regions"]) == expected
        assert answer["decision"] == "ng"
        assert len(answer["warnings"]) == 1 - expected
        assert all("score_mode=area" in sentence for sentence in answer["warnings"])


def test_in_max_the_region_of_the_maximum_is_drawn_however_small(
    api: Api, defective: bytes, found: dict[str, Any]
) -> None:
    answer_of(api.fit(plates(range(N_OK), HW), roi_id="peak"))
    answer_of(api.calibrate(roi_id="peak", area_mm2_thr=1e5, score_mode="max"))
    (region,) = answer_of(api.infer(defective, roi_id="peak"))["regions"]
    assert region["peak"] == pytest.approx(found["score"])


def test_the_heat_map_has_the_size_of_the_uploaded_image(api: Api) -> None:
    for hw in ((96, 128), (97, 129), (48, 64), (301, 400)):
        assert heatmap_of(answer_of(api.infer(plates([90], hw)[0]))).shape == hw


def test_geometry_is_in_pixels_of_the_uploaded_image_whatever_its_size(api: Api, found: dict[str, Any]) -> None:
    twice = cv2.resize(with_defect(plate(91, HW), DEFECT), (256, 192), interpolation=cv2.INTER_CUBIC)
    answer = answer_of(api.infer(encoded(twice)))
    expected = [2 * value for value in found["regions"][0]["bbox"]]
    assert answer["regions"][0]["bbox"] == pytest.approx(expected, abs=30)
    assert answer["score"] == pytest.approx(found["score"], rel=0.25)


# --- shapes -----------------------------------------------------------------------------------------------------------

YS, XS = np.mgrid[: HW[0], : HW[1]]


@pytest.mark.parametrize(
    ("shape", "inside"),
    [
        ({"kind": "rect", "x": 20, "y": 10, "w": 60, "h": 50}, (XS >= 20) & (XS < 80) & (YS >= 10) & (YS < 60)),
        ({"kind": "rect", "cx": 50, "cy": 35, "w": 60, "h": 50}, (XS >= 20) & (XS < 80) & (YS >= 10) & (YS < 60)),
        ({"kind": "circle", "cx": 64, "cy": 48, "r": 30}, (XS - 64) ** 2 + (YS - 48) ** 2 <= 900),
        (
            {"kind": "annulus", "cx": 64, "cy": 48, "r": 45, "r_inner": 25},
            ((XS - 64) ** 2 + (YS - 48) ** 2 <= 2025) & ((XS - 64) ** 2 + (YS - 48) ** 2 >= 625),
        ),
        ({"kind": "circle", "cx": 127, "cy": 0, "r": 40}, (XS - 127) ** 2 + YS**2 <= 1600),
        ({"kind": "rect", "x": -50, "y": -50, "w": 90, "h": 500}, XS < 40),
    ],
    ids=["rect", "rect about its centre", "circle", "annulus", "circle at a corner", "rect beyond the image"],
)
def test_outside_the_shape_the_heat_map_is_zero_and_nothing_is_found(
    api: Api, defective: bytes, shape: dict[str, Any], inside: NDArray[np.bool_]
) -> None:
    answer = answer_of(api.infer(defective, shape=shape))
    heat = heatmap_of(answer)
    assert not heat[~inside].any()
    assert (heat[inside] > 0).all()
    assert not (_covered(answer["regions"], HW) & ~inside).any()
    assert answer["params"]["shape"]["kind"] == shape["kind"]


def test_a_defect_outside_the_shape_does_not_count(api: Api, defective: bytes, found: dict[str, Any]) -> None:
    left_of_it = {"kind": "rect", "x": 0, "y": 0, "w": 50, "h": 96}
    answer = answer_of(api.infer(defective, shape=left_of_it))
    assert found["decision"] == "ng"
    assert (answer["decision"], answer["regions"]) == ("ok", [])


def test_no_shape_means_the_whole_image(api: Api, defective: bytes, found: dict[str, Any]) -> None:
    for shape in ("", "  ", "null", '{"kind":"rect","x":0,"y":0,"w":128,"h":96}'):
        answer = answer_of(api.infer(defective, shape=shape))
        for field in ("score", "regions", "heatmap_png_base64"):
            assert answer[field] == found[field], field


def test_a_learned_shape_narrows_the_shape_of_a_call(api: Api, defective: bytes) -> None:
    learned = {"kind": "rect", "x": 0, "y": 0, "w": 64, "h": 96}
    answer_of(api.fit(plates(range(N_OK), HW), roi_id="left-half", shape=learned))
    heat = heatmap_of(answer_of(api.infer(defective, roi_id="left-half")))
    assert not heat[:, 64:].any()
    assert (heat[:, :64] > 0).all()
    body = error_of(
        api.infer(defective, roi_id="left-half", shape={"kind": "circle", "cx": 100, "cy": 48, "r": 20}),
        422,
        "shape_outside_image",
    )
    assert "fit" in body["error"]


# --- how the heat map comes back --------------------------------------------------------------------------------------


def test_the_heat_map_can_be_left_out(api: Api, defective: bytes, found: dict[str, Any]) -> None:
    answer = answer_of(api.infer(defective, heatmap="none"))
    assert (answer["heatmap_png_base64"], answer["heatmap_path"]) == (None, None)
    assert answer["regions"] == found["regions"]


def test_the_heat_map_can_come_as_a_file_below_the_models_folder(
    api: Api, defective: bytes, found: dict[str, Any]
) -> None:
    answer = answer_of(api.infer(defective, heatmap="path"))
    assert answer["heatmap_png_base64"] is None
    path = api.models / answer["heatmap_path"]
    assert not Path(answer["heatmap_path"]).is_absolute()
    assert path.resolve().is_relative_to(api.models.resolve())
    assert (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) == heatmap_of(found)).all()


# --- geometry at full size --------------------------------------------------------------------------------------------

EDGE_PX = 384


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """ROIs of three aspect ratios at the input that the service has by default."""
    with running_app(tmp_path_factory.mktemp("geometry") / "models", input_size=384) as started:
        for hw in ((EDGE_PX, EDGE_PX), (200, 500), (500, 200)):
            answer_of(started.fit(plates(range(3), hw), roi_id=f"{hw[1]}x{hw[0]}"))
            answer_of(started.calibrate(roi_id=f"{hw[1]}x{hw[0]}", score_mode="max"))
        yield started


@pytest.mark.parametrize(
    "box",
    [(378, 180, 6, 40), (180, 378, 40, 6), (0, 180, 6, 40), (180, 0, 40, 6), (378, 378, 6, 6)],
    ids=["right", "bottom", "left", "top", "corner"],
)
def test_a_defect_in_the_last_six_pixels_of_an_axis_is_found(full_size: Api, box: tuple[int, int, int, int]) -> None:
    """Nothing may be cut off or shifted at the border, where windows reach beyond the image."""
    image = with_defect(plate(70, (EDGE_PX, EDGE_PX)), box)
    answer = answer_of(full_size.infer(encoded(image), roi_id="384x384"))
    window = 2 * EDGE_PX / 48
    x, y, w, h = box
    assert _within(_peaks(heatmap_of(answer)), (x - window, y - window, w + 2 * window, h + 2 * window))
    assert answer["decision"] == "ng"
    assert answer["token_shape"] == [48, 48]


@pytest.mark.parametrize(
    ("hw", "grid", "box"),
    [
        ((200, 500), (30, 76), (400, 40, 48, 48)),
        ((200, 500), (30, 76), (40, 130, 48, 48)),
        ((500, 200), (76, 30), (30, 400, 48, 48)),
        ((500, 200), (76, 30), (130, 40, 48, 48)),
        ((384, 384), (48, 48), (250, 60, 56, 56)),
    ],
)
def test_a_region_lies_where_the_defect_lies_on_an_image_of_any_aspect_ratio(
    full_size: Api, hw: tuple[int, int], grid: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    image = encoded(with_defect(plate(71, hw), box))
    answer = answer_of(full_size.infer(image, roi_id=f"{hw[1]}x{hw[0]}"))
    assert answer["token_shape"] == list(grid)
    cell = max(hw[0] / grid[0], hw[1] / grid[1])
    (x, y, w, h), region = box, answer["regions"][0]
    left, top, width, height = region["bbox"]
    assert abs(left + width / 2 - (x + w / 2)) <= cell
    assert abs(top + height / 2 - (y + h / 2)) <= cell
    overlap = _overlap((x, y, w, h), (left, top, width, height))
    assert overlap / (w * h) > 0.9, "the defect is covered"
    window = 2 * cell
    assert width <= w + 2.5 * window, "and not much else"
    assert height <= h + 2.5 * window
    assert _within(_peaks(heatmap_of(answer)), (x - window, y - window, w + 2 * window, h + 2 * window))


# --- damaged artefacts ------------------------------------------------------------------------------------------------


def test_a_damaged_memory_is_said_to_be_damaged_and_can_be_replaced(api: Api, good: bytes) -> None:
    answer_of(api.fit(plates(range(2), HW), roi_id="damaged"))
    memory = api.roi_folder("damaged") / "memory.npz"
    data = bytearray(memory.read_bytes())
    data[len(data) // 2] ^= 0xFF
    memory.write_bytes(data)
    body = error_of(api.infer(good, roi_id="damaged"), 500, "artefact_corrupt")
    assert "mode=replace" in body["error"]
    answer_of(api.fit(plates(range(2), HW), roi_id="damaged", mode="replace"))
    answer_of(api.infer(good, roi_id="damaged"))


def _peaks(heat: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return the hottest pixels, [n, 2] as (x, y)."""
    return np.argwhere(heat == heat.max())[:, ::-1]


def _within(xy: NDArray[np.intp], box: tuple[float, float, float, float]) -> bool:
    x, y, w, h = box
    return bool(((xy >= (x, y)) & (xy < (x + w, y + h))).all())


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def _covered(regions: list[dict[str, Any]], hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels of the regions, filled from their contours: [H, W] bool."""
    canvas = np.zeros(hw, np.uint8)
    for region in regions:
        cv2.fillPoly(canvas, [np.array(region["contour"], np.int32)], 1)
    return canvas.astype(bool)


# --- the overlay ------------------------------------------------------------------------------------------------------


def test_an_overlay_can_be_asked_for_smaller(api: Api, defective: bytes) -> None:
    def edges(**fields: str) -> tuple[int, int]:
        answer = answer_of(api.infer(defective, heatmap="overlay", **fields))
        assert answer["warnings"] == answer_of(api.infer(defective))["warnings"]
        with Image.open(io.BytesIO(base64.b64decode(answer["heatmap_png_base64"]))) as image:
            return image.size

    whole = edges()
    assert max(edges(overlay_px="32")) == 32
    assert edges(overlay_px="8192") == whole, "never larger than it was"
    asked = answer_of(api.infer(defective, overlay_px="32"))
    assert heatmap_of(asked).shape == whole[::-1]
    assert "overlay_px has no effect" in asked["warnings"][-1]
    for wrong in ("15", "8193", "1.5", "x"):
        assert (
            error_of(api.infer(defective, overlay_px=wrong), 422, "invalid_input")["details"]["field"] == "overlay_px"
        )


def test_the_overlay_is_the_image_with_what_was_found(api: Api, good: bytes, defective: bytes) -> None:
    pictures = {}
    for name, data in {"good": good, "bad": defective}.items():
        answer = answer_of(api.infer(data, heatmap="overlay"))
        assert answer["heatmap_path"] is None
        pictures[name] = cv2.imdecode(
            np.frombuffer(base64.b64decode(answer["heatmap_png_base64"]), np.uint8), cv2.IMREAD_UNCHANGED
        )
        assert pictures[name].shape == (*HW, 3)
    assert np.ptp(pictures["good"].astype(int), axis=2).max() < np.ptp(pictures["bad"].astype(int), axis=2).max()


@pytest.mark.parametrize("accept", ["image/png", "IMAGE/PNG;q=0.9, application/json;q=0.5", "text/html, image/png"])
def test_a_client_that_accepts_a_picture_gets_the_overlay_as_bytes(api: Api, defective: bytes, accept: str) -> None:
    given = answer_of(api.infer(defective, heatmap="overlay"))
    answer = api.infer(defective, headers={"Accept": accept, "X-Request-Id": "part-7"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
    assert answer.content == base64.b64decode(given["heatmap_png_base64"])
    headers = answer.headers
    assert (float(headers["X-Score"]), float(headers["X-Threshold"])) == (given["score"], given["threshold"])
    assert (headers["X-Decision"], int(headers["X-Regions"])) == (given["decision"], len(given["regions"]))
    assert headers["X-Reject-Reason"] == given["reject_reason"] == "defect"
    assert headers["X-Request-Id"] == "part-7"


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "application/json, image/png", "image/*", "image/png;q=0"]
)
def test_everybody_else_gets_json(api: Api, good: bytes, accept: str) -> None:
    assert answer_of(api.infer(good, headers={"Accept": accept}))["score"] >= 0


def test_a_picture_without_a_calibration_has_no_decision(api: Api, good: bytes) -> None:
    answer = api.infer(good, roi_id="raw", headers={"Accept": "image/png"})
    assert (answer.headers["X-Decision"], answer.headers["X-Threshold"]) == ("none", "")


def test_an_error_is_json_also_for_a_client_that_accepts_a_picture(api: Api, good: bytes) -> None:
    error_of(api.infer(good, roi_id="unknown", headers={"Accept": "image/png"}), 400, "memory_not_found")


# --- what a region was compared with ----------------------------------------------------------------------------------


def test_each_region_names_the_good_image_and_the_place_that_its_peak_is_most_like(
    api: Api, found: dict[str, Any]
) -> None:
    query = {"role_id": ROLE, "roi_id": ROI}
    listed = answer_of(api.client.get("/datasets/list", params=query))["classes"]["ok"]["files"]
    for region in found["regions"]:
        nearest = region["nearest"]
        assert nearest["name"] in listed
        about = answer_of(
            api.client.get("/datasets/meta", params={**query, "label": "ok", "filename": nearest["name"]})
        )
        assert nearest["image_digest"] == about["image_digest"] != found["params"]["image_digest"]
        assert 0 <= nearest["x"] < nearest["x"] + nearest["w"] <= HW[1]
        assert 0 <= nearest["y"] < nearest["y"] + nearest["h"] <= HW[0]
        assert abs(nearest["w"] - HW[1] / 9) <= 1
        assert abs(nearest["h"] - HW[0] / 7) <= 1


def test_a_good_image_that_was_learned_is_not_most_like_itself_nor_like_one_that_was_deleted(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        odd = encoded(with_defect(plate(7, HW), DEFECT))
        answer_of(api.fit([*plates(range(N_OK), HW), odd]))
        answer_of(api.calibrate(area_mm2_thr=0, score_mode="max", ok_percentile=50))
        query = {"role_id": ROLE, "roi_id": ROI, "label": "ok"}
        for deleted in (False, True):
            answer = answer_of(api.infer(odd))
            own = answer["params"]["image_digest"]
            assert answer["regions"]
            for region in answer["regions"]:
                assert region["nearest"]["image_digest"] != own
                assert (region["nearest"]["name"] is None) == deleted
            answer_of(api.client.delete("/datasets/clear", params=query))
