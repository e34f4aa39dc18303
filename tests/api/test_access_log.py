"""One line for each request: what stands in it, and what never does."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testkit.app import Api, answer_of, error_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import plates
from tests.testkit.server import running_server

ADMIN = "admin-0123456789abcdef"


@pytest.fixture
def api(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Api]:
    caplog.set_level(logging.DEBUG, "backend.requests")
    with running_app(tmp_path / "models", api_keys=f"admin:{ADMIN}") as started:
        started.client.headers["X-API-Key"] = ADMIN
        yield started


def line_of(caplog: pytest.LogCaptureFixture, request_id: str) -> logging.LogRecord:
    (line,) = [
        record for record in caplog.records
        if record.name == "backend.requests" and getattr(record, "request_id", None) == request_id
    ]  # fmt: skip
    return line


def test_an_inspection_is_one_line_with_the_facts_of_its_answer(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    answer_of(api.fit(plates(range(4)), recipe_id="disc-b"))
    answer_of(api.calibrate(recipe_id="disc-b"))
    given = answer_of(api.infer(plates([9])[0], recipe_id="disc-b", headers={"X-Request-Id": "part-1"}))
    line: Any = line_of(caplog, "part-1")
    assert (line.method, line.route, line.status, line.levelname) == ("POST", "/infer", 200, "INFO")
    assert (line.recipe_id, line.role_id, line.roi_id, line.model_key) == ("disc-b", ROLE, ROI, ROI)
    assert (line.score, line.threshold, line.decision) == (given["score"], given["threshold"], given["decision"])
    assert line.image_digest == given["params"]["image_digest"]
    assert line.timings_ms.keys() == given["timings_ms"].keys()
    assert line.duration_ms >= line.timings_ms["total"]
    assert (line.caller, line.client) == ("admin", "testclient")


@pytest.mark.parametrize(
    ("method", "path", "status", "route", "code", "level"),
    [
        ("GET", f"/state?role_id={ROLE}&roi_id={ROI}&secret=of-a-query", 200, "/state", None, "INFO"),
        ("GET", "/jobs/" + "0" * 32, 404, "/jobs/{job_id}", "not_found", "WARNING"),
        ("GET", "/of-a-query", 404, None, "not_found", "WARNING"),
        ("GET", "/health", 200, "/health", None, "DEBUG"),
        ("HEAD", "/metrics", 200, "/metrics", None, "DEBUG"),
        ("POST", "/infer", 422, "/infer", "invalid_input", "WARNING"),
    ],
)
def test_every_request_is_a_line_with_the_route_and_not_with_what_was_asked(
    api: Api, caplog: pytest.LogCaptureFixture, method: str, path: str, status: int, route: str, code: str, level: str
) -> None:
    assert api.client.request(method, path, headers={"X-Request-Id": "r"}).status_code == status
    line: Any = line_of(caplog, "r")
    assert (line.route, line.code, line.status, line.levelname) == (route, code, status, level)
    assert "of-a-query" not in str(vars(line))


def test_a_refusal_is_logged_without_the_key_that_was_sent(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    wrong = "not-the-key-but-nearly"
    for headers in ({"X-API-Key": wrong}, {"X-API-Key": "", "Authorization": f"Bearer {wrong}"}):
        caplog.clear()
        error_of(api.client.get("/recipes", headers={**headers, "X-Request-Id": "r"}), 401, "unauthorized")
        line: Any = line_of(caplog, "r")
        assert (line.status, line.code, line.caller) == (401, "unauthorized", None)
        assert wrong not in str([vars(record) for record in caplog.records])


def test_a_failure_is_a_line_beside_its_traceback_under_the_same_id(
    api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("what failed")

    monkeypatch.setattr("backend.services.inspection.InspectionService.describe", fail)
    api.client.get("/state", params={"role_id": ROLE, "roi_id": ROI}, headers={"X-Request-Id": "r"})
    line: Any = line_of(caplog, "r")
    assert (line.status, line.code, line.levelname) == (500, "internal_error", "ERROR")
    (failure,) = [record for record in caplog.records if record.exc_info]
    assert "r failed" in failure.getMessage()


def test_the_log_of_a_process_is_json_lines_and_holds_no_secret_no_image_and_no_forged_line(tmp_path: Path) -> None:
    log_file = tmp_path / "logs" / "roi.log"
    environment = {"BDI_API_KEYS": f"admin:{ADMIN}", "BDI_LOG_FILE": str(log_file), "BDI_LOG_LEVEL": "DEBUG"}
    images = plates(range(3))
    with running_server(tmp_path, "backend.app:app", environment=environment) as server:
        client = server.api.client
        client.headers["X-API-Key"] = ADMIN
        answer_of(server.api.fit(images))
        answer_of(server.api.infer(images[0], headers={"X-Request-Id": "the-inspection"}))
        forged = 'x"}\n{"level":"INFO","message":"forged"}\r\n'
        files = {"image": (forged, images[1], "image/png")}
        form = {"role_id": ROLE, "roi_id": forged, "mm_per_px": "0.2"}
        assert client.post("/infer", data=form, files=files).status_code == 422
        assert client.post("/infer", data={**form, "roi_id": ROI}, files=files).status_code == 200
        client.get("/recipes", headers={"X-API-Key": "", "Authorization": f"Bearer {ADMIN}"})
        assert client.get("/docs", headers={"X-API-Key": ""}, auth=("me", ADMIN)).status_code == 200
    written = log_file.read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    assert all({"timestamp", "level", "logger", "message"} <= line.keys() for line in lines)
    assert not [line for line in lines if line["message"] == "forged"]
    (inspection,) = [line for line in lines if line.get("request_id") == "the-inspection"]
    assert inspection["score"] >= 0
    assert inspection["client"] == "127.0.0.1"
    everything = written + server.log.read_text()
    for secret in (ADMIN, base64.b64encode(f"me:{ADMIN}".encode()).decode(), "PNG", "iVBOR", "IHDR"):
        assert secret not in everything
    assert inspection["timestamp"] in server.log.read_text(), "standard error has the same lines"
