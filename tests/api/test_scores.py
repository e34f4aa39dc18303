"""GET /scores: the scores of a ROI's stored images under every mode."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from backend.artifacts.image_store import ImageStore
from backend.errors import ExtractorMismatch, QueueFull
from backend.services import scores as listing
from backend.services.calibrating import Calibrator
from backend.services.stored_scores import StoredScores
from tests.testkit.app import Api, answer_of, error_of, files_below, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, plate, plates, with_defect

NAMED = {"role_id": ROLE, "roi_id": ROI}
N_OK = 6
RING = {"kind": "annulus", "cx": 48, "cy": 48, "r": 40, "r_inner": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores") / "models"
    with running_app(folder) as api:
        answer_of(api.fit(plates(range(N_OK))))
        upload_bad(api, 100, 101)
    return folder


@pytest.fixture
def api(models: Path, tmp_path: Path) -> Iterator[Api]:
    shutil.copytree(models, tmp_path / "models")
    with running_app(tmp_path / "models") as started:
        yield started


def bad(seed: int, strength: int = 30) -> bytes:
    return encoded(with_defect(plate(seed), (24, 36, 24, 24), strength))


def upload_bad(api: Api, *seeds: int, strength: int = 30) -> list[str]:
    files = [("images", (f"bad-{n}.png", bad(n, strength), "image/png")) for n in seeds]
    saved: list[str] = answer_of(api.client.post("/datasets/ng/upload", data=NAMED, files=files))["saved"]
    return saved


def scores(api: Api, **settings: Any) -> dict[str, Any]:
    return answer_of(api.client.get("/scores", params={**NAMED, **settings}))


def facts(calibration: dict[str, Any]) -> dict[str, Any]:
    """Return what a calibration says, without what only an answer of its own has."""
    own = {*NAMED, "model_key", "recipe_id", "request_id", "status", "dry_run"}
    return {name: value for name, value in calibration.items() if name not in own}


def assert_thresholds_are_those_of_calibrate_ng(api: Api, **settings: Any) -> None:
    found = scores(api, **settings)
    assert set(found["thresholds"]) == set(listing.MODES)
    for mode in listing.MODES:
        answer = answer_of(api.calibrate(score_mode=mode, dry_run=True, **settings))
        assert found["thresholds"][mode] == facts(answer), mode


def test_all_images_come_with_the_scores_of_all_modes(api: Api) -> None:
    found = scores(api)
    assert [image["label"] for image in found["images"]] == ["ok"] * N_OK + ["ng"] * 2
    assert all(set(image["scores"]) == set(listing.MODES) for image in found["images"])
    assert len({image["image_digest"] for image in found["images"]}) == N_OK + 2
    assert (found["threshold"], found["calib"], found["score_mode"]) == (None, None, "area")
    assert found["warnings"] == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"margin": 0.5},
        {"margin": 1.3, "ok_percentile": 60},
        {"margin": 3},
        {"ok_percentile": 1},
        {"ok_percentile": 100, "score_percentile": 90},
        {"score_percentile": 50, "area_mm2_thr": 0},
        {"area_mm2_thr": 4.5},
    ],
    ids=str,
)
def test_thresholds_are_what_calibrate_ng_answers_to_the_same_settings(api: Api, settings: dict[str, float]) -> None:
    assert_thresholds_are_those_of_calibrate_ng(api, **settings)


@pytest.mark.parametrize("before", [{}, {"score_mode": "max", "margin": 1.2}, {"threshold": 0.4}], ids=str)
def test_thresholds_follow_the_calibration_in_force_as_calibrate_ng_does(api: Api, before: dict[str, Any]) -> None:
    answer = answer_of(api.calibrate(area_mm2_thr=0.5, score_percentile=97, ok_percentile=80, **before))
    assert_thresholds_are_those_of_calibrate_ng(api)
    assert facts(answer) == scores(api)["calib"]


def test_thresholds_without_bad_images_and_with_overlapping_ones_are_those_of_calibrate_ng(api: Api) -> None:
    upload_bad(api, 0, 1, 2, strength=1)  # nothing to be seen
    assert_thresholds_are_those_of_calibrate_ng(api, ok_percentile=50)
    assert scores(api)["thresholds"]["max"]["method"] == "fewest_errors"
    answer_of(api.client.request("DELETE", "/datasets/clear", params={**NAMED, "label": "ng"}))
    assert_thresholds_are_those_of_calibrate_ng(api)


@pytest.mark.parametrize("shape", [RING, {"kind": "rect", "x": 24, "y": 24, "w": 48, "h": 50}], ids=["ring", "rect"])
def test_thresholds_of_a_learned_shape_are_those_of_calibrate_ng(api: Api, shape: dict[str, Any]) -> None:
    answer_of(api.fit(plates(range(N_OK)), mode="replace", shape=shape))
    assert_thresholds_are_those_of_calibrate_ng(api, area_mm2_thr=0.3)


def test_frames_of_one_part_promise_no_more_here_than_in_calibrate_ng(tmp_path: Path) -> None:
    frames = [encoded(plate(n), "JPEG", quality=quality) for n in range(3) for quality in (92, 95)]
    with running_app(tmp_path / "models") as api:
        assert answer_of(api.fit(frames))["n_parts"] == 3
        assert_thresholds_are_those_of_calibrate_ng(api)
        found = scores(api)
        assert (found["n_ok"], found["thresholds"]["max"]["expected_false_alarm_rate"]) == (3, 1.0)
        assert {promise["expected_false_alarm_rate"] for promise in found["promises"]} == {1.0}
        assert all(image["near_identical"] for image in found["images"])


def test_doubtful_images_are_marked_and_named_as_calibrate_ng_names_them(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit([*plates(range(12)), bad(50, strength=60)]))
        assert_thresholds_are_those_of_calibrate_ng(api)
        found = scores(api)
    (suspect,) = (image for image in found["images"] if image["suspect"])
    for mode in listing.MODES:
        assert any(suspect["filename"] in text for text in found["thresholds"][mode]["warnings"]), mode


@pytest.mark.parametrize("n_frames", [1, 2])
def test_a_threshold_of_ones_own_promises_here_what_it_promises_in_calibrate_ng(tmp_path: Path, n_frames: int) -> None:
    frames = [encoded(plate(n), "JPEG", quality=95 - 3 * frame) for n in range(4) for frame in range(n_frames)]
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(frames))
        upload_bad(api, 100)
        found = scores(api)
        for mode in listing.MODES:
            worst: dict[str, float] = {}
            for image in found["images"]:
                if image["label"] == "ok":
                    worst[image["part_id"]] = max(image["scores"][mode], worst.get(image["part_id"], 0.0))
            assert len(found["promises"]) == len(worst) + 1
            for threshold in (min(worst.values()) / 2, *sorted(worst.values()), 1.9):
                answer = answer_of(api.calibrate(score_mode=mode, threshold=threshold, dry_run=True))
                below = sum(score <= threshold for score in worst.values())
                promise = {name: answer[name] for name in found["promises"][below]}
                assert (found["promises"][below], found["n_ok"]) == (promise, answer["n_ok"])
                assert len(worst) - below == answer["ok_rejected"]


def test_too_few_good_parts_leave_thresholds_out_as_calibrate_ng_refuses(tmp_path: Path) -> None:
    with running_app(tmp_path / "models", min_ok_samples=4) as api:
        answer_of(api.fit(plates(range(3))))
        found = scores(api)
        error_of(api.calibrate(dry_run=True), 422, "invalid_input")
    assert (found["thresholds"], len(found["images"]), len(found["promises"])) == ({}, 3, 4)


def test_scores_are_of_the_images_that_are_stored_now_and_asking_stores_nothing(api: Api) -> None:
    before = files_below(api.models)
    assert scores(api)["images"] == scores(api, ok_percentile=50)["images"]
    assert files_below(api.models) == before
    answer_of(api.client.request("DELETE", "/datasets/clear", params={**NAMED, "label": "ng"}))
    assert {image["label"] for image in scores(api)["images"]} == {"ok"}


def test_scores_are_made_once_for_a_memory_and_a_rule(api: Api) -> None:
    first = scores(api)
    answer_of(api.calibrate(score_mode="max", threshold=0.5))
    unmade = AssertionError("made again")
    with (
        mock.patch.object(listing, "leave_one_out_scores_by_mode", side_effect=unmade),
        mock.patch.object(StoredScores, "distances", side_effect=unmade),
    ):
        found = scores(api, margin=2)
    assert (found["images"], found["threshold"]) == (first["images"], 0.5)
    assert scores(api, area_mm2_thr=20)["images"] != first["images"]


def test_names_are_those_of_now(api: Api) -> None:
    first = scores(api)["images"]
    for image in (first[0], first[-1]):
        named = {**NAMED, "label": image["label"], "filename": image["filename"]}
        data = api.client.get("/datasets/file", params=named).content
        answer_of(api.client.request("DELETE", "/datasets/file", params=named))
        gone = [each for each in scores(api)["images"] if each["image_digest"] == image["image_digest"]]
        assert [each["filename"] for each in gone] == ([None] if image["label"] == "ok" else [])
        files = {"images": ("renamed.png", data, "image/png")}
        answer_of(api.client.post(f"/datasets/{image['label']}/upload", data=NAMED, files=files))
        (again,) = (each for each in scores(api)["images"] if each["image_digest"] == image["image_digest"])
        assert again["filename"].startswith("renamed-")
        assert again["scores"] == image["scores"]


def test_a_bad_image_that_cannot_be_scored_is_named_and_the_others_stay(api: Api) -> None:
    damaged, narrow = upload_bad(api, 102, 103)[0], encoded(plate(7)[:, :40])
    upload = {"images": ("narrow.png", narrow, "image/png")}
    answer_of(api.client.post("/datasets/ng/upload", data=NAMED, files=upload))
    digest = damaged.rpartition("-")[2].partition(".")[0]
    (path,) = api.roi_folder().glob(f"images/ng/{digest}*.png")
    path.write_bytes(b"broken")
    found = scores(api)
    assert len([image for image in found["images"] if image["label"] == "ng"]) == 3
    (warning,) = found["warnings"]
    assert damaged in warning
    assert "narrow" in warning
    for mode in listing.MODES:
        answer = answer_of(api.calibrate(score_mode=mode, dry_run=True))
        assert facts(answer) == found["thresholds"][mode]
        assert answer["n_ng"] == 3


def test_a_bad_image_that_the_device_takes_no_more_is_named_and_no_threshold_is_made_without_it(api: Api) -> None:
    distances = StoredScores.distances

    def busy_once(self: StoredScores, image: Any, bank: Any) -> Any:
        if image.name == "bad-101":
            raise QueueFull("The queue is full.")
        return distances(self, image, bank)

    with mock.patch.object(StoredScores, "distances", busy_once):
        found = scores(api)
    assert [image["label"] for image in found["images"]] == ["ok"] * N_OK + ["ng"]
    assert (found["thresholds"], len(found["warnings"])) == ({}, 1)
    assert "bad-101" in found["warnings"][0]
    found = scores(api)
    assert (len(found["thresholds"]), found["warnings"], len(found["images"])) == (4, [], N_OK + 2)


def test_with_another_extractor_the_good_scores_come_alone(api: Api) -> None:
    mismatch = ExtractorMismatch("This ROI was fitted with another extractor.")
    with mock.patch.object(Calibrator, "stored_scores", side_effect=mismatch):
        found = scores(api)
        error_of(api.calibrate(dry_run=True), 409, "extractor_mismatch")
    assert [image["label"] for image in found["images"]] == ["ok"] * N_OK
    assert found["thresholds"] == {}
    assert "another extractor" in found["warnings"][0]


def test_an_answer_is_of_one_memory_though_the_roi_is_fitted_meanwhile(api: Api) -> None:
    answer_of(api.calibrate(score_mode="max"))
    before = scores(api)
    labelled = ImageStore.labelled

    def fitted_meanwhile(self: ImageStore, label: Any) -> Any:
        with mock.patch.object(ImageStore, "labelled", labelled):
            answer_of(api.fit(plates(range(20, 24))))
        return labelled(self, label)

    with mock.patch.object(ImageStore, "labelled", fitted_meanwhile):
        found = scores(api)
    assert facts(found) == facts(before)
    assert scores(api)["memory_checksum"] != before["memory_checksum"]


def test_a_damaged_calibration_is_named_and_the_thresholds_to_mend_it_with_are_there(api: Api) -> None:
    answer_of(api.calibrate(score_mode="max"))
    (api.roi_folder() / "calib.json").write_text("{")
    assert_thresholds_are_those_of_calibrate_ng(api)
    found = scores(api)
    assert (found["threshold"], found["calib"], found["calibration_stale"]) == (None, None, False)
    assert "damaged" in found["warnings"][0]


def test_a_calibration_of_another_memory_is_stale(api: Api) -> None:
    answer_of(api.calibrate(ok_scores=[0.2, 0.3], ng_scores=[0.9]))
    answer_of(api.fit(plates(range(30, 33))))
    found = scores(api)
    assert (found["threshold"], found["calibration_stale"]) == (None, True)
    assert_thresholds_are_those_of_calibrate_ng(api)


def test_a_roi_that_was_never_fitted_is_400(api: Api) -> None:
    error_of(api.client.get("/scores", params={**NAMED, "roi_id": "nobody"}), 400, "memory_not_found")
    error_of(api.client.get("/scores", params={"role_id": ROLE}), 422, "invalid_input")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("margin", "0.4"),
        ("margin", "nan"),
        ("ok_percentile", "0"),
        ("score_percentile", "101"),
        ("area_mm2_thr", "-1"),
        ("area_mm2_thr", "inf"),
        ("ok_percentile", "many"),
    ],
)
def test_a_setting_out_of_range_is_422(api: Api, name: str, value: str) -> None:
    body = error_of(api.client.get("/scores", params={**NAMED, name: value}), 422, "invalid_input")
    assert name in body["error"]


def test_a_query_that_nobody_reads_is_named(api: Api) -> None:
    assert any("'score_mode'" in text for text in scores(api, score_mode="max")["warnings"])
