"""What every call has in common: its id, the methods that there are, the origins that may call, the one error body."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.app import create_app
from backend.settings import Settings
from tests.testkit.client import Client, Reply, png
from tests.testkit.fakes import FakeExtractor, defective_image, encoded
from tests.testkit.server import running

_GUID = "8f0c6d0e-6d2e-4f0a-9a53-0d5f5c3f6b11"
_DOCUMENT: dict[str, Any] = create_app().openapi()


_EVERY_CALL: dict[str, Callable[[Client], Reply]] = {
    "GET /health": lambda c: c.get("/health"),
    "POST /fit_ok": lambda c: c.fit([png(0)]),
    "POST /calibrate_ng": lambda c: c.calibrate(area_mm2_thr=0.1),
    "POST /infer": lambda c: c.infer(png(5)),
    "GET /state": lambda c: c.about("/state"),
    "GET /scores": lambda c: c.about("/scores"),
    "GET /manifest": lambda c: c.about("/manifest"),
    "POST /datasets/ok/upload": lambda c: c.upload("ok", [png(0)]),
    "GET /datasets/list": lambda c: c.about("/datasets/list"),
    "GET /datasets/meta": lambda c: c.about("/datasets/meta", label="ok", filename=c.files("ok")[0]),
    "DELETE /datasets/clear": lambda c: c.at("empty").delete("/datasets/clear", label="ok"),
    "POST /calibrate_dataset": lambda c: c.dataset("/calibrate_dataset", area_mm2_thr=0.1),
    "POST /infer_dataset": lambda c: c.dataset("/infer_dataset", include_heatmap=False),
    "POST /refit": lambda c: c.post("/refit", c.roi),
    "GET /versions": lambda c: c.about("/versions"),
    "POST /versions/activate": lambda c: c.post("/versions/activate", {**c.roi, "version": 1}),
    "POST /versions/compare": lambda c: c.post("/versions/compare", {**c.roi, "a": 1}),
    "404 version": lambda c: c.post("/versions/activate", {**c.roi, "version": 999}),
    "GET /recipes": lambda c: c.get("/recipes"),
    "404": lambda c: c.get("/nothing"),
    "404 file": lambda c: c.about("/datasets/file", label="ok", filename="x"),
    "404 job": lambda c: c.get(f"/jobs/{'0' * 32}"),
    "405": lambda c: c.get("/infer"),
    "409": lambda c: c.infer(png(1), mm_per_px=0.5),
    "400 unfitted": lambda c: c.at("nobody").infer(png(1)),
    "400 JSON": lambda c: c.send("POST", "/calibrate_ng", b"{", {"Content-Type": "application/json"}),
    "400 image": lambda c: c.infer(b"no image"),
    "422 form": lambda c: c.form("/fit_ok", []),
    "422 query": lambda c: c.get("/state"),
    "422 JSON": lambda c: c.post("/calibrate_ng", {"role_id": 1}),
    "OpenAPI": lambda c: c.get("/openapi.json"),
}


class _WithRequestId(Client):
    """Sends one request id on every call."""

    def send(self, method: str, path: str, body: bytes | None = None, headers: Any = None) -> Reply:
        return super().send(method, path, body, {**(headers or {}), "X-Request-Id": _GUID})


@pytest.mark.parametrize("call", _EVERY_CALL)
def test_the_request_id_comes_back_or_the_call_gets_one_of_its_own(ready: Client, call: str) -> None:
    asking = _WithRequestId(ready.host, ready.port, ready.models_dir, None, ready.role_id, ready.roi_id)
    replies = [_EVERY_CALL[call](client) for client in (asking, ready, ready)]
    ids = [reply.headers["X-Request-Id"] for reply in replies]
    assert ids[0] == _GUID
    assert len(set(ids)) == 3
    assert all(uuid.UUID(an_id) for an_id in ids)
    if call != "OpenAPI":
        assert [reply.json["request_id"] for reply in replies] == ids


def test_an_unusable_request_id_is_replaced_and_any_visible_one_kept(server: Client) -> None:
    for sent in ("", "a b", "x" * 129, "ñ".encode().decode("latin-1"), "tab\tid"):
        reply = server.get("/health", headers={"X-Request-Id": sent})
        assert reply.ok()["request_id"] == reply.headers["X-Request-Id"] != sent
        assert uuid.UUID(reply.headers["X-Request-Id"])
    for sent in (_GUID.upper(), "line-3/part#7", "<script>", "x" * 128, "%0d%0a"):
        reply = server.get("/health", headers={"X-Request-Id": sent})
        assert reply.ok()["request_id"] == reply.headers["X-Request-Id"] == sent


_PATHS = [path.replace("{job_id}", "0" * 32) for path in _DOCUMENT["paths"]] + ["/docs", "/openapi.json", "/redoc"]


@pytest.mark.parametrize("path", _PATHS)
def test_options_answers_on_every_route_with_its_methods(server: Client, path: str) -> None:
    reply = server.send("OPTIONS", path, headers={"X-Request-Id": _GUID})
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["X-Request-Id"] == _GUID
    allowed = reply.headers["Allow"].split(", ")
    operations = _DOCUMENT["paths"].get(path.replace("0" * 32, "{job_id}"), {"get": {}})
    assert {method.upper() for method in operations} <= set(allowed)
    assert "OPTIONS" in allowed
    assert ("HEAD" in allowed) == ("GET" in allowed)


def test_options_needs_nothing_that_is_right_but_the_path(server: Client) -> None:
    assert server.send("OPTIONS", "/state?role_id=x").status == 204
    assert server.send("OPTIONS", "/fit_ok", b"body", {"Content-Type": "text/plain"}).status == 204
    assert server.at(recipe="last").send("OPTIONS", "/infer").status == 204
    for path in ("/nothing", "/datasets", "/datasets/ok", "/fit", "/job"):
        assert server.send("OPTIONS", path).status == 404


@pytest.mark.parametrize("path", ["/health", "/recipes", "/openapi.json", "/metrics", "/state", "/nothing", "/infer"])
def test_head_answers_as_get_does_but_without_the_body(ready: Client, path: str) -> None:
    query = "?role_id=Inspection&roi_id=ready" if path == "/state" else ""
    get, head = (ready.send(method, path + query, headers={"X-Request-Id": _GUID}) for method in ("GET", "HEAD"))
    assert (head.status, head.body) == (get.status, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    if path not in ("/metrics", "/nothing", "/infer"):  # the count of errors, and the method that a sentence names
        assert head.headers["Content-Length"] == get.headers["Content-Length"]


def test_a_wrong_method_is_405_with_the_methods_that_there_are(server: Client) -> None:
    for method, path, allowed in (
        ("GET", "/infer", "OPTIONS, POST"),
        ("POST", "/state", "GET, HEAD, OPTIONS"),
        ("PUT", "/datasets/file", "DELETE, GET, HEAD, OPTIONS"),
        ("PATCH", "/jobs/0123", "DELETE, GET, HEAD, OPTIONS"),
    ):
        reply = server.send(method, path)
        assert reply.ok(405)["code"] == "method_not_allowed"
        assert reply.headers["Allow"] == allowed
        assert server.send("OPTIONS", path).headers["Allow"] == allowed


def test_without_named_origins_no_page_of_another_origin_may_call(server: Client) -> None:
    origin = {"Origin": "http://panel.example", "Access-Control-Request-Method": "POST"}
    for reply in (server.get("/health", headers=origin), server.send("OPTIONS", "/infer", headers=origin)):
        assert not [name for name in reply.headers if name.lower().startswith("access-control-")]


def test_named_origins_may_call_and_others_may_not(tmp_path: Path) -> None:
    settings = Settings(models_dir=tmp_path / "models", cors_origins="http://panel.example, http://other.example")
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-recipe-id,x-request-id,prefer"}
    with running(settings, FakeExtractor()) as client:
        for origin in ("http://panel.example", "http://other.example"):
            reply = client.get("/health", headers={"Origin": origin})
            assert reply.headers["Access-Control-Allow-Origin"] == origin
            assert "X-Request-Id" in reply.headers["Access-Control-Expose-Headers"]
            preflight = client.send("OPTIONS", "/infer", headers={"Origin": origin, **ask})
            assert preflight.status == 200
            assert preflight.headers["Access-Control-Allow-Origin"] == origin
            assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
            assert "prefer" in preflight.headers["Access-Control-Allow-Headers"].lower()
            failed = client.infer(png(1), headers={"Origin": origin})
            assert failed.headers["Access-Control-Allow-Origin"] == origin
        stranger = client.get("/health", headers={"Origin": "http://stranger.example"})
        assert stranger.ok()["status"] == "ok"
        assert "Access-Control-Allow-Origin" not in stranger.headers
        assert client.send("OPTIONS", "/infer").status == 204  # a probe, not a preflight


@pytest.mark.parametrize("call", [call for call in _EVERY_CALL if call[0] == "4"])
def test_every_error_has_the_one_body(ready: Client, call: str) -> None:
    reply = _EVERY_CALL[call](ready)
    assert reply.status == int(call[:3])
    body = reply.json
    assert body.keys() - {"details"} == {"error", "code", "request_id", "recipe_id"}
    assert body["error"].endswith(".")
    assert "\n" not in body["error"]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", body["code"])
    assert isinstance(body.get("details", {}), dict)
    assert "detail" not in body


def test_an_unfitted_roi_says_the_words_that_the_client_looks_for(client: Client) -> None:
    for reply in (client.infer(png(1)), client.calibrate(), client.dataset("/infer_dataset")):
        error = reply.ok(400)["error"]
        assert "memory not found" in error
        assert "run /fit_ok first" in error


def test_no_other_400_says_those_words(ready: Client) -> None:
    for call in ("400 JSON", "400 image"):
        error = _EVERY_CALL[call](ready).ok(400)["error"].lower()
        for words in ("memory not found", "run /fit_ok first", "calibration missing", "not fitted"):
            assert words not in error


def test_a_scale_that_differs_by_more_than_two_percent_is_409_and_names_both_values(ready: Client) -> None:
    calls: list[Callable[[float], Reply]] = [
        lambda mm: ready.infer(png(1), mm_per_px=mm),
        lambda mm: ready.fit([png(1)], mm_per_px=mm),
        lambda mm: ready.calibrate(mm_per_px=mm, area_mm2_thr=0.1),
        lambda mm: ready.upload("ng", [encoded(defective_image(9))], [{"mm_per_px": mm}]),
    ]
    for call in calls:
        for too_far in (0.2041, 0.1959, 2.0):
            body = call(too_far).ok(409)
            assert (body["code"], f"{too_far:g}" in body["error"]) == ("mm_per_px_mismatch", True)
            assert "0.2." in body["error"] or "0.2 " in body["error"]
            assert body["details"] == {"field": "mm_per_px", "fitted_with": 0.2, "sent": too_far}
        for near in (0.2039, 0.1961):
            assert call(near).status == 200
    call_with_the_old_value = calls[3](0.2)
    assert call_with_the_old_value.status == 200
