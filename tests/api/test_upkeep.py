"""Looking after what is stored, over HTTP: how much it is, whether it is sound, jobs, and ROIs as archives."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.testkit.app import Api, answer_of, error_of, files_below, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, good_image

MODEL = {"role_id": ROLE, "roi_id": ROI}
GOOD = [encoded(good_image(seed, image_hw=(64, 64))) for seed in range(4)]
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path / "models") as started:
        answer_of(started.fit(GOOD))
        answer_of(started.calibrate())
        yield started


def ended(api: Api, started: dict[str, Any]) -> dict[str, Any]:
    deadline_s = time.monotonic() + 60
    while True:
        job = answer_of(api.client.get(started["status_url"]))
        if job["state"] not in ("queued", "running"):
            return job
        assert time.monotonic() < deadline_s, job
        time.sleep(0.01)


def archive_of(api: Api, **query: str) -> bytes:
    answer = api.client.get("/backup", params={**MODEL, **query})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/zip"
    return answer.content


def restore(api: Api, data: bytes, **fields: str) -> httpx.Response:
    return api.client.post("/restore", data=fields, files={"archive": ("roi.zip", data, "application/zip")})


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_without_their_results(api: Api) -> None:
    assert answer_of(api.client.get("/jobs"))["jobs"] == []
    first = ended(api, answer_of(api.client.post("/refit", json=MODEL, headers=ASYNC), 202))
    second = ended(api, answer_of(api.client.post("/refit", json={**MODEL, "roi_id": "x"}, headers=ASYNC), 202))
    listed = answer_of(api.client.get("/jobs"))["jobs"]
    assert [job["job_id"] for job in listed] == [second["job_id"], first["job_id"]]
    assert [job["state"] for job in listed] == ["failed", "done"]
    assert listed[0]["error"]["code"] == "memory_not_found"
    assert "result" not in listed[1]
    assert listed[1]["created_at"] <= listed[1]["finished_at"]
    assert len(answer_of(api.client.get("/jobs", params={"limit": 1}))["jobs"]) == 1


@pytest.mark.parametrize("limit", [0, 201, "x", -1])
def test_a_limit_out_of_range_is_refused(api: Api, limit: object) -> None:
    error_of(api.client.get("/jobs", params={"limit": str(limit)}), 422, "invalid_input")


def test_jobs_of_an_earlier_process_are_listed_too(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        done = ended(api, answer_of(api.client.post("/verify", headers=ASYNC), 202))
    with running_app(tmp_path / "models") as api:
        assert [job["job_id"] for job in answer_of(api.client.get("/jobs"))["jobs"]] == [done["job_id"]]


# --- storage and verify -----------------------------------------------------------------------------------------------


def test_storage_tells_what_is_used_and_free(api: Api) -> None:
    told = answer_of(api.client.get("/storage"))
    assert 0 < told["used_gb"] < told["disk_gb"]
    assert 0 < told["free_gb"] < told["disk_gb"]
    assert told["max_gb"] is None


def test_storage_tells_the_limit_also_before_anything_is_stored(tmp_path: Path) -> None:
    with running_app(tmp_path / "not" / "there", max_disk_gb=1.5) as api:
        told = answer_of(api.client.get("/storage"))
        assert (told["used_gb"], told["max_gb"]) == (0, 1.5)


def test_verify_finds_nothing_in_what_is_sound(api: Api) -> None:
    told = answer_of(api.client.post("/verify"))
    assert told["problems"] == []
    assert told["n_files"] > len(GOOD)


def test_verify_names_what_is_damaged_now_and_as_a_job(api: Api) -> None:
    path = api.roi_folder() / "calib.json"
    path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)
    (problem,) = answer_of(api.client.post("/verify"))["problems"]
    assert (problem["path"], problem["fault"]) == (f"{ROLE}/{ROI}/calib.json", "damaged")
    assert "calibrate" in problem["message"]
    job = ended(api, answer_of(api.client.post("/verify", headers=ASYNC), 202))
    assert [each["path"] for each in job["result"]["problems"]] == [problem["path"]]


# --- archives ---------------------------------------------------------------------------------------------------------


def test_a_roi_goes_to_another_service_as_an_archive(api: Api, tmp_path: Path) -> None:
    data = archive_of(api)
    before = answer_of(api.infer(encoded(good_image(9, image_hw=(64, 64)))))
    with running_app(tmp_path / "other") as other:
        (roi,) = answer_of(restore(other, data))["rois"]
        assert roi == {"recipe_id": "default", **MODEL, "to_do": []}
        after = answer_of(other.infer(encoded(good_image(9, image_hw=(64, 64)))))
        assert (after["score"], after["threshold"]) == (before["score"], before["threshold"])
        assert not [*other.models.glob(".tmp-*")]
    assert not [*api.models.glob(".tmp-*")], "nothing is left of the archive"


def test_only_the_roi_that_is_named_is_in_its_archive(api: Api) -> None:
    answer_of(api.fit(GOOD[:2], roi_id="other"))
    answer_of(api.fit(GOOD[:2], recipe_id="summer"))
    for query in ({}, {"roi_id": "other"}, {"recipe_id": "summer"}):
        with zipfile.ZipFile(io.BytesIO(archive_of(api, **query))) as archive:
            (roi,) = json.loads(archive.read("manifest.json"))["rois"]
        assert roi == {"recipe_id": "default", **MODEL, **query}


def test_the_name_of_an_archive_says_what_it_is_of_whatever_the_ids_are(api: Api) -> None:
    answer_of(api.fit(GOOD[:2], roi_id="Außen-ñ"))
    answer = api.client.get("/backup", params={**MODEL, "roi_id": "Außen-ñ"})
    assert answer.status_code == 200
    assert "filename*=utf-8''default-Inspection-Au%C3%9Fen-%C3%B1-" in answer.headers["Content-Disposition"]


def test_a_roi_that_is_there_is_replaced_only_where_that_is_said(api: Api) -> None:
    data = archive_of(api)
    answer_of(api.fit([encoded(good_image(50, image_hw=(64, 64)))]))
    assert answer_of(api.client.get("/manifest", params=MODEL))["fit"]["n_ok_total"] == 5
    refused = error_of(restore(api, data), 400, "archive_refused")
    assert "replace=true" in refused["error"]
    assert "--" not in refused["error"]
    assert answer_of(api.client.get("/manifest", params=MODEL))["fit"]["n_ok_total"] == 5
    answer_of(restore(api, data, replace="true"))
    assert answer_of(api.client.get("/manifest", params=MODEL))["fit"]["n_ok_total"] == 4


def test_a_roi_that_is_not_there_is_not_backed_up_and_no_folder_is_made(api: Api) -> None:
    before = files_below(api.models)
    error_of(api.client.get("/backup", params={**MODEL, "roi_id": "nowhere"}), 404, "not_found")
    error_of(api.client.get("/backup", params={**MODEL, "recipe_id": "nowhere"}), 404, "not_found")
    assert files_below(api.models) == before


def test_a_damaged_roi_is_not_backed_up_and_says_what_to_do(api: Api) -> None:
    path = api.roi_folder() / "calib.json"
    path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)
    refused = error_of(api.client.get("/backup", params=MODEL), 400, "archive_refused")
    assert "Verify" in refused["error"]
    assert not [*api.models.glob(".tmp-*")]


def changed(data: bytes, change: dict[str, bytes]) -> bytes:
    """Return an archive with other or more members."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        members = {name: old.read(name) for name in old.namelist()}
        for name, content in {**members, **change}.items():
            new.writestr(name, content)
    return out.getvalue()


