"""Calibrations that rest on stored images: bad ones without scores, renewals, thresholds by hand, dry runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.utils import sealed_json, unsealed_json
from tests.testkit.app import Api, answer_of, error_of, files_below, ready, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import FakeExtractor, defective_image, encoded, plate, plates, with_defect

NAMED = {"role_id": ROLE, "roi_id": ROI}
N_OK = 8


def bad(seed: int, xywh: tuple[int, int, int, int] = (24, 36, 24, 24)) -> bytes:
    return encoded(with_defect(plate(seed), xywh))


def upload(api: Api, label: str, images: list[bytes]) -> list[str]:
    files = [("images", (f"{label}-{n}.png", data, "image/png")) for n, data in enumerate(images)]
    return list(answer_of(api.client.post(f"/datasets/{label}/upload", data=NAMED, files=files))["saved"])


def by_dataset(api: Api, **fields: Any) -> dict[str, Any]:
    return answer_of(api.client.post("/calibrate_dataset", json={**NAMED, **fields}))


def clear(api: Api, label: str) -> None:
    answer_of(api.client.request("DELETE", "/datasets/clear", params={**NAMED, "label": label}))


def manifest(api: Api) -> dict[str, Any]:
    return answer_of(api.client.get("/manifest", params=NAMED))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ROI with eight learned plates, and two bad ones in its data set."""
    folder = tmp_path_factory.mktemp("stored") / "models"
    with running_app(folder) as api:
        answer_of(api.fit(plates(range(N_OK))))
        upload(api, "ng", [bad(100), bad(101)])
    return folder


@pytest.fixture
def api(models: Path, tmp_path: Path) -> Iterator[Api]:
    shutil.copytree(models, tmp_path / "models")
    with running_app(tmp_path / "models") as started:
        yield started


# --- the stored bad images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"ng_scores": None}, {"ng_scores": []}], ids=["absent", "null", "empty"])
def test_a_calibration_without_scores_uses_the_stored_bad_images(api: Api, fields: dict[str, Any]) -> None:
    answer = answer_of(api.calibrate(**fields))
    assert (answer["n_ng"], answer["ng_scores_from"], answer["method"]) == (2, "stored", "between_ok_and_ng")
    scores = [answer_of(api.infer(bad(seed)))["score"] for seed in (100, 101)]
    assert answer["p5_ng"] == pytest.approx(min(scores))
    assert answer["p99_ok"] < answer["threshold"] < min(scores)
    assert answer["ng_caught"] == 2


def test_where_none_are_stored_n_ng_is_0(api: Api) -> None:
    clear(api, "ng")
    answer = answer_of(api.calibrate())
    assert (answer["n_ng"], answer["ng_scores_from"], answer["ng_mean"], answer["p5_ng"]) == (0, None, 0.0, None)


@pytest.mark.parametrize("sent", [{"ok_scores": [0.2, 0.3]}, {"ng_scores": [0.9]}], ids=["OK", "NG"])
def test_scores_that_are_sent_are_not_mixed_with_stored_bad_images(api: Api, sent: dict[str, Any]) -> None:
    answer = answer_of(api.calibrate(**sent))
    assert answer["n_ng"] == len(sent.get("ng_scores", []))
    assert answer["ng_scores_from"] == ("request" if "ng_scores" in sent else None)


def test_a_bad_image_that_cannot_be_scored_is_named_and_the_others_count(api: Api) -> None:
    (name,) = upload(api, "ng", [encoded(plate(7, (96, 160)))])
    answer = answer_of(api.calibrate())
    assert answer["n_ng"] == 2
    assert any(name in text and "could not be scored" in text for text in answer["warnings"])


def test_several_bad_images_of_one_part_count_once(api: Api) -> None:
    clear(api, "ng")
    files = [("images", (f"{n}.png", bad(100 + n), "image/png")) for n in range(3)]
    metas = [("metas", (None, '{"part_id":"one"}', "application/json")) for _ in range(3)]
    answer_of(api.client.post("/datasets/ng/upload", data=NAMED, files=[*files, *metas]))
    assert answer_of(api.calibrate())["n_ng"] == 1


