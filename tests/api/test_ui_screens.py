"""The screens Overview, Learn and System over HTTP: what they show, and what they change."""

from __future__ import annotations

import html
import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.ui.client import PublicCalls
from tests.testkit.app import Api, answer_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import defective_image, encoded, good_image

ADMIN, INSPECT = "admin-0123456789abcdef", "inspect-0123456789abcdef"
MODEL = {"role_id": ROLE, "roi_id": ROI}
GOOD = [encoded(good_image(seed, image_hw=(64, 64))) for seed in range(6)]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path / "models", audit=True) as started:
        upload(started, "ok", GOOD)
        upload(started, "ng", [encoded(defective_image(9, image_hw=(64, 64)))])
        yield started


def upload(api: Api, label: str, images: list[bytes], **headers: str) -> list[str]:
    files = [("images", (f"{n}.png", data, "image/png")) for n, data in enumerate(images)]
    answer = api.client.post(f"/datasets/{label}/upload", data=MODEL, files=files, headers=headers)
    return [str(name) for name in answer_of(answer)["saved"]]


def token_of(api: Api) -> str:
    page = api.client.get("/ui/system")
    found = re.search(r'name="csrf_token" value="([0-9a-f]{64})"', page.text)
    assert found
    return found[1]


def act(api: Api, part: str, **form: str) -> httpx.Response:
    """Send what a button of the page sends."""
    headers = {"HX-Request": "true", "X-CSRF-Token": token_of(api)}
    return api.client.post(f"/ui/{part}", params=MODEL, data=form, headers=headers)


def job_ended(api: Api, fragment: httpx.Response) -> str:
    """Follow a job's fragment as htmx does, and return the last one."""
    assert fragment.status_code == 200, fragment.text
    deadline_s = time.monotonic() + 60
    while address := re.search(r'hx-get="(/ui/jobs/[^"]+)"', fragment.text):
        assert time.monotonic() < deadline_s
        fragment = api.client.get(html.unescape(address[1]), headers={"HX-Request": "true"})
    assert fragment.headers["HX-Trigger"] == "job-ended"
    return fragment.text


def names_in(text: str) -> list[str]:
    return re.findall(r'<img src="[^"]+" alt="([^"]+)"', text)


# --- learn ------------------------------------------------------------------------------------------------------------


def test_the_stored_images_are_learned_as_a_job_and_then_sorted_by_their_scores(api: Api) -> None:
    before = api.client.get("/ui/learn", params=MODEL).text
    assert len(names_in(before)) == 7
    assert "not learned yet: 6." in before
    assert "/scores/map" not in before
    text = job_ended(api, act(api, "learn/fit", mm_per_px="0,2"))
    assert 'data-state="done"' in text
    after = api.client.get("/ui/learn/body", params=MODEL, headers={"HX-Request": "true"}).text
    assert "<html" not in after
    assert "The stored good images are learned." in after
    scores = [float(each) for each in re.findall(r'<span class="number">([\d.]+)</span>', after)]
    assert len(scores) == 7
    assert scores[:6] == sorted(scores[:6], reverse=True)
    images = answer_of(api.client.get("/scores", params=MODEL))["images"]
    mode = answer_of(api.client.get("/scores", params=MODEL))["score_mode"]
    by_score = sorted((each for each in images if each["label"] == "ok"), key=lambda each: -each["scores"][mode])
    assert names_in(after)[:6] == [each["filename"] for each in by_score]


def test_every_picture_of_the_screen_is_there(api: Api) -> None:
    job_ended(api, act(api, "learn/fit", mm_per_px="0.2"))
    text = api.client.get("/ui/learn", params=MODEL).text
    addresses = re.findall(r'src="(/(?:datasets/preview|scores/map)[^"]+)"', text)
    assert len(addresses) == 14
    for address in addresses:
        assert api.client.get(html.unescape(address)).headers["Content-Type"] == "image/png"


def test_an_image_is_excluded_and_let_in_again(api: Api) -> None:
    job_ended(api, act(api, "learn/fit", mm_per_px="0.2"))
    name = names_in(api.client.get("/ui/learn", params=MODEL).text)[0]
    answer = act(api, "learn/exclude", filename=name, excluded="true")
    assert answer.headers["HX-Trigger"] == "images-changed"
    assert 'class="image excluded"' in answer.text
    state = api.client.get("/ui/learn/state", params=MODEL, headers={"HX-Request": "true"}).text
    assert "excluded or deleted: 1." in state
    assert answer_of(api.client.get("/datasets/list", params=MODEL))["classes"]["ok"]["excluded"] == [name]
    assert 'class="image"' in act(api, "learn/exclude", filename=name, excluded="false").text
    job_ended(api, act(api, "learn/fit", mm_per_px="0.2"))
    assert answer_of(api.client.get("/manifest", params=MODEL))["fit"]["n_ok_total"] == 6


