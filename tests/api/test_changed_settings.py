"""A restart with other settings changes nothing about a ROI that is fitted and calibrated."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.testkit.app import Api, answer_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, plate, plates, with_defect

NAMED = {"role_id": ROLE, "roi_id": ROI}
N_OK = 8
CHANGED: dict[str, dict[str, Any]] = {
    "blur": {"blur_sigma": 20.0},
    "no blur": {"blur_sigma": 0.0},
    "k": {"k": 8},
    "percentile": {"score_percentile": 50.0},
    "area": {"area_mm2_thr": 500.0},
    "mode": {"score_mode": "percentile"},
    "coreset": {"coreset_rate": 0.5, "seed": 7},
    "aligned": {"aligned": "no"},
    "all": {"blur_sigma": 20.0, "k": 8, "score_percentile": 50.0, "area_mm2_thr": 500.0, "score_mode": "top_mean"},
}
DEFECT = encoded(with_defect(plate(20), (40, 40, 12, 12)))
GOOD = plates([40])[0]


def upload_bad(api: Api) -> None:
    files = [("images", ("bad.png", encoded(with_defect(plate(100), (24, 36, 24, 24))), "image/png"))]
    answer_of(api.client.post("/datasets/ng/upload", data=NAMED, files=files))


@pytest.fixture(scope="module", params=["good parts alone", "bad parts too"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted and calibrated ROI that finds a small defect."""
    folder = tmp_path_factory.mktemp("settings") / "models"
    with running_app(folder) as api:
        answer_of(api.fit(plates(range(N_OK))))
        if request.param == "bad parts too":
            upload_bad(api)
        answer_of(api.calibrate())
        assert answer_of(api.infer(DEFECT))["decision"] == "ng"
        assert answer_of(api.infer(GOOD))["decision"] == "ok"
    return folder


def copy_of(models: Path, tmp_path: Path) -> Path:
    shutil.copytree(models, tmp_path / "models")
    return tmp_path / "models"


def measured(api: Api) -> list[Any]:
    answers = [answer_of(api.infer(image)) for image in (DEFECT, GOOD)]
    rule = ("k", "blur_sigma", "score_mode", "score_percentile", "area_mm2_thr")
    return [
        [answer[name] for name in ("score", "threshold", "decision", "regions", "heatmap_png_base64")]
        + [answer["params"][name] for name in rule]
        for answer in answers
    ]


@pytest.mark.parametrize("settings", CHANGED.values(), ids=CHANGED)
def test_a_restart_with_another_setting_changes_no_score_threshold_or_decision(
    models: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = copy_of(models, tmp_path)
    with running_app(folder) as api:
        before = measured(api)
        calibrated_before = answer_of(api.calibrate(dry_run=True))
        by_dataset = answer_of(api.client.post("/calibrate_dataset", json={**NAMED, "dry_run": True}))
    with running_app(folder, **settings) as api:
        assert measured(api) == before
        calibrated = answer_of(api.calibrate(dry_run=True))
        assert calibrated["threshold"] == calibrated_before["threshold"]
        again = answer_of(api.client.post("/calibrate_dataset", json={**NAMED, "dry_run": True}))
        assert again["threshold"] == by_dataset["threshold"]


@pytest.mark.parametrize("settings", CHANGED.values(), ids=CHANGED)
def test_images_that_are_added_under_another_setting_are_learned_as_the_roi_was(
    models: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folders = [copy_of(models, tmp_path / name) for name in ("as-it-was", "changed")]
    answers, fits = [], []
    for folder, of_restart in zip(folders, ({}, settings), strict=True):
        with running_app(folder, **of_restart) as api:
            fits.append(answer_of(api.fit(plates([30, 31]))))
            answers.append(measured(api))
    assert answers[0] == answers[1]
    assert answers[0][0][2] == "ng"
    assert fits[0]["checksum"] == fits[1]["checksum"]
    named = {"blur_sigma", "k", "score_percentile", "area_mm2_thr"} & set(settings)
    text = " ".join(fits[1]["warnings"])
    assert all(f"{name}=" in text for name in named)
    assert ("stays as it was fitted" in text) == bool(named or settings.get("score_mode") == "top_mean")


def test_a_roi_that_begins_anew_takes_the_setting_and_a_threshold_that_goes_with_it(
    models: Path, tmp_path: Path
) -> None:
    with running_app(copy_of(models, tmp_path), blur_sigma=3.0, k=2) as api:
        fitted = answer_of(api.fit(plates(range(50, 58)), mode="replace"))
        assert fitted["calibration"] == "renewed"
        found = answer_of(api.infer(GOOD))
        assert (found["params"]["blur_sigma"], found["params"]["k"]) == (3.0, 2)
        assert found["threshold"] == fitted["threshold"] == answer_of(api.calibrate(dry_run=True))["threshold"]
        assert answer_of(api.infer(DEFECT))["decision"] == "ng"


def test_an_uncalibrated_roi_keeps_its_score_as_well(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(plates(range(N_OK))))
        before = answer_of(api.infer(DEFECT))["score"]
    with running_app(tmp_path / "models", **CHANGED["all"]) as api:
        assert answer_of(api.infer(DEFECT))["score"] == before


def test_a_rate_that_was_asked_for_is_kept_and_every_embedding_only_where_it_is_asked_for(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        assert answer_of(api.fit(plates(range(3)), coreset_rate="0.1"))["coreset_rate_requested"] == 0.1
        assert answer_of(api.fit(plates([3])))["coreset_rate_requested"] == 0.1
        assert answer_of(api.fit(plates([4]), memory_fit="true"))["coreset_rate_requested"] == 1
        assert answer_of(api.fit(plates([5]), memory_fit="false"))["coreset_rate_requested"] == 0.02