# --- renewal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"margin": 1.2, "ok_percentile": 80, "score_mode": "max"}], ids=["plain", "set"])
def test_a_fit_renews_a_calibration_with_stored_bad_images_as_if_it_were_made_anew(
    api: Api, asked: dict[str, Any]
) -> None:
    answer_of(api.calibrate(**asked))
    fitted = answer_of(api.fit(plates([30, 31])))
    assert fitted["calibration"] == "renewed"
    calib = manifest(api)["calib"]
    anew = answer_of(api.calibrate(**asked))
    assert fitted["threshold"] == calib["threshold"] == anew["threshold"]
    assert (calib["n_ok"], calib["n_ng"], calib["ng_scores_from"]) == (N_OK + 2, 2, "stored")
    assert answer_of(api.infer(bad(102)))["decision"] == "ng"
    assert answer_of(api.infer(plates([40])[0]))["decision"] == "ok"


def test_a_refit_with_another_extractor_renews_it_too(api: Api) -> None:
    answer_of(api.calibrate())
    with running_app(api.models, input_size=80) as other:
        (item,) = answer_of(other.client.post("/refit", json=NAMED))["items"]
        assert (item["calibration"], item["set_aside"]) == ("renewed", None)
        assert item["threshold"] == answer_of(other.calibrate())["threshold"]
        assert answer_of(other.infer(bad(102)))["decision"] == "ng"


@pytest.mark.parametrize("n_unlearned", [0, 2])
def test_a_calibration_of_the_data_set_is_renewed_from_the_data_set(api: Api, n_unlearned: int) -> None:
    if n_unlearned:
        upload(api, "ok", plates(range(50, 50 + n_unlearned)))
    before = by_dataset(api, margin=1.1, ok_percentile=90, score_mode="max")
    assert (before["n_ok"], before["n_ng"], before["margin"]) == (N_OK + n_unlearned, 2, 1.1)
    fitted = answer_of(api.fit(plates([30])))
    assert fitted["calibration"] == "renewed"
    anew = by_dataset(api, margin=1.1, ok_percentile=90, dry_run=True)
    assert fitted["threshold"] == pytest.approx(anew["threshold"], rel=1e-5)
    assert (anew["n_ok"], anew["ok_scores_from"], anew["score_mode"]) == (N_OK + n_unlearned + 1, "dataset", "max")


def test_bad_images_that_are_gone_are_named_and_the_line_runs_on(api: Api) -> None:
    answer_of(api.calibrate())
    clear(api, "ng")
    fitted = answer_of(api.fit(plates([30])))
    assert fitted["calibration"] == "renewed"
    assert any("no longer stored" in text for text in fitted["warnings"])
    assert manifest(api)["calib"]["n_ng"] == 0


def test_scores_that_a_client_sent_are_still_set_aside(api: Api) -> None:
    answer_of(api.calibrate(ng_scores=[0.9]))
    fitted = answer_of(api.fit(plates([30])))
    assert (fitted["calibration"], fitted["threshold"]) == ("stale", None)
    assert any("set aside" in text for text in fitted["warnings"])


def test_replacing_renews_it_from_the_bad_images_too(api: Api) -> None:
    answer_of(api.calibrate())
    fitted = answer_of(api.fit(plates(range(60, 66)), mode="replace"))
    assert fitted["calibration"] == "renewed"
    assert manifest(api)["calib"]["n_ng"] == 2


def test_a_stored_bad_image_is_extracted_once(tmp_path: Path) -> None:
    extractor = FakeExtractor()
    with running_app(tmp_path / "models", loader=ready(extractor)) as api:
        answer_of(api.fit(plates(range(4))))
        upload(api, "ng", [encoded(defective_image(9, image_hw=(96, 96)))])
        before = len(extractor.calls)
        for _ in range(2):
            assert answer_of(api.calibrate())["n_ng"] == 1
        assert len(extractor.calls) == before + 1
        assert answer_of(api.fit(plates([7])))["calibration"] == "renewed"
        assert len(extractor.calls) == before + 2
    with running_app(tmp_path / "models", loader=ready(extractor)) as api:
        shape = {"kind": "circle", "cx": 48, "cy": 48, "r": 30}
        assert answer_of(api.infer(plates([8])[0], shape=shape))["threshold"] > 0
        assert len(extractor.calls) == before + 3