def test_an_image_is_deleted_and_its_place_is_empty(api: Api) -> None:
    (name,) = answer_of(api.client.get("/datasets/list", params=MODEL))["classes"]["ng"]["files"]
    answer = act(api, "learn/delete", filename=name, label="ng")
    assert (answer.status_code, answer.text) == (200, "")
    assert answer_of(api.client.get("/datasets/list", params=MODEL))["classes"]["ng"]["count"] == 0


def test_what_the_service_refuses_is_said_above_what_is_there(api: Api) -> None:
    refused = act(api, "learn/fit", mm_per_px="a lot")
    assert refused.headers["HX-Retarget"] == "#notices"
    assert "mm_per_px" in refused.text
    for part, form in (("learn/delete", {"label": "bad", "filename": "x"}), ("learn/exclude", {"filename": "x"})):
        refused = act(api, part, **form)
        assert (refused.status_code, refused.headers["HX-Retarget"]) == (200, "#notices")
        assert 'class="notice error"' in refused.text


def test_a_running_job_is_cancelled_with_its_button(api: Api) -> None:
    started = act(api, "system/verify")
    job_id = re.search(r'id="job-([0-9a-f]{32})"', started.text)
    assert job_id
    assert act(api, f"jobs/{job_id[1]}/cancel").status_code == 200
    assert answer_of(api.client.get(f"/jobs/{job_id[1]}"))["state"] in ("queued", "running", "cancelled", "done")


def test_a_memory_of_an_older_version_says_so_and_is_learned_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    job_ended(api, act(api, "learn/fit", mm_per_px="0.2"))
    asked: list[str] = []
    get = PublicCalls.get

    async def outdated(self: PublicCalls, path: str, /, **query: Any) -> dict[str, Any]:
        from backend.ui.client import CallFailed

        asked.append(path)
        if path == "/manifest":
            raise CallFailed(409, {"error": "The memory is of an older version.", "code": "artefact_outdated"})
        return await get(self, path, **query)

    monkeypatch.setattr(PublicCalls, "get", outdated)
    text = api.client.get("/ui/learn", params=MODEL).text
    assert "The memory is of an older version." in text
    assert "/ui/learn/refit?" in text
    assert len(names_in(text)) == 7
    assert "/scores" not in asked
    assert 'data-state="done"' in job_ended(api, act(api, "learn/refit"))


def test_a_roi_that_is_not_there_yet_can_be_named(api: Api) -> None:
    text = api.client.get("/ui/learn/new").text
    assert 'name="roi_id"' in text
    empty = api.client.get("/ui/learn", params={"role_id": ROLE, "roi_id": "neu-1"}).text
    assert "Inspection / neu-1" in empty
    assert names_in(empty) == []


def test_hostile_names_are_shown_and_not_run(api: Api) -> None:
    files = [("images", ('<img src=x onerror=alert(1)>".png', GOOD[0], "image/png"))]
    answer_of(api.client.post("/datasets/ok/upload", data={**MODEL, "roi_id": "h"}, files=files))
    serial = "<script>alert(1)</script>"
    answer_of(api.fit(GOOD))
    answer_of(api.infer(GOOD[0], serial=serial))
    for path in ("/ui/learn", "/ui/system"):
        text = api.client.get(path, params={"role_id": ROLE, "roi_id": "h"}).text
        assert "<img src=x" not in text
        assert "<script>alert" not in text
    assert html.escape(serial) in api.client.get("/ui/system").text


# --- roles ------------------------------------------------------------------------------------------------------------


def test_whoever_may_only_inspect_sees_all_and_is_offered_no_change(tmp_path: Path) -> None:
    keys = f"admin:{ADMIN},inspect:{INSPECT}"
    with running_app(tmp_path / "models", api_keys=keys) as api:
        name = upload(api, "ok", GOOD, **{"X-API-Key": ADMIN})[0]
        answer_of(api.fit([], use_dataset="true", headers={"X-API-Key": ADMIN}))
        page = api.client.get("/ui/sign-in")
        token = re.search(r'value="([0-9a-f]{64})"', page.text)
        assert token
        api.client.post("/ui/sign-in", data={"key": INSPECT, "csrf_token": token[1]})
        for path in ("/ui/learn", "/ui/system"):
            text = api.client.get(path).text
            assert re.findall(r"hx-post=", text) == []
            assert "Inspection" in text
        refused = act(api, "learn/delete", filename=name, label="ok")
        assert "role admin" in refused.text
        assert len(answer_of(api.client.get("/datasets/list", params=MODEL))["classes"]["ok"]["files"]) == 6


# --- system -----------------------------------------------------------------------------------------------------------


def test_system_shows_health_storage_jobs_and_decisions(api: Api) -> None:
    answer_of(api.fit(GOOD))
    answer_of(api.infer(GOOD[1], serial="SN-17"))
    job_ended(api, act(api, "system/verify"))
    text = api.client.get("/ui/system").text
    assert "The service inspects" in text
    assert "SN-17" in text
    assert "Verifying" in text
    assert f"/backup?recipe_id=default&amp;role_id={ROLE}&amp;roi_id={ROI}" in text


