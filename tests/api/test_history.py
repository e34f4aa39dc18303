"""What is asked of the history over HTTP: decisions, trends, and the overview of a recipe."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.artifacts.model_key import ModelKey
from backend.history.database import PERIOD_S
from tests.testkit.app import Api, answer_of, error_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import PLATE_PX, encoded, plates
from tests.unit.history.records import recorded

KEY = ModelKey(role_id=ROLE, roi_id=ROI)
OF_ROI = {"role_id": ROLE, "roi_id": ROI}
LEARNED, UNSEEN = plates(range(6)), plates(range(20, 24))


def get(api: Api, path: str, **query: Any) -> dict[str, Any]:
    return answer_of(api.client.get(path, params={**OF_ROI, **query}))


def history_of(api: Api) -> Any:
    return api.client.app.state.history  # type: ignore[attr-defined]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path / "models") as started:
        answer_of(started.fit(LEARNED))
        answer_of(started.calibrate())
        yield started


@pytest.fixture(scope="module")
def unfitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_app(tmp_path_factory.mktemp("history") / "models") as started:
        yield started


# --- decisions --------------------------------------------------------------------------------------------------------


def test_a_decision_is_listed_as_it_was_answered(api: Api) -> None:
    answers = [answer_of(api.infer(image, serial=f"SN-{n}")) for n, image in enumerate(UNSEEN)]
    listed = get(api, "/decisions")["decisions"]
    assert [each["serial"] for each in listed] == ["SN-3", "SN-2", "SN-1", "SN-0"]
    for found, answer in zip(listed, reversed(answers), strict=True):
        for name in ("score", "threshold", "decision", "reject_reason"):
            assert found[name] == answer[name]
        assert found["ratio"] == answer["score"] / answer["threshold"]
        assert found["score_mode"] == answer["params"]["score_mode"]
        assert found["memory_checksum"] == answer["params"]["memory_checksum"]
        assert found["image_check"]["verdict"] == answer["image_check"]["verdict"]
        assert abs(found["image_check"]["distance"]) == answer["image_check"]["distance"]
        assert found["n_regions"] == len(answer["regions"])
        assert (found["filename"], found["learned"], found["audit_entry_id"]) == ("part.png", False, None)


def test_the_worst_region_is_the_one_with_the_highest_peak(api: Api) -> None:
    answer_of(api.calibrate(threshold=0.01))
    answer = answer_of(api.infer(UNSEEN[0]))
    worst = max(answer["regions"], key=lambda region: region["peak"])
    (found,) = get(api, "/decisions")["decisions"]
    assert found["worst_region"] == {"bbox": worst["bbox"], "area_mm2": worst["area_mm2"], "max": worst["peak"]}


def test_decisions_come_page_by_page_and_by_what_is_asked_for(api: Api) -> None:
    for image in UNSEEN:
        answer_of(api.infer(image))
    first = get(api, "/decisions", limit=3)
    rest = get(api, "/decisions", limit=3, before_id=first["next_before_id"])
    assert [len(page["decisions"]) for page in (first, rest)] == [3, 1]
    assert rest["next_before_id"] is None
    assert not {each["id"] for each in first["decisions"]} & {each["id"] for each in rest["decisions"]}
    moment = first["decisions"][1]["at"]
    assert len(get(api, "/decisions", **{"from": moment})["decisions"]) == 2
    assert len(get(api, "/decisions", to=moment)["decisions"]) == 2
    decisions = {each["decision"] for each in first["decisions"] + rest["decisions"]}
    assert len(get(api, "/decisions", decision="ng")["decisions"]) == (4 if decisions == {"ng"} else 0)


def test_a_decision_names_the_audit_entry_of_its_image(tmp_path: Path) -> None:
    with running_app(tmp_path / "models", audit=True) as api:
        answer_of(api.fit(LEARNED))
        answer_of(api.infer(UNSEEN[0]))
        (found,) = get(api, "/decisions")["decisions"]
        assert api.client.get(f"/audit/{found['audit_entry_id']}/image").content == UNSEEN[0]


def test_models_roles_and_recipes_have_decisions_of_their_own(api: Api) -> None:
    answer_of(api.client.post("/recipes/copy", json={"source": "default", "target": "night"}), 201)
    answer_of(api.infer(UNSEEN[0]))
    answer_of(api.infer(UNSEEN[1], headers={"X-Recipe-Id": "night"}))
    answer_of(api.infer(UNSEEN[2], recipe_id="night"))
    assert len(get(api, "/decisions")["decisions"]) == 1
    assert len(get(api, "/decisions", recipe_id="NIGHT")["decisions"]) == 2
    by_header = answer_of(api.client.get("/decisions", params=OF_ROI, headers={"X-Recipe-Id": "night"}))
    assert len(by_header["decisions"]) == 2
    assert get(api, "/decisions", model_key="other")["decisions"] == []
    assert len(answer_of(api.client.get("/overview?recipe_id=night"))["rois"][0]["last"]) == 2


# --- what counts ------------------------------------------------------------------------------------------------------


def test_learned_images_are_listed_and_count_nowhere(api: Api) -> None:
    answer_of(api.infer(LEARNED[0]))
    assert [each["learned"] for each in get(api, "/decisions")["decisions"]] == [True]
    assert get(api, "/stats")["buckets"] == []
    (roi,) = answer_of(api.client.get("/overview"))["rois"]
    assert (roi["last"], roi["n_decisions_24h"], roi["ng_rate_24h"]) == ([], 0, None)


def test_a_trend_has_the_counts_and_quantiles_of_what_was_answered(api: Api) -> None:
    answers = [answer_of(api.infer(image)) for image in UNSEEN]
    (bucket,) = get(api, "/stats")["buckets"]
    assert (bucket["n"], bucket["n_not_an_image_of_the_part"]) == (4, 0)
    assert bucket["n_ng"] == sum(each["decision"] == "ng" for each in answers)
    scores = sorted(each["score"] for each in answers)
    assert bucket["score"]["median"] == pytest.approx(scores[1], rel=0.005)
    assert bucket["score"]["p95"] == pytest.approx(scores[3], rel=0.005)
    assert bucket["ratio"]["median"] == pytest.approx(scores[1] / answers[0]["threshold"], rel=0.005)
    levels = sorted(each["image_check"]["statistics"]["level"]["value"] for each in answers)
    assert bucket["image_statistics"]["level"] == pytest.approx(levels[1], rel=0.02)
    assert bucket["image_statistics"].keys() == answers[0]["image_check"]["statistics"].keys()


def test_an_image_of_something_else_counts_as_ng_and_not_among_the_scores(api: Api) -> None:
    answer = answer_of(api.infer(encoded(np.zeros((PLATE_PX, PLATE_PX, 3), np.uint8))))
    assert answer["reject_reason"] == "image"
    (bucket,) = get(api, "/stats")["buckets"]
    assert (bucket["n"], bucket["n_ng"], bucket["n_not_an_image_of_the_part"]) == (1, 1, 1)
    assert bucket["score"] == bucket["ratio"] == {"median": None, "p95": None}
    assert bucket["image_statistics"]["level"] == 0


def test_without_a_calibration_there_are_scores_and_no_ratios(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(LEARNED))
        answer_of(api.infer(UNSEEN[0]))
        (bucket,) = get(api, "/stats")["buckets"]
        assert bucket["score"]["median"] > 0
        assert bucket["ratio"]["median"] is None
        (found,) = get(api, "/decisions")["decisions"]
        assert (found["decision"], found["threshold"], found["ratio"]) == (None, None, None)


# --- marks ------------------------------------------------------------------------------------------------------------


def test_fits_and_calibrations_are_marks_where_something_has_changed(api: Api) -> None:
    answer_of(api.fit(LEARNED))  # nothing new
    answer_of(api.calibrate(dry_run=True))
    answer_of(api.fit(UNSEEN[:1]))
    answer_of(api.calibrate(threshold=0.5))
    answer_of(api.client.post("/calibrate_dataset", json={**OF_ROI, "default_mm_per_px": None}))
    answer_of(api.client.post("/refit", json={**OF_ROI, "force": True}))
    marks = get(api, "/stats")["marks"]
    assert [mark["kind"] for mark in marks] == ["fit", "calibration", "fit", "calibration", "calibration"]
    assert marks[3]["facts"]["threshold"] == 0.5
    assert [mark["facts"]["n_ok"] for mark in marks[:3]] == [6, 6, 7]
    assert marks[0]["memory_checksum"] != marks[2]["memory_checksum"]


def test_an_activation_is_a_mark(api: Api) -> None:
    history_of(api).mark(KEY, "activation", "f" * 64, version=3, reason="the lamp was changed")
    mark = get(api, "/stats")["marks"][-1]
    assert (mark["kind"], mark["facts"]) == ("activation", {"version": 3, "reason": "the lamp was changed"})


# --- time -------------------------------------------------------------------------------------------------------------


def add(api: Api, moments: list[datetime], ratio: float = 0.7) -> None:
    for moment in moments:
        history_of(api)._take(recorded(KEY, moment.timestamp(), ratio))
    history_of(api).flush(10)


@pytest.mark.parametrize(
    ("bucket", "shifts", "expected"),
    [
        # 29 March 2026: at 02:00 it is 03:00 in Madrid. 25 October: at 03:00 it is 02:00 again.
        ("day", None, ["2026-03-28T00:00:00+01:00", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"]),
        (
            "shift",
            "06:00,14:00,22:00",
            ["2026-03-28T22:00:00+01:00", "2026-03-29T06:00:00+02:00", "2026-03-29T22:00:00+02:00"],
        ),
    ],
)
def test_days_and_shifts_are_those_of_the_time_zone(
    unfitted: Api, bucket: str, shifts: str | None, expected: list[str]
) -> None:
    if not get(unfitted, "/stats", **{"from": "2026-03-01T00:00:00Z"})["buckets"]:
        add(
            unfitted,
            [
                datetime(2026, 3, 28, 22, 45, tzinfo=UTC),  # 23:45 of the 28th in Madrid
                datetime(2026, 3, 28, 23, 15, tzinfo=UTC),  # 00:15 of the 29th
                datetime(2026, 3, 29, 4, 15, tzinfo=UTC),  # 06:15, after the change
                datetime(2026, 3, 29, 21, 50, tzinfo=UTC),  # 23:50
                datetime(2026, 3, 29, 22, 5, tzinfo=UTC),  # 00:05 of the 30th
            ],
        )
    query = {"from": "2026-03-28T00:00:00Z", "to": "2026-03-31T00:00:00Z", "bucket": bucket, "tz": "Europe/Madrid"}
    found = get(unfitted, "/stats", **query, **({} if shifts is None else {"shifts": shifts}))
    assert [each["start"] for each in found["buckets"]] == expected
    assert sum(each["n"] for each in found["buckets"]) == 5


def test_an_hour_that_comes_twice_is_two(unfitted: Api) -> None:
    add(unfitted, [datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in (0, 1)])
    query = {"from": "2026-10-25T00:00:00Z", "to": "2026-10-26T00:00:00Z", "bucket": "hour", "tz": "Europe/Madrid"}
    found = get(unfitted, "/stats", **query)["buckets"]
    assert [each["start"] for each in found] == ["2026-10-25T02:00:00+02:00", "2026-10-25T02:00:00+01:00"]


@pytest.mark.parametrize("tz", ["Europe/Madird", "Europe", "../etc/passwd", "/etc/localtime", "\x00", "é", "a" * 64])
def test_a_time_zone_that_there_is_not_is_refused(unfitted: Api, tz: str) -> None:
    response = unfitted.client.get("/stats", params={**OF_ROI, "tz": tz})
    assert error_of(response, 422, "invalid_input")["details"]["field"] == "tz"


@pytest.mark.parametrize(
    "shifts", ["", "6", "06:00,", "24:00", "06:60", "06:10", "14:00,06:00", "06:00,06:00", "０6:00", "-1:00", "6:0"]
)
def test_shifts_that_are_none_are_refused(unfitted: Api, shifts: str) -> None:
    response = unfitted.client.get("/stats", params={**OF_ROI, "bucket": "shift", "shifts": shifts})
    assert error_of(response, 422, "invalid_input")["details"]["field"] == "shifts"


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_the_first_and_the_last_moment_are_answered(unfitted: Api, moment: str) -> None:
    for name in ("from", "to"):
        for path in ("/stats", "/decisions"):
            get(unfitted, path, **{name: moment})


def test_shifts_without_effect_are_named(unfitted: Api) -> None:
    assert "shifts has no effect" in get(unfitted, "/stats", shifts="06:00")["warnings"][0]


# --- overview and drift -----------------------------------------------------------------------------------------------


def test_the_overview_says_what_each_roi_has_and_did(api: Api) -> None:
    answers = [answer_of(api.infer(image)) for image in UNSEEN]
    answer_of(api.fit(LEARNED, roi_id="second"))
    first, second = answer_of(api.client.get("/overview"))["rois"]
    assert (first["roi_id"], first["fitted"], first["calibrated"], first["n_ok"]) == (ROI, True, True, 6)
    assert (second["roi_id"], second["calibrated"], second["threshold"]) == ("second", False, None)
    assert [each["score"] for each in first["last"]] == [each["score"] for each in answers]
    assert first["threshold"] == answers[0]["threshold"]
    assert first["extractor"] == "filter-bank"
    assert first["n_decisions_24h"] == 4
    assert first["ng_rate_24h"] == sum(each["decision"] == "ng" for each in answers) / 4
    assert datetime.fromisoformat(first["fitted_at"]) <= datetime.now(UTC)
    assert first["drift"]["state"] == "too_few"


def test_a_damaged_roi_says_so_in_its_own_line_of_the_overview(api: Api) -> None:
    answer_of(api.fit(LEARNED, roi_id="second"))
    (api.roi_folder("second") / "memory.npz").write_bytes(b"no memory")
    first, second = answer_of(api.client.get("/overview"))["rois"]
    assert (first["fault"], second["fitted"]) == (None, False)
    assert "/fit_ok" in second["fault"]


def test_a_move_of_the_scores_is_found_with_its_time_and_a_calibration_ends_it(api: Api) -> None:
    rng = np.random.default_rng(0)
    history, now = history_of(api), datetime.now(UTC)
    history.flush(10)
    for path in api.models.glob("history.sqlite3*"):
        path.unlink()  # marks of now would hide what comes
    first = now - timedelta(days=10)
    moved = first + timedelta(days=6)
    for n in range(10 * 24 * 4):
        moment = first + n * timedelta(seconds=PERIOD_S)
        level = 0.7 if moment < moved else 0.8
        for _ in range(5):
            history._take(recorded(KEY, moment.timestamp(), float(level + 0.05 * rng.standard_normal())))
    history.flush(30)
    drift = get(api, "/stats")["drift"]
    assert drift["state"] == "moved"
    assert abs(datetime.fromisoformat(drift["since"]) - moved) < timedelta(hours=6)
    assert drift["before_median"] == pytest.approx(0.7, abs=0.02)
    assert drift["after_median"] == pytest.approx(0.8, abs=0.02)
    assert drift["p_value"] < 0.001
    assert answer_of(api.client.get("/overview"))["rois"][0]["drift"] == drift
    answer_of(api.calibrate())
    assert get(api, "/stats")["drift"]["state"] == "too_few"


# --- whatever becomes of the file -------------------------------------------------------------------------------------


def test_nothing_is_kept_where_the_history_is_off(tmp_path: Path) -> None:
    with running_app(tmp_path / "models", history=0) as api:
        answer_of(api.fit(LEARNED))
        answer_of(api.infer(UNSEEN[0]))
        for found in (get(api, "/decisions"), get(api, "/stats"), answer_of(api.client.get("/overview"))):
            assert "BDI_HISTORY" in found["warnings"][0]
        assert not (tmp_path / "models" / "history.sqlite3").exists()


def test_the_last_decisions_are_there_after_a_restart(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(LEARNED))
        score = answer_of(api.infer(UNSEEN[0]))["score"]
    with running_app(tmp_path / "models") as api:
        assert [each["score"] for each in get(api, "/decisions")["decisions"]] == [score]
        assert get(api, "/stats")["buckets"][0]["n"] == 1


@pytest.mark.parametrize("damage", ["no database", "gone", "other tables", "newer", "middle"])
def test_a_damaged_history_is_begun_anew_and_no_inspection_fails(api: Api, damage: str) -> None:
    for _ in range(3):
        for image in UNSEEN:
            answer_of(api.infer(image))
    assert len(get(api, "/decisions")["decisions"]) == 12
    path = api.models / "history.sqlite3"
    if damage == "gone":
        for each in api.models.glob("history.sqlite3*"):
            each.unlink()
    elif damage == "no database":
        path.write_bytes(b"no database" * 1000)
    elif damage == "other tables":
        for each in api.models.glob("history.sqlite3*"):
            each.unlink()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE models (x)")
        other.close()
    elif damage == "newer":
        with sqlite3.connect(path) as newer:
            newer.execute("PRAGMA user_version = 99")
        newer.close()
    else:
        with sqlite3.connect(path) as whole:
            whole.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        whole.close()
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xa5" * (len(data) - 4096)
        path.write_bytes(data)
    answer_of(api.infer(UNSEEN[0]))
    answer_of(api.client.get("/overview"))
    api.client.get("/decisions", params=OF_ROI)
    answer_of(api.infer(UNSEEN[1]))
    assert 1 <= len(get(api, "/decisions")["decisions"]) <= 14  # what is in the log beside the file may outlive it
    assert answer_of(api.client.get("/health"))["status"] == "ok"


def test_a_history_that_cannot_be_written_is_named_and_no_inspection_fails(tmp_path: Path) -> None:
    (tmp_path / "models" / "history.sqlite3").mkdir(parents=True)
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(LEARNED))
        answer_of(api.calibrate())
        answer = answer_of(api.infer(UNSEEN[0]))
        history_of(api).flush(10)
        health = answer_of(api.client.get("/health"))
        assert (health["status"], health["history_dropped"]) == ("degraded", 3)
        assert "history" in health["reason"]
        assert "bdi_history_dropped 3.0" in api.client.get("/metrics").text
        assert answer_of(api.client.get("/overview"))["rois"][0]["last"] == []
        (tmp_path / "models" / "history.sqlite3").rmdir()
        answer_of(api.infer(UNSEEN[1]))
        assert len(get(api, "/decisions")["decisions"]) == 1
        assert answer_of(api.client.get("/health"))["status"] == "ok"
        assert answer["decision"] in ("ok", "ng")