# --- replacing deletes nothing of the data set ------------------------------------------------------------------------


def ok_files(api: Api) -> list[str]:
    return list(answer_of(api.client.get("/datasets/list", params=NAMED))["classes"]["ok"]["files"])


def test_replacing_keeps_what_was_uploaded_to_the_data_set_also_after_a_restart(api: Api) -> None:
    of_dataset = upload(api, "ok", plates([70, 71]))
    answer_of(api.fit(plates([71, 72])))  # 71 came both ways, 72 by a fit alone
    with running_app(api.models) as restarted:
        answer_of(restarted.fit(plates([80, 81]), mode="replace"))
        kept = ok_files(restarted)
    assert set(of_dataset) <= set(kept)
    assert len(kept) == 4  # the two of the data set and the two new ones


def test_an_upload_makes_an_image_of_a_fit_one_of_the_data_set(api: Api) -> None:
    (name,) = upload(api, "ok", plates([0]))
    answer_of(api.fit(plates([80, 81]), mode="replace"))
    assert name in ok_files(api)
    assert len(ok_files(api)) == 3


def test_replacing_keeps_images_of_older_stores_of_which_nobody_knows(api: Api) -> None:
    for path in (api.roi_folder() / "images" / "ok").glob("*.json"):
        facts = unsealed_json(path.read_bytes())
        del facts["is_of_dataset"]
        path.write_bytes(sealed_json(facts))
    answer_of(api.fit(plates([80, 81]), mode="replace"))
    assert len(ok_files(api)) == N_OK + 2


# --- margin -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ng", [None, [0.45], [0.26], [0.21, 0.5], [0.1]], ids=str)
def test_a_larger_margin_never_lowers_the_threshold_and_always_counts(api: Api, ng: list[float] | None) -> None:
    ok = [0.20, 0.21, 0.22, 0.23, 0.24, 0.25]
    margins = [0.5, 0.8, 1.0, 1.05, 1.2, 1.79, 1.81, 2.5, 3.0]
    answers = [answer_of(api.calibrate(ok_scores=ok, ng_scores=ng, margin=margin, dry_run=True)) for margin in margins]
    thresholds = [answer["threshold"] for answer in answers]
    assert thresholds == sorted(set(thresholds))
    for answer in answers:
        assert answer["ok_rejected"] == sum(score > answer["threshold"] for score in ok)
        assert answer["ng_caught"] == sum(score > answer["threshold"] for score in ng or [])
        if answer["threshold"] < max(ok):  # then the promise may not be that of the largest score
            assert answer["false_alarm_rate_upper_95"] > 1 - 0.05 ** (1 / len(ok))


# --- what further images would do -------------------------------------------------------------------------------------


def measured(api: Api, image: bytes) -> float:
    return float(answer_of(api.infer(image))["params"]["measured_score"])


def facts(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in ("request_id", "dry_run")}


@pytest.mark.parametrize("settings", [{}, {"margin": 1.2}, {"ok_percentile": 50}, {"threshold": 0.3}], ids=str)
def test_a_further_bad_image_does_what_its_added_score_has_said(api: Api, settings: dict[str, float]) -> None:
    answer_of(api.calibrate())
    faint = encoded(with_defect(plate(102), (24, 36, 24, 24), 8))
    before = files_below(api.models)
    said = answer_of(api.calibrate(add_ng_scores=[measured(api, faint)], dry_run=True, **settings))
    assert files_below(api.models) == before
    upload(api, "ng", [faint])
    assert facts(answer_of(api.calibrate(**settings))) == facts(said)
    assert said["n_ng"] == 3


