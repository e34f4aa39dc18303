"""Why was this part rejected in March: every decision can be looked up as it was given."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backend.errors import AuditUnavailable
from tests.testkit.app import MM_PER_PX, Api, answer_of, error_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, plate, plates
from tests.testkit.fakes import with_defect as with_chequer


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path / "models", audit=True) as started:
        yield started


@pytest.fixture
def fitted(api: Api) -> Api:
    answer_of(api.fit(plates(range(4))))
    answer_of(api.calibrate())
    return api


def find(api: Api, **query: object) -> list[dict]:
    return answer_of(api.client.get("/audit", params=query))["entries"]


def test_a_decision_is_kept_with_everything_that_it_followed_from(fitted: Api) -> None:
    bad = encoded(with_chequer(plate(9), (20, 20, 40, 40)))
    given = answer_of(fitted.infer(bad, headers={"X-Request-Id": "part-0815"}))
    assert given["decision"] == "ng"
    (kept,) = find(fitted, request_id="part-0815")
    for name in ("role_id", "roi_id", "model_key", "recipe_id", "score", "threshold", "decision"):
        assert kept[name] == given[name], name
    assert kept["memory_checksum"] == given["params"]["memory_checksum"]
    assert kept["image_digest"] == given["params"]["image_digest"]
    assert kept["extractor_id"] == given["params"]["extractor_id"]
    assert (kept["mm_per_px"], kept["image_name"], kept["source"]) == (MM_PER_PX, "part.png", "infer")
    assert kept["params"]["scores"] == given["params"]["scores"]
    assert kept["params"]["scoring"] == "new"
    assert kept["params"]["calibration"]["n_ok"] == 4
    assert kept["n_regions"] == len(given["regions"]) >= 1
    assert kept["area_mm2"] == pytest.approx(sum(region["area_mm2"] for region in given["regions"]))
    assert kept["time_utc"].endswith("Z")
    assert kept["caller"] is None


def test_a_score_without_a_decision_is_kept_as_well(api: Api) -> None:
    answer_of(api.fit(plates(range(4))))
    answer_of(api.infer(plates([9])[0]))
    (kept,) = find(api)
    assert (kept["threshold"], kept["decision"]) == (None, None)
    assert "calibration" not in kept["params"]


def test_each_image_of_an_inspected_data_set_is_kept(fitted: Api) -> None:
    body = {"role_id": ROLE, "roi_id": ROI, "default_mm_per_px": None}
    given = answer_of(fitted.client.post("/infer_dataset", json=body))
    kept = find(fitted)
    assert {(entry["image_name"], entry["score"]) for entry in kept} == {
        (item["filename"], item["score"]) for item in given["items"]
    }
    assert {(entry["source"], entry["request_id"]) for entry in kept} == {("infer_dataset", given["request_id"])}
    assert {entry["params"]["scoring"] for entry in kept} == {"leave_one_out"}


def test_pages_follow_each_other_without_a_gap(fitted: Api) -> None:
    for n in range(5):
        answer_of(fitted.infer(plates([20 + n])[0], headers={"X-Request-Id": f"r{n}"}))
    seen, before = [], {}
    while True:
        page = answer_of(fitted.client.get("/audit", params={"limit": 2, **before}))
        seen += [entry["request_id"] for entry in page["entries"]]
        if page["next_before_id"] is None:
            break
        before = {"before_id": page["next_before_id"]}
    assert seen == ["r4", "r3", "r2", "r1", "r0"]


@pytest.mark.parametrize(
    ("query", "n_found"),
    [
        ({"from": "2020-01-01T00:00:00Z"}, 1),
        ({"to": "2020-01-01T00:00:00Z"}, 0),
        ({"from": "2020-01-01T00:00:00+02:00", "to": "2999-01-01T00:00:00+02:00", "role_id": ROLE, "roi_id": ROI}, 1),
        ({"roi_id": "another"}, 0),
        ({"recipe_id": "DEFAULT"}, 1),
        ({"recipe_id": "disc-b"}, 0),
        ({"decision": "ok"}, 1),
        ({"decision": "ng"}, 0),
    ],
)
def test_a_question_may_name_time_roi_recipe_and_decision(fitted: Api, query: dict[str, str], n_found: int) -> None:
    assert answer_of(fitted.infer(plates([1])[0]))["decision"] == "ok"
    assert len(find(fitted, **query)) == n_found


@pytest.mark.parametrize(
    "query", [{"from": "yesterday"}, {"from": "2026-03-01T00:00:00"}, {"limit": 0}, {"limit": 1001}, {"decision": "x"}]
)
def test_a_question_that_cannot_be_understood_is_refused(fitted: Api, query: dict[str, object]) -> None:
    error_of(fitted.client.get("/audit", params=query), 422, "invalid_input")


def test_without_the_setting_nothing_is_written_and_a_question_says_how_to_have_it(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(plates(range(3))))
        answer_of(api.infer(plates([9])[0]))
        assert "BDI_AUDIT=1" in error_of(api.client.get("/audit"), 404, "audit_off")["error"]
    assert not list(tmp_path.rglob("*.sqlite3*"))


def test_the_file_lies_where_the_setting_says_and_outlives_the_service(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "decisions.db"
    for keeps, expected in ((True, 1), (True, 2), (False, 2)):
        with running_app(tmp_path / "models", audit=keeps, audit_file=file) as api:
            answer_of(api.fit(plates(range(3))))
            answer_of(api.infer(plates([9])[0]))
            assert len(find(api)) == expected
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (2,)


def test_a_decision_that_cannot_be_kept_is_not_given(fitted: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise AuditUnavailable("The decision could not be written to the audit file, so it is not given.")

    monkeypatch.setattr("backend.services.audit.Audit.keep", full)
    refused = fitted.infer(plates([9])[0])
    error_of(refused, 503, "audit_unavailable")
    assert "score" not in refused.json()
    assert refused.headers["Retry-After"]


def test_the_role_of_the_key_is_kept(tmp_path: Path) -> None:
    keys = {"admin": "admin-0123456789abcdef", "inspect": "inspect-0123456789abcdef"}
    setting = ",".join(f"{role}:{secret}" for role, secret in keys.items())
    with running_app(tmp_path / "models", audit=True, api_keys=setting) as api:
        answer_of(api.fit(plates(range(3)), headers={"X-API-Key": keys["admin"]}))
        answer_of(api.infer(plates([9])[0], headers={"X-API-Key": keys["inspect"]}))
        answer = answer_of(api.client.get("/audit", headers={"X-API-Key": keys["inspect"]}))
    assert [entry["caller"] for entry in answer["entries"]] == ["inspect"]
