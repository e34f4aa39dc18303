"""Calibrations over HTTP: the rule, what it is worth, and what a later fit does to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.testkit.app import MM_PER_PX, Api, answer_of, error_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, plate, plates, with_defect

N_OK = 8
OK = [0.20, 0.21, 0.22, 0.23, 0.24, 0.25]


@pytest.fixture(scope="module")
def fitted_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a ROI that has learned eight plates."""
    models = tmp_path_factory.mktemp("calibrate") / "models"
    with running_app(models) as api:
        answer_of(api.fit(plates(range(N_OK))))
    return models


@pytest.fixture
def api(fitted_models: Path, tmp_path: Path) -> Iterator[Api]:
    """The service over a copy of that folder."""
    shutil.copytree(fitted_models, tmp_path / "models")
    with running_app(tmp_path / "models") as started:
        yield started


@pytest.fixture(scope="module")
def calibrated(fitted_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answer to a calibration with one NG score."""
    models = tmp_path_factory.mktemp("calibrated") / "models"
    shutil.copytree(fitted_models, models)
    with running_app(models) as api:
        return answer_of(api.calibrate(ok_scores=OK, ng_scores=[0.45], headers={"X-Request-Id": "calibrate-1"}))


def test_a_calibration_answers_every_field_with_its_type_and_value(calibrated: dict[str, Any]) -> None:
    expected = {
        "status": "ok",
        **dict.fromkeys(("roi_id", "model_key"), ROI),
        "role_id": ROLE,
        "recipe_id": "default",
        "request_id": "calibrate-1",
        "p99_ok": pytest.approx(0.25),
        "p5_ng": pytest.approx(0.45),
        "ok_mean": pytest.approx(0.225),
        "ng_mean": pytest.approx(0.45),
        "mm_per_px": MM_PER_PX,
        "area_mm2_thr": 1,
        "score_percentile": 99,
        "score_mode": "percentile",
        "ok_percentile": 99,
        "margin": 1,
        "method": "between_ok_and_ng",
        "ok_scores_from": "request",
        "n_ok": 6,
        "n_ng": 1,
        "ng_caught": 1,
        "expected_false_alarm_rate": pytest.approx(1 / 7),
        "false_alarm_rate_upper_95": pytest.approx(1 - 0.05 ** (1 / 6)),
    }
    assert {name: calibrated[name] for name in expected} == expected
    assert 0.25 < calibrated["threshold"] < 0.45
    assert len(calibrated["memory_checksum"]) == 64
    assert isinstance(calibrated["warnings"], list)


def test_without_scores_the_stored_leave_one_out_scores_set_the_threshold(api: Api) -> None:
    scores = [answer_of(api.infer(image))["score"] for image in plates(range(N_OK))]
    answer = answer_of(api.calibrate(score_mode="percentile"))
    assert (answer["ok_scores_from"], answer["n_ok"], answer["method"]) == ("stored", N_OK, "ok_percentile")
    assert answer["threshold"] == answer["p99_ok"] == pytest.approx(max(scores), rel=1e-4)
    assert answer["ok_mean"] == pytest.approx(np.mean(scores), rel=1e-4)
    assert answer["p5_ng"] is None
    assert type(answer["ng_mean"]) is float
    assert answer["ng_mean"] == 0.0
    assert answer["expected_false_alarm_rate"] == pytest.approx(1 / (N_OK + 1))


def test_without_ng_the_threshold_is_p99_of_the_ok_scores_times_the_margin(api: Api) -> None:
    for fields in ({}, {"ng_scores": None}, {"ng_scores": []}):
        answer = answer_of(api.calibrate(ok_scores=OK, margin=1.2, **fields))
        assert answer["threshold"] == pytest.approx(1.2 * max(OK))
        assert (answer["p99_ok"], answer["p5_ng"], answer["ng_mean"]) == (max(OK), None, 0.0)


def test_a_few_ng_put_the_threshold_between_both(api: Api) -> None:
    for ng in ([0.45], [0.45, 0.6], [0.7, 0.45, 0.6]):
        answer = answer_of(api.calibrate(ok_scores=OK, ng_scores=ng))
        assert (answer["p99_ok"], answer["p5_ng"], answer["n_ng"]) == (max(OK), 0.45, len(ng))
        assert max(OK) < answer["threshold"] < min(ng)
        assert answer["method"] == "between_ok_and_ng"


def test_where_both_overlap_the_threshold_makes_the_fewest_errors_and_warns(api: Api) -> None:
    ok, ng = [0.20, 0.21, 0.22, 0.40], [0.30, 0.50]
    answer = answer_of(api.calibrate(ok_scores=ok, ng_scores=ng))
    assert _errors(ok, ng, answer["threshold"]) == min(_errors(ok, ng, number / 2000) for number in range(1201))
    assert answer["method"] == "fewest_errors"
    assert any("does not tell" in text for text in answer["warnings"])
    assert answer["ng_caught"] == sum(score > answer["threshold"] for score in ng)


def _errors(ok: Sequence[float], ng: Sequence[float], threshold: float) -> int:
    return sum(score > threshold for score in ok) + sum(score <= threshold for score in ng)


def test_the_calibration_is_stored_as_calib_json(api: Api) -> None:
    answer = answer_of(api.calibrate(ok_scores=OK, area_mm2_thr=2.5))
    stored = json.loads((api.models / ROLE / ROI / "calib.json").read_text("utf-8"))
    for field in ("threshold", "p99_ok", "p5_ng", "mm_per_px", "area_mm2_thr", "score_percentile", "memory_checksum"):
        assert stored[field] == answer[field], field


def test_an_inspection_decides_with_the_calibrated_settings(api: Api) -> None:
    image = encoded(with_defect(plate(20), (24, 36, 24, 24)))
    calibrated = answer_of(api.calibrate(score_percentile=90, area_mm2_thr=3.5))
    found = answer_of(api.infer(image))
    assert found["threshold"] == calibrated["threshold"]
    params = found["params"]
    assert (params["score_percentile"], params["p_score"], params["area_mm2_thr"]) == (90, 90, 3.5)
    assert all(region["area_mm2"] >= 3.5 for region in found["regions"])
    assert found["regions"], "a defect of 23 mm² is a region"


def test_the_score_is_the_statistic_that_was_calibrated(api: Api) -> None:
    images = plates(range(N_OK))
    for mode in ("percentile", "top_mean", "max", "area"):
        calibrated = answer_of(api.calibrate(score_mode=mode))
        answers = [answer_of(api.infer(image, heatmap="none")) for image in images]
        assert all(answer["score"] == answer["params"]["scores"][mode] for answer in answers)
        assert calibrated["threshold"] == pytest.approx(max(answer["score"] for answer in answers), rel=1e-4)


def test_a_setting_left_out_keeps_the_value_of_the_last_calibration(api: Api) -> None:
    answer_of(api.calibrate(score_mode="max", area_mm2_thr=2.0))
    kept = answer_of(api.calibrate())
    assert (kept["score_mode"], kept["area_mm2_thr"]) == ("max", 2.0)


def test_scores_of_fitted_images_as_a_naive_memory_gives_them_are_warned_of(api: Api) -> None:
    answer = answer_of(api.calibrate(ok_scores=[0.001, 0.002, 0.001]))
    assert any("Leave ok_scores out" in text for text in answer["warnings"])


def test_one_good_part_has_no_scores_of_its_own_and_the_answer_says_what_to_do(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(plates([0])))
        body = error_of(api.calibrate(), 422, "invalid_input")
        assert "ok_scores" in body["error"]
        assert "Fit more good images" in body["error"]


# --- before a fit -----------------------------------------------------------------------------------------------------


def test_a_calibration_before_a_fit_says_to_fit_first_and_leaves_no_folder_behind(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        body = error_of(api.calibrate(ok_scores=OK), 400, "memory_not_found")
    assert "memory not found" in body["error"]
    assert "run /fit_ok first" in body["error"]
    assert not list((tmp_path / "models").rglob(ROI))


# --- after another fit ------------------------------------------------------------------------------------------------


def test_a_calibration_without_ng_is_renewed_by_the_next_fit(api: Api) -> None:
    answer_of(api.calibrate(score_mode="max", area_mm2_thr=2.0))
    fitted = answer_of(api.fit(plates([30, 31])))
    assert fitted["calibration"] == "renewed"
    found = answer_of(api.infer(plates([40])[0]))
    scores = [answer_of(api.infer(image))["score"] for image in plates([*range(N_OK), 30, 31])]
    assert fitted["threshold"] == found["threshold"] == pytest.approx(max(scores), rel=1e-4)
    assert found["decision"] == ("ng" if found["score"] > found["threshold"] else "ok")
    params = found["params"]
    assert (params["calibration_stale"], params["score_mode"], params["area_mm2_thr"]) == (False, "max", 2.0)


@pytest.mark.parametrize("mode", ["percentile", "max"])
def test_a_calibration_with_ng_is_set_aside_by_the_next_fit(api: Api, mode: str) -> None:
    answer_of(api.calibrate(score_mode=mode))
    first = answer_of(api.calibrate(ng_scores=[0.9]))
    assert answer_of(api.infer(plates([40])[0]))["decision"] == "ok"
    fitted = answer_of(api.fit(plates([30])))
    assert (fitted["calibration"], fitted["threshold"]) == ("stale", None)
    assert any("calibrate again" in text for text in fitted["warnings"])
    found = answer_of(api.infer(plates([40])[0]))
    assert (found["threshold"], found["decision"], found["regions"]) == (None, None, [])
    assert found["params"]["calibration_stale"] is True
    again = answer_of(api.calibrate(ng_scores=[0.9]))
    assert again["memory_checksum"] == fitted["checksum"] != first["memory_checksum"]
    found = answer_of(api.infer(plates([40])[0]))
    assert (found["decision"], found["params"]["calibration_stale"]) == ("ok", False)


def test_scores_collected_while_a_calibration_is_set_aside_are_of_the_statistic_that_it_keeps(api: Api) -> None:
    """Else the next calibration, which keeps that statistic, takes them for what they are not, without a word."""
    answer_of(api.calibrate(score_mode="max"))
    answer_of(api.calibrate(ng_scores=[1.2]))
    answer_of(api.fit(plates([30])))
    collected = [answer_of(api.infer(image))["score"] for image in plates(range(50, 56))]
    again = answer_of(api.calibrate(ok_scores=collected, ng_scores=[1.2]))
    assert again["score_mode"] == "max"
    judged = [answer_of(api.infer(image))["score"] for image in plates(range(50, 56))]
    assert judged == pytest.approx(collected)


def test_a_fit_that_brings_nothing_new_keeps_the_calibration(api: Api) -> None:
    threshold = answer_of(api.calibrate(ng_scores=[0.9]))["threshold"]
    stored = (api.roi_folder() / "calib.json").read_bytes()
    fitted = answer_of(api.fit(plates([0, 1])))
    assert (fitted["calibration"], fitted["threshold"], fitted["n_new"]) == ("kept", threshold, 0)
    assert (api.roi_folder() / "calib.json").read_bytes() == stored


def test_a_calibration_survives_a_restart(api: Api) -> None:
    threshold = answer_of(api.calibrate())["threshold"]
    before = answer_of(api.infer(plates([40])[0]))
    with running_app(api.models) as restarted:
        after = answer_of(restarted.infer(plates([40])[0]))
    assert after["threshold"] == threshold
    assert (after["score"], after["heatmap_png_base64"]) == (before["score"], before["heatmap_png_base64"])


# --- numbers that a JSON reader takes ---------------------------------------------------------------------------------


def test_no_score_however_extreme_makes_an_answer_without_numbers(api: Api) -> None:
    """A distance lies in [0, 2]; what does not is refused, and what is accepted serves."""
    for ok, ng in (([1e308] * 2, None), ([1e308], None), ([0.2, 0.3], [1e308] * 2), ([1e39], None)):
        error_of(api.calibrate(ok_scores=ok, ng_scores=ng), 422, "invalid_input")
    assert not (api.roi_folder() / "calib.json").exists()
    for ok in ([5e-324, 5e-324], [0.0, 0.0]):
        answer_of(api.calibrate(ok_scores=ok))
        found = answer_of(api.infer(encoded(with_defect(plate(20), (24, 36, 24, 24)))))
        assert found["decision"] == ("ng" if found["score"] > found["threshold"] else "ok")