def test_an_added_bad_score_counts_where_no_bad_image_is_stored(api: Api) -> None:
    clear(api, "ng")
    answer = answer_of(api.calibrate(add_ng_scores=[0.9], dry_run=True))
    assert (answer["n_ng"], answer["ng_caught"], answer["method"]) == (1, 1, "between_ok_and_ng")


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_added_good_score_counts_as_another_part(api: Api, by_hand: bool) -> None:
    settings = {"threshold": 0.3} if by_hand else {}
    answer_of(api.calibrate(**settings))
    clear(api, "ng")
    before = answer_of(api.calibrate(dry_run=True, **settings))
    higher = before["p99_ok"] * 1.5
    answer = answer_of(api.calibrate(add_ok_scores=[higher], dry_run=True, **settings))
    assert (answer["n_ok"], answer["p99_ok"]) == (N_OK + 1, higher)
    assert answer["threshold"] == (0.3 if by_hand else higher)
    if not by_hand:
        assert answer["expected_false_alarm_rate"] == pytest.approx(1 / (N_OK + 2))
        assert answer["false_alarm_rate_upper_95"] < before["false_alarm_rate_upper_95"]
    assert answer["ok_scores_from"] == "stored"


def test_an_added_part_lifts_the_promise_of_near_identical_ones_by_one(tmp_path: Path) -> None:
    frames = [encoded(plate(n), "JPEG", quality=quality) for n in range(6) for quality in (92, 95)]
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(frames))
        n_ok = [answer_of(api.calibrate(add_ok_scores=added, dry_run=True))["n_ok"] for added in ([], [0.1, 0.2])]
    assert n_ok == [6, 8]


@pytest.mark.parametrize("name", ["add_ok_scores", "add_ng_scores"])
@pytest.mark.parametrize("others", [{}, {"ok_scores": [0.2], "dry_run": True}, {"ng_scores": [0.9], "dry_run": True}])
def test_scores_are_added_only_in_a_dry_run_from_stored_images(api: Api, name: str, others: dict[str, Any]) -> None:
    body = error_of(api.calibrate(**{name: [0.3]}, **others), 422, "invalid_input")
    assert body["details"]["field"] == name


# --- set by hand ------------------------------------------------------------------------------------------------------


def test_a_threshold_by_hand_says_what_it_means_on_the_stored_scores(api: Api) -> None:
    scores = sorted(answer_of(api.infer(image))["score"] for image in plates(range(N_OK)))
    answer_of(api.calibrate(score_mode="percentile", dry_run=True))
    by_hand = (scores[-2] + scores[-1]) / 2
    answer = answer_of(api.calibrate(score_mode="percentile", threshold=by_hand))
    assert (answer["threshold"], answer["method"]) == (by_hand, "manual")
    assert (answer["n_ok"], answer["ok_rejected"], answer["n_ng"], answer["ng_caught"]) == (N_OK, 1, 2, 2)
    assert answer["expected_false_alarm_rate"] == pytest.approx(2 / (N_OK + 1))
    assert answer["false_alarm_rate_upper_95"] > answer["expected_false_alarm_rate"]
    found = answer_of(api.infer(plates([40])[0]))
    assert found["threshold"] == by_hand
    assert manifest(api)["calib"]["method"] == "manual"


def test_one_that_lets_bad_parts_pass_says_so(api: Api) -> None:
    answer = answer_of(api.calibrate(threshold=1.9))
    assert any("2 of 2 NG images stay below" in text for text in answer["warnings"])


def test_a_fit_keeps_a_threshold_by_hand_and_says_what_it_means_now(api: Api) -> None:
    answer_of(api.calibrate(threshold=0.05))
    fitted = answer_of(api.fit(plates([30])))
    assert (fitted["calibration"], fitted["threshold"]) == ("renewed", 0.05)
    (text,) = [text for text in fitted["warnings"] if "set by hand" in text]
    assert f"{N_OK + 1} of {N_OK + 1} stored good parts" in text
    assert "2 of 2 stored NG images are found" in text
    assert answer_of(api.infer(plates([40])[0]))["threshold"] == 0.05


