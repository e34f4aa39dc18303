"""Why was this part rejected in March: every decision can be looked up as it was given."""

from __future__ import annotations

import base64
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
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


def test_a_trial_is_named_as_one_and_its_image_is_kept_nowhere(fitted: Api) -> None:
    def counted() -> int:
        text = fitted.client.get("/metrics").text
        return sum(line.startswith("bdi_inspections_total{") for line in text.splitlines())

    bad = encoded(with_chequer(plate(9), (20, 20, 40, 40)))
    given = answer_of(fitted.infer(bad, trial="true"))
    assert given["decision"] == "ng"
    (kept,) = find(fitted)
    assert (kept["source"], kept["score"], kept["decision"]) == ("trial", given["score"], "ng")
    error_of(fitted.client.get(f"/audit/{kept['id']}/image"), 404, "not_found")
    assert counted() == 0, "no part of the line"
    answer_of(fitted.infer(bad, trial="false"))
    assert counted() == 1
    assert fitted.client.get(f"/audit/{find(fitted)[0]['id']}/image").content == bad
    assert error_of(fitted.infer(bad, trial="perhaps"), 422, "invalid_input")["details"]["field"] == "trial"
    decisions = answer_of(fitted.client.get("/decisions", params={"role_id": ROLE, "roi_id": ROI}))["decisions"]
    assert [each["audit_entry_id"] for each in decisions] == [find(fitted)[0]["id"]], "and no trend counts it"


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
    assert not list(tmp_path.rglob("audit.sqlite3*"))


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


# --- what identifies the part, and its image --------------------------------------------------------------------------


def test_a_part_is_found_by_what_the_client_calls_it(fitted: Api) -> None:
    for serial in ("SN-1", "Gehäuse 7/ß", "SN-1"):
        assert answer_of(fitted.infer(plates([9])[0], serial=serial))["warnings"] == []
    answer_of(fitted.infer(plates([9])[0]))
    assert [entry["serial"] for entry in find(fitted)] == [None, "SN-1", "Gehäuse 7/ß", "SN-1"]
    assert [entry["serial"] for entry in find(fitted, serial="Gehäuse 7/ß")] == ["Gehäuse 7/ß"]
    assert len(find(fitted, serial="SN-1")) == 2
    assert find(fitted, serial="SN") == []


@pytest.mark.parametrize("serial", ["two\nlines", "a\tb", "\x00", "x" * 201, "\x7f"])
def test_a_serial_is_one_line_of_text(fitted: Api, serial: str) -> None:
    assert "serial" in error_of(fitted.infer(plates([9])[0], serial=serial), 422, "invalid_input")["error"]
    assert find(fitted) == []


def test_a_serial_that_is_kept_nowhere_is_named(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(plates(range(3))))
        (warning,) = answer_of(api.infer(plates([9])[0], serial="SN-1"))["warnings"]
    assert warning.startswith("serial has no effect")


def picture(api: Api, entry: int, view: str) -> httpx.Response:
    """Ask for a picture that is written behind the answer."""
    for _ in range(500):
        found = api.client.get(f"/audit/{entry}/{view}")
        if found.status_code != 404:
            break
        time.sleep(0.01)
    return found


def test_the_image_of_a_decision_is_kept_with_its_map_and_regions(fitted: Api) -> None:
    bad = encoded(with_chequer(plate(9), (20, 20, 40, 40)), "JPEG", quality=92)
    given = answer_of(fitted.infer(bad, heatmap="base64", serial="SN-1"))
    overlay = answer_of(fitted.infer(bad, heatmap="overlay"))["heatmap_png_base64"]
    (entry,) = (row["id"] for row in find(fitted, serial="SN-1"))
    image = picture(fitted, entry, "image")
    assert (image.content, image.headers["Content-Type"]) == (bad, "image/jpeg")
    assert picture(fitted, entry, "heatmap").content == base64.b64decode(given["heatmap_png_base64"])
    assert picture(fitted, entry, "overlay").content == base64.b64decode(overlay)
    kept = answer_of(fitted.client.get(f"/audit/{entry}/regions"))
    assert kept["regions"] == given["regions"]
    assert (kept["id"], kept["heatmap_scale"]) == (entry, given["params"]["heatmap_scale"])


@pytest.mark.parametrize("view", ["image", "heatmap", "overlay", "regions"])
def test_what_is_not_kept_is_404(fitted: Api, view: str) -> None:
    error_of(fitted.client.get(f"/audit/4711/{view}"), 404, "not_found")
    body = {"role_id": ROLE, "roi_id": ROI, "default_mm_per_px": None}
    answer_of(fitted.client.post("/infer_dataset", json=body))
    error = error_of(fitted.client.get(f"/audit/{find(fitted)[0]['id']}/{view}"), 404, "not_found")["error"]
    assert "BDI_AUDIT_IMAGES_MB" in error


@pytest.mark.parametrize("path", ["/audit/0/image", "/audit/x/image", "/audit/1/else", f"/audit/{2**63}/image"])
def test_an_address_of_no_image_is_refused(fitted: Api, path: str) -> None:
    error_of(fitted.client.get(path), 422, "invalid_input")


def test_no_images_are_kept_where_the_setting_says_so(tmp_path: Path) -> None:
    with running_app(tmp_path / "models", audit=True, audit_images_mb=0) as api:
        answer_of(api.fit(plates(range(3))))
        answer_of(api.infer(plates([9])[0]))
        assert len(find(api)) == 1
    assert not (tmp_path / "models" / ".audit-images").exists()


def test_images_lie_beside_the_rows_and_outlive_the_service(tmp_path: Path) -> None:
    settings = {"audit": True, "audit_file": tmp_path / "elsewhere" / "decisions.db"}
    with running_app(tmp_path / "models", **settings) as api:
        answer_of(api.fit(plates(range(3))))
        answer_of(api.infer(plates([9])[0]))
    with running_app(tmp_path / "models", audit_file=settings["audit_file"]) as api:
        assert picture(api, 1, "image").content == plates([9])[0]
    assert not (tmp_path / "models" / ".audit-images").exists()