def test_an_archive_that_is_not_sound_changes_nothing(api: Api, tmp_path: Path) -> None:
    data = archive_of(api)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        memory = next(name for name in archive.namelist() if name.endswith("memory.npz"))
    hostile = {
        "empty": b"",
        "no zip": b"PK\x03\x04 nothing",
        "half": data[: len(data) // 2],
        "a changed memory": changed(data, {memory: b"x" * 100}),
        "a way out": changed(data, {"rois/0/../../../escaped.txt": b"x"}),
        "an absolute name": changed(data, {"/tmp/escaped.txt": b"x"}),
        "one file more": changed(data, {"rois/0/more.npz": b"x"}),
        "another format": changed(data, {"manifest.json": b'{"format": 99, "rois": [], "files": {}}'}),
        "no manifest": changed(data, {"manifest.json": b"[]"}),
    }
    with running_app(tmp_path / "other") as other:
        for name, sent in hostile.items():
            refused = restore(other, sent)
            assert refused.status_code == 400, (name, refused.text)
            error_of(refused, 400, "archive_refused")
            assert str(tmp_path) not in refused.text, name
            left = [each for each in files_below(other.models) if not each.startswith(".")]
            assert left == [], name
        assert not (tmp_path / "escaped.txt").exists()


def test_a_form_without_an_archive_is_refused(api: Api) -> None:
    error_of(api.client.post("/restore", data={"replace": "true"}, files={"other": ("x", b"x")}), 422, "invalid_input")
    assert (
        "did you mean replace?" in answer_of(restore(api, archive_of(api), replace="true", replce="1"))["warnings"][0]
    )


def test_no_archive_passes_the_limit_of_the_models_folder(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        answer_of(api.fit(GOOD))
        data = archive_of(api)
    with running_app(tmp_path / "small", max_disk_gb=len(data) / 2e9) as small:
        error_of(restore(small, data), 503, "storage_full")