def test_a_threshold_by_hand_means_nothing_to_another_extractor(api: Api) -> None:
    answer_of(api.calibrate(threshold=0.3))
    with running_app(api.models, input_size=80) as other:
        (item,) = answer_of(other.client.post("/refit", json=NAMED))["items"]
        assert (item["calibration"], item["set_aside"]["threshold"]) == ("stale", 0.3)
        assert any("set by hand" in text for text in item["warnings"])


def test_replacing_with_another_extractor_sets_a_threshold_by_hand_aside(api: Api) -> None:
    answer_of(api.calibrate(threshold=0.3))
    with running_app(api.models, input_size=80) as other:
        fitted = answer_of(other.fit(plates(range(6)), mode="replace"))
        assert (fitted["calibration"], fitted["threshold"]) == ("stale", None)
        assert answer_of(other.infer(plates([40])[0]))["decision"] is None


def test_settings_that_a_threshold_by_hand_leaves_without_effect_are_named(api: Api) -> None:
    answer = answer_of(api.calibrate(threshold=0.3, margin=1.2, ok_percentile=90))
    for name in ("margin=1.2", "ok_percentile=90"):
        assert any(name in text and "no effect" in text for text in answer["warnings"])


def test_a_percentile_that_overlapping_scores_leave_without_effect_is_named(api: Api) -> None:
    for ok_percentile, named in ((90, True), (None, False)):
        answer = answer_of(api.calibrate(ok_scores=[0.2, 0.3], ng_scores=[0.1], ok_percentile=ok_percentile))
        assert answer["method"] == "fewest_errors"
        assert any("ok_percentile has no effect" in text for text in answer["warnings"]) == named


@pytest.mark.parametrize("value", [0, -0.1, 2.1, "abc"])
def test_a_threshold_that_no_score_can_have_is_refused(api: Api, value: object) -> None:
    assert "threshold" in error_of(api.calibrate(threshold=value), 422, "invalid_input")["error"]


def test_a_threshold_by_hand_can_be_set_with_one_good_part(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(plates([0])))
        answer = answer_of(api.calibrate(threshold=0.3))
        assert (answer["n_ok"], answer["p99_ok"], answer["expected_false_alarm_rate"]) == (0, 0.0, 1.0)
        assert answer_of(api.infer(plates([1])[0]))["threshold"] == 0.3


# --- dry run, and the data set's settings -----------------------------------------------------------------------------


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_dry_run_says_what_a_setting_would_do_and_stores_nothing(api: Api, calibrated: bool) -> None:
    if calibrated:
        answer_of(api.calibrate())
    else:
        shutil.rmtree(api.roi_folder() / "embeddings")
    before = files_below(api.roi_folder())
    tried = [answer_of(api.calibrate(score_mode=mode, dry_run=True)) for mode in ("max", "area")]
    tried += [answer_of(api.calibrate(threshold=0.1, dry_run=True)), by_dataset(api, dry_run=True)]
    assert all(answer["dry_run"] and answer["threshold"] > 0 for answer in tried)
    assert files_below(api.roi_folder()) == before
    real = answer_of(api.calibrate(score_mode="max"))
    assert (real["threshold"], real["dry_run"]) == (tried[0]["threshold"], False)


def test_the_data_set_is_calibrated_with_the_settings_that_are_asked_for(api: Api) -> None:
    plain = by_dataset(api, score_mode="max")
    answer = by_dataset(api, score_mode="max", ok_percentile=50, margin=1.3)
    assert (answer["score_mode"], answer["ok_percentile"], answer["margin"]) == ("max", 50, 1.3)
    assert answer["threshold"] != plain["threshold"]
    by_hand = by_dataset(api, threshold=0.4)
    assert (by_hand["threshold"], by_hand["method"], by_hand["n_ng"]) == (0.4, "manual", 2)


def test_a_decision_that_is_kept_does_not_list_the_images_of_its_calibration(api: Api) -> None:
    by_dataset(api)
    with running_app(api.models, audit=True) as audited:
        answer_of(audited.infer(plates([40])[0]))
        (row,) = answer_of(audited.client.get("/audit"))["entries"]
    assert row["params"]["calibration"]["n_ng"] == 2
    assert not {"ok_images", "ng_images"} & set(row["params"]["calibration"])