def test_decisions_are_found_by_serial_and_time_and_turned_over(api: Api) -> None:
    answer_of(api.fit(GOOD))
    for n in range(52):
        answer_of(api.infer(GOOD[n % 6], serial=f"SN-{n}", heatmap="none"))

    def found(**query: str) -> str:
        answer = api.client.get("/ui/system/audit", params=query, headers={"HX-Request": "true"})
        assert answer.status_code == 200
        return answer.text

    assert found(serial="SN-7").count("<td>SN-") == 1
    assert found(to="2020-01-01T00:00").count("<td>SN-") == 0
    assert found(of=f"{ROLE}/{ROI}").count("<td>SN-") == 50
    assert found(of=f"{ROLE}/other").count("<td>SN-") == 0
    older = re.search(r'hx-get="([^"]+before_id=[^"]+)"', found())
    assert older
    assert found_at(api, html.unescape(older[1])).count("<td>SN-") == 2
    for wrong in ({"from": "yesterday"}, {"decision": "maybe"}, {"before_id": "x"}, {"to": "0001-01-01T00:00"}):
        assert "<td>SN-" not in found(**wrong)


def found_at(api: Api, address: str) -> str:
    return api.client.get(address, headers={"HX-Request": "true"}).text


def test_without_an_audit_the_screen_says_how_to_have_one(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        assert "BDI_AUDIT=1" in api.client.get("/ui/system").text


def test_a_damaged_file_is_named_after_verifying(api: Api) -> None:
    answer_of(api.fit(GOOD))
    answer_of(api.calibrate())
    path = api.roi_folder() / "calib.json"
    path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)
    text = job_ended(api, act(api, "system/verify"))
    assert f"{ROLE}/{ROI}/calib.json" in text
    assert "damaged" in text
    assert "has no effect" not in text


# --- overview ---------------------------------------------------------------------------------------------------------


def decision(kind: str | None, reason: str | None = None) -> dict[str, Any]:
    return {"at": "2026-03-14T09:26:53Z", "decision": kind, "score": 0.4, "reject_reason": reason}


ROI_FACTS: dict[str, Any] = {
    **MODEL,
    "model_key": ROI,
    "fitted": True,
    "calibrated": True,
    "calibration_stale": False,
    "extractor": "filter-bank",
    "n_ok": 30,
    "n_ng": 2,
    "fitted_at": "2026-03-14T09:26:53Z",
    "calibrated_at": None,
    "threshold": 0.5,
    "last": [*[decision("ok")] * 60, decision("ng", "defect"), decision("ng", "image"), decision(None)],
    "n_decisions_24h": 1200,
    "ng_rate_24h": 0.0125,
    "drift": {"state": "none", "since": None},
}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, ["inspecting", "1.2\u202f%", "1,200", "0.500", "where they were", "30 good, 2 bad"]),
        ({"calibrated": False, "threshold": None}, ["no threshold yet"]),
        ({"calibrated": False, "calibration_stale": True}, ["calibrate again"]),
        ({"fitted": False, "calibrated": False, "extractor": None, "fitted_at": None}, ["not learned yet"]),
        ({"drift": {"state": "moved", "since": "2026-03-14T09:26:53Z"}}, ["have moved since 14 Mar 2026"]),
        ({"drift": {"state": "too_few", "since": None}, "last": []}, ["too few decisions", "No decisions yet"]),
        ({"fault": "The stored calibration is damaged."}, ["The stored calibration is damaged."]),
        ({"n_ng": None, "ng_rate_24h": None, "n_decisions_24h": 0}, ["30 good, 0 bad", "<dd>–</dd>"]),
    ],
)
def test_a_card_says_how_a_roi_is(
    api: Api, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], shown: list[str]
) -> None:
    get = PublicCalls.get

    async def with_overview(self: PublicCalls, path: str, /, **query: Any) -> dict[str, Any]:
        if path == "/overview":
            return json.loads(json.dumps({"recipe_id": "default", "rois": [ROI_FACTS | changes]}))  # type: ignore[no-any-return]
        return await get(self, path, **query)

    monkeypatch.setattr(PublicCalls, "get", with_overview)
    text = html.unescape(api.client.get("/ui").text)
    for each in shown:
        assert each in text
    if ROI_FACTS | changes == ROI_FACTS:
        assert "The last 50 decisions, oldest first: 2 NG, 1 of them because of the image" in text
        strip = dict(re.findall(r'<path class="(\w+)" d="([^"]+)"/>', text))
        assert {kind: bars.count("M") for kind, bars in strip.items()} == {"ok": 47, "ng": 1, "image": 1, "none": 1}
    assert "<html" not in api.client.get("/ui/overview/cards", headers={"HX-Request": "true"}).text


# --- the log ----------------------------------------------------------------------------------------------------------


def test_the_log_names_the_routes_of_the_page_and_not_what_was_asked(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "backend"):
        api.client.get("/ui/system/audit", params={"serial": "SN-secret"}, headers={"HX-Request": "true"})
    routes = {getattr(record, "route", None) for record in caplog.records}
    assert {"/ui/system/audit", "/audit"} <= routes
    assert not [
        record for record in caplog.records if record.name.startswith("backend") and "SN-secret" in str(vars(record))
    ]
