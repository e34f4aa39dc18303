"""``GET /versions`` and ``POST /versions/activate``: what was in force at a ROI, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testkit.app import Api, answer_of, error_of, files_below, ready, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import FakeExtractor, defective_image, encoded, good_image

NAMED = {"role_id": ROLE, "roi_id": ROI}
BAD = encoded(defective_image(9, image_hw=(64, 64)))
GOOD = encoded(good_image(50, image_hw=(64, 64)))


def png(*seeds: int) -> list[bytes]:
    return [encoded(good_image(seed, image_hw=(64, 64))) for seed in seeds]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path / "models", audit=False) as started:
        yield started


def listed(api: Api, **named: Any) -> list[dict[str, Any]]:
    versions: list[dict[str, Any]] = answer_of(api.client.get("/versions", params={**NAMED, **named}))["versions"]
    return versions


def activate(api: Api, version: int, **fields: Any) -> dict[str, Any]:
    return answer_of(api.client.post("/versions/activate", json={**NAMED, "version": version, **fields}))


def inspected(api: Api, **fields: Any) -> list[dict[str, Any]]:
    """Everything that inspections answer, but for the time that they took."""
    answers = [answer_of(api.infer(image, **fields)) for image in (BAD, GOOD, *png(0, 3))]
    return [
        {name: value for name, value in answer.items() if name not in ("request_id", "timings_ms")}
        for answer in answers
    ]


def test_a_roi_that_was_never_fitted_has_no_versions(api: Api) -> None:
    assert listed(api) == []
    assert not api.roi_folder().exists()


def test_each_fit_and_calibration_leaves_the_one_before_it(api: Api) -> None:
    fits = [answer_of(api.fit(png(0, 1, 2), reason="first day"))]
    threshold = answer_of(api.calibrate(reason="größer\nund zwei Zeilen"))["threshold"]
    fits.append(answer_of(api.fit(png(3, 4))))
    by_hand = answer_of(api.calibrate(threshold=0.5, score_mode="max"))
    third, second, first, zeroth = listed(api)
    assert [each["version"] for each in (zeroth, first, second, third)] == [1, 2, 3, 4]
    assert [each["kind"] for each in (zeroth, first, second, third)] == ["fit", "calibration", "fit", "calibration"]
    assert [each["in_force"] for each in (zeroth, first, second, third)] == [False, False, False, True]
    assert [each["reason"] for each in (zeroth, first, second)] == ["first day", "größer\nund zwei Zeilen", None]
    assert [each["memory_checksum"] for each in (first, second)] == [fit["checksum"] for fit in fits]
    assert (zeroth["threshold"], zeroth["calibrated"], zeroth["n_ok"]) == (None, False, None)
    assert (first["threshold"], first["n_ok"], first["n_ok_total"]) == (threshold, 3, 3)
    assert (second["threshold"], second["n_ok_total"]) == (fits[1]["threshold"], 5)
    assert (third["threshold"], third["score_mode"]) == (by_hand["threshold"], "max")
    assert sorted(each["at"] for each in (zeroth, first, second, third)) == [
        each["at"] for each in (zeroth, first, second, third)
    ]
    assert {each["note"] for each in (zeroth, first, second, third)} == {None}


def test_an_activated_version_answers_as_it_did_to_the_last_bit_and_can_be_undone(api: Api) -> None:
    files = [("images", (f"{n}.png", data, "image/png")) for n, data in enumerate(png(*range(8)))]
    answer_of(api.client.post("/datasets/ok/upload", data=NAMED, files=files))
    answer_of(api.fit(png(0, 1, 2)))
    answers = {1: inspected(api)}
    answer_of(api.calibrate())
    answers[2] = inspected(api)
    answer_of(api.fit(png(3, 4)))
    answers[3] = inspected(api)
    answer_of(api.calibrate(threshold=0.9, score_mode="max", area_mm2_thr=0.5))
    answers[4] = inspected(api)
    answer_of(api.fit(png(5, 6), mode="replace"))
    answers[5] = inspected(api)
    answer_of(api.calibrate(ok_scores=[0.1, 0.2, 0.3], ng_scores=[0.9]))
    answers[6] = inspected(api)
    answer_of(api.fit(png(7)))  # its calibration rested on scores that were sent: stale
    answers[7] = inspected(api)
    assert len({str(answer) for answer in answers.values()}) == 7, "each of them answers otherwise"
    number = 7
    for wanted in (1, 4, 2, 7, 3, 6, 5):
        done = activate(api, wanted, reason=f"back to {wanted}")
        number += 1
        assert (done["version"], done["activates"], done["changed"]) == (number, wanted, True)
        assert inspected(api) == answers[wanted], wanted
        newest = listed(api)[0]
        assert (newest["kind"], newest["activates"], newest["in_force"]) == ("activation", wanted, True)
        assert newest["reason"] == f"back to {wanted}"
    activate(api, number - 1)
    assert inspected(api) == answers[6], "an activation is undone as anything else"


def test_images_that_a_fit_deleted_stay_deleted_and_change_no_score(api: Api) -> None:
    answer_of(api.fit(png(0, 1, 2, 3)))
    answer_of(api.calibrate())
    before = inspected(api)
    answer_of(api.fit(png(5, 6, 7), mode="replace"))
    done = activate(api, 2)
    assert "4 of the 4 images" in done["warnings"][0]
    after = inspected(api)
    for answer in (*before, *after):
        for region in answer["regions"]:
            region["nearest"] = None  # an image that is shown beside a region
    assert after == before
    fitted = answer_of(api.fit(png(8)))
    assert (fitted["n_ok_total"], fitted["n_new"]) == (1, 1), "a fit learns what is stored"


def test_a_version_in_force_is_not_activated_once_more(api: Api) -> None:
    answer_of(api.fit(png(0, 1, 2)))
    answer_of(api.calibrate())
    before = files_below(api.models)
    again = activate(api, 2, reason="sent twice")
    assert (again["changed"], again["version"]) == (False, 2)
    assert "in force already" in again["warnings"][0]
    assert files_below(api.models) == before


def test_a_version_that_is_not_there_is_named(api: Api) -> None:
    body = {**NAMED, "version": 3}
    assert "3" in error_of(api.client.post("/versions/activate", json=body), 404, "not_found")["error"]
    assert not api.roi_folder().exists()
    answer_of(api.fit(png(0, 1, 2)))
    error_of(api.client.post("/versions/activate", json=body), 404, "not_found")
    for wrong in (0, -1, 10**9, 1.5, "two", None, True, "1"):
        error_of(api.client.post("/versions/activate", json={**NAMED, "version": wrong}), 422, "invalid_input")


def test_a_calibration_that_changes_nothing_leaves_no_version_unless_it_has_a_reason(api: Api) -> None:
    answer_of(api.fit(png(0, 1, 2)))
    answer_of(api.calibrate())
    answer_of(api.calibrate())
    answer_of(api.fit(png(1)))
    answer_of(api.calibrate(reason=""))
    answer_of(api.fit(png(1), reason=""))
    assert [each["version"] for each in listed(api)] == [2, 1]
    answer_of(api.calibrate(reason="looked at it again"))
    assert [(each["version"], each["reason"]) for each in listed(api)][:2] == [(3, "looked at it again"), (2, None)]
    answer_of(api.calibrate(dry_run=True, margin=2.0, reason="what if"))
    assert [each["version"] for each in listed(api)] == [3, 2, 1]
    assert any("reason" in text for text in answer_of(api.calibrate(dry_run=True, reason="what if"))["warnings"])


@pytest.mark.parametrize("reason", ["x" * 1001, "bell \x07", "esc \x1b[0m", "del \x7f", "c1 \x85"])
def test_a_reason_that_is_no_text_is_refused(api: Api, reason: str) -> None:
    answer_of(api.fit(png(0, 1, 2)))
    error_of(api.calibrate(reason=reason), 422, "invalid_input")
    error_of(api.fit(png(3), reason=reason), 422, "invalid_input")
    body = {**NAMED, "version": 1, "reason": reason}
    error_of(api.client.post("/versions/activate", json=body), 422, "invalid_input")
    assert len(listed(api)) == 1


def test_reasons_are_kept_as_they_are_written(api: Api) -> None:
    texts = ["x" * 1000, "新しいランプ 🔦", "<script>alert(1)</script>", 'a "quote"\tand\r\nlines', " ", "NULL"]
    answer_of(api.fit(png(0, 1, 2), reason=texts[0]))
    for margin, text in enumerate(texts[1:], 1):
        answer_of(api.calibrate(margin=1 + margin / 10, reason=text))
    assert [each["reason"] for each in reversed(listed(api))] == texts


def test_calibrating_with_the_data_set_takes_a_reason_too(api: Api) -> None:
    for label, images in (("ok", png(0, 1, 2)), ("ng", [BAD])):
        files = [("images", (f"{n}.png", data, "image/png")) for n, data in enumerate(images)]
        answer_of(api.client.post(f"/datasets/{label}/upload", data=NAMED, files=files))
    answer_of(api.fit([], use_dataset="true"))
    answer_of(api.client.post("/calibrate_dataset", json={**NAMED, "reason": "with the scratches"}))
    newest = listed(api)[0]
    assert (newest["kind"], newest["reason"], newest["n_ng"]) == ("calibration", "with the scratches", 1)


def test_a_refit_is_a_version(api: Api) -> None:
    answer_of(api.fit(png(0, 1, 2)))
    before = api.roi_folder()
    with running_app(api.models, loader=ready(FakeExtractor())) as other:
        notes = [each["note"] for each in listed(other)]
        answer_of(other.client.post("/refit", json=NAMED))
        newest, first = listed(other)
        assert (newest["kind"], newest["in_force"], first["in_force"]) == ("refit", True, False)
        assert "extractor" in first["note"]
        assert notes == [None]
        error = error_of(
            other.client.post("/versions/activate", json={**NAMED, "version": 1}), 409, "extractor_mismatch"
        )
        assert "filter-bank" in error["error"]
        assert listed(other)[0] == newest
    answers = activate(api, 1)
    assert answers["changed"]
    assert before.exists()


def test_an_image_can_be_tried_by_a_version_that_is_not_in_force(api: Api) -> None:
    answer_of(api.fit(png(0, 1, 2)))
    answer_of(api.calibrate())
    before = answer_of(api.infer(BAD))
    answer_of(api.fit(png(3, 4)))
    answer_of(api.calibrate(threshold=1.9, score_mode="max"))
    now = answer_of(api.infer(BAD))
    tried = answer_of(api.infer(BAD, trial="true", version="2"))
    for name in ("score", "threshold", "decision", "regions", "heatmap_png_base64"):
        assert tried[name] == before[name], name
    assert (tried["score"], tried["threshold"]) != (now["score"], now["threshold"])
    assert tried["params"]["memory_checksum"] == before["params"]["memory_checksum"]
    assert answer_of(api.infer(BAD, trial="true", version="4"))["score"] == now["score"]
    assert "trial" in error_of(api.infer(BAD, version="2"), 422, "invalid_input")["error"]
    error_of(api.infer(BAD, trial="true", version="9"), 404, "not_found")
    for wrong in ("0", "-1", "1000000000", "1.5", "x"):
        error_of(api.infer(BAD, trial="true", version=wrong), 422, "invalid_input")
    assert [each["in_force"] for each in listed(api)] == [True, False, False, False]
