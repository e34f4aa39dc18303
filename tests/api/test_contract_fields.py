"""Every endpoint and every field that the published client sends and reads, over real sockets.

An answer is read as System.Text.Json reads it into the client's classes: an ``int`` is a number without a point, within
32 bits; a ``double`` is a number and not null; a name that is missing or null is only for what may be null.
"""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backend.app import create_app
from backend.settings import Settings
from tests.testkit.client import Client, Part, Reply, dotnet_form, fields, image, png, text
from tests.testkit.fakes import FakeExtractor, defective_image, encoded
from tests.testkit.server import running

_FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures" / "dotnet"
_GUID = "8f0c6d0e-6d2e-4f0a-9a53-0d5f5c3f6b11"
_UNUSED_ROI = (f"roi-{n}" for n in itertools.count())
_DOCUMENT: dict[str, Any] = create_app().openapi()
_OPERATIONS = [(method, path) for path, methods in _DOCUMENT["paths"].items() for method in methods]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with running(Settings(models_dir=tmp_path_factory.mktemp("contract") / "models"), FakeExtractor()) as client:
        yield client


@pytest.fixture
def client(server: Client) -> Client:
    """A client of a ROI that no other test uses."""
    return server.at(next(_UNUSED_ROI))


@pytest.fixture(scope="module")
def ready(server: Client) -> Client:
    """A client of a fitted and calibrated ROI with images of both classes; tests leave it as it is."""
    ready = server.at("ready")
    ready.upload("ok", [png(seed) for seed in range(4)], [{"mm_per_px": 0.2}] * 4).ok()
    ready.upload("ng", [encoded(defective_image(9))], [{"mm_per_px": 0.2}]).ok()
    ready.fit(use_dataset=True).ok()
    ready.calibrate(area_mm2_thr=0.1).ok()
    return ready


# --- the bytes that .NET sends ----------------------------------------------------------------------------------------


def _captured(name: str) -> tuple[bytes, dict[str, str]]:
    head, _, body = (_FIXTURES / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return body, headers


def _files_in(body: bytes) -> list[bytes]:
    return [b"\x89PNG" + piece.split(b"IEND")[0] + b"IEND\xaeB`\x82" for piece in body.split(b"\x89PNG")[1:]]


_ROI_FIELDS = fields({"role_id": "Inspection", "roi_id": "inspection-1", "mm_per_px": 0.2})


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "fit",
            lambda files: [
                *_ROI_FIELDS,
                text("memory_fit", False),
                text("model_key", "inspection-1"),
                image(files[0], "roi ñ.png"),
                image(files[1], "roi.png"),
            ],
        ),
        (
            "infer",
            lambda files: [
                *_ROI_FIELDS,
                text("model_key", "inspection-1"),
                image(files[0], "roi ñ.png", name="image"),
                text("shape", '{"kind":"annulus","cx":192,"cy":192,"r":180,"r_inner":60}'),
            ],
        ),
        ("seed", lambda files: [*_ROI_FIELDS, image(files[0], "roi.png", name="image", content_type=None)]),
    ],
)
def test_these_tests_write_forms_byte_for_byte_as_dotnet_does(
    name: str, parts: Callable[[list[bytes]], list[Part]]
) -> None:
    captured, headers = _captured(name)
    boundary = re.search(r'boundary="(.*)"', headers["Content-Type"])
    assert boundary
    body, content_type = dotnet_form(parts(_files_in(captured)), boundary[1])
    assert body == captured
    assert content_type == headers["Content-Type"]


def test_the_captured_requests_are_served(client: Client) -> None:
    def send(name: str, path: str) -> Reply:
        body, headers = _captured(name)
        # The captured names are those of the default recipe; a recipe of its own keeps this test to itself.
        return client.send("POST", path, body, {**headers, "X-Recipe-Id": "captured"})

    fit = send("fit", "/fit_ok").ok()
    assert (fit["n_ok_total"], fit["n_new"], fit["n_duplicates"]) == (1, 1, 1)  # it sends one picture twice
    assert send("calib", "/calibrate_ng").ok()["threshold"] == 0.24
    assert send("seed", "/infer").ok()["decision"] in ("ok", "ng")
    assert send("infer", "/infer").ok(422)["code"] == "shape_outside_image"  # made for 384 px, its picture has 48


# --- answers, as the client's classes read them -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Type:
    """A type of C#, and which JSON tokens System.Text.Json takes for it."""

    name: str

    def takes(self, value: object) -> bool:
        kind = self.name.rstrip("?")
        if value is None:
            return self.name.endswith("?") or kind == "string"
        if kind == "bool":
            return isinstance(value, bool)
        if kind == "int":
            return isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31
        if kind == "double":
            return isinstance(value, int | float) and not isinstance(value, bool)
        if kind == "object":
            return isinstance(value, dict)
        if kind.endswith("[]"):
            return isinstance(value, list) and all(_Type(kind[:-2]).takes(item) for item in value)
        return isinstance(value, str)


_CALIBRATION = {
    "threshold": "double",
    "p99_ok": "double",
    "p5_ng": "double?",
    "ok_mean": "double",
    "ng_mean": "double",
    "mm_per_px": "double",
    "area_mm2_thr": "double",
    "score_percentile": "int",  # a double in one of the client's classes and an int in another: 99 suits both
}
_IDENTITY = dict.fromkeys(("request_id", "recipe_id", "role_id", "roi_id", "model_key"), "string")
_REGION = {
    **dict.fromkeys(("x", "y", "w", "h", "area_px"), "int"),
    "area_mm2": "double",
    "bbox": "int[]",
    "contour": "int[][]",
}
_ANSWERS: dict[str, tuple[Callable[[Client], Reply], dict[str, str]]] = {
    "GET /health": (
        lambda c: c.get("/health"),
        {**dict.fromkeys(("status", "device", "model", "version", "request_id"), "string"), "reason": "string?"},
    ),
    "POST /fit_ok": (
        lambda c: c.fit([png(0)]),
        {
            **_IDENTITY,
            "n_ok_total": "int",
            "n_embeddings": "int",
            "coreset_size": "int",
            "coreset_rate_applied": "double",
            "coreset_rate_requested": "double",
            "checksum": "string",
            "token_shape": "int[]",
        },
    ),
    "POST /calibrate_ng": (lambda c: c.calibrate(area_mm2_thr=0.1), {**_IDENTITY, **_CALIBRATION}),
    "POST /infer": (
        lambda c: c.infer(encoded(defective_image(9))),
        {
            **_IDENTITY,
            "score": "double",
            "threshold": "double?",
            "heatmap_png_base64": "string",
            "regions": "object[]",
            "token_shape": "int[]",
            "params": "object",
            "decision": "string?",
        },
    ),
    "GET /state": (
        lambda c: c.about("/state"),
        {**_IDENTITY, "status": "string", "memory_fitted": "bool", "calib_present": "bool"},
    ),
    "GET /manifest": (
        lambda c: c.about("/manifest"),
        {**_IDENTITY, "memory": "bool", "calib": "object?", "datasets": "object"},
    ),
    "POST /datasets/ok/upload": (
        lambda c: c.upload("ok", [png(0)]),
        {"status": "string", "saved": "string[]", "request_id": "string", "recipe_id": "string"},
    ),
    "POST /datasets/ng/upload": (
        lambda c: c.upload("ng", [encoded(defective_image(9))]),
        {"status": "string", "saved": "string[]", "request_id": "string", "recipe_id": "string"},
    ),
    "GET /datasets/list": (lambda c: c.about("/datasets/list"), {"classes": "object"}),
    "GET /datasets/meta": (
        lambda c: c.about("/datasets/meta", label="ok", filename=c.files("ok")[0]),
        {"role_id": "string", "roi_id": "string", "label": "string", "filename": "string", "mm_per_px": "double"},
    ),
    "DELETE /datasets/file": (
        lambda c: c.delete("/datasets/file", label="ok", filename="x-000000000000.png"),
        {"deleted": "bool"},
    ),
    "DELETE /datasets/clear": (lambda c: c.at("empty").delete("/datasets/clear", label="ok"), {"cleared": "int"}),
    "POST /calibrate_dataset": (
        lambda c: c.dataset("/calibrate_dataset", area_mm2_thr=0.1),
        {**_IDENTITY, **_CALIBRATION, "status": "string", "n_ok": "int", "n_ng": "int"},
    ),
    "POST /infer_dataset": (
        lambda c: c.dataset("/infer_dataset", include_heatmap=False),
        {**_IDENTITY, "status": "string", "n_total": "int", "n_errors": "int", "items": "object[]"},
    ),
    "GET /recipes": (lambda c: c.get("/recipes"), {"recipes": "object[]", "request_id": "string"}),
}


def _assert_reads(answer: dict[str, Any], expected: dict[str, str]) -> None:
    missing = expected.keys() - answer.keys()
    assert not missing
    wrong = {name: (answer[name], type_) for name, type_ in expected.items() if not _Type(type_).takes(answer[name])}
    assert not wrong


@pytest.mark.parametrize("call", _ANSWERS)
def test_the_client_s_classes_read_the_answer(ready: Client, call: str) -> None:
    ask, expected = _ANSWERS[call]
    _assert_reads(ask(ready).ok(), expected)


def test_every_endpoint_of_the_service_is_in_this_table_or_named_here() -> None:
    elsewhere = {
        "GET /datasets/file": "bytes; test_datasets_http",
        "POST /recipes/copy": "test_recipes_http",
        "GET /jobs/{job_id}": "test_jobs_http",
        "DELETE /jobs/{job_id}": "test_jobs_http",
        "GET /metrics": "not JSON",
        "GET /audit": "test_audit_http",
    }
    assert {f"{method.upper()} {path}" for method, path in _OPERATIONS} == _ANSWERS.keys() | elsewhere.keys()


def test_the_parts_of_an_inspection_are_read_too(ready: Client) -> None:
    answer = ready.infer(encoded(defective_image(9))).ok()
    assert answer["decision"] == "ng"
    assert answer["regions"], "the defect must be a region"
    for region in answer["regions"]:
        _assert_reads(region, _REGION)
        assert region["bbox"] == [region["x"], region["y"], region["w"], region["h"]]
    numbers = ("coreset_rate", "k", "p_score", "blur_sigma", "mm_per_px", "score_percentile")
    _assert_reads(answer["params"], {"extractor": "string", **dict.fromkeys(numbers, "double")})
    _assert_reads(answer["params"], {"p_score": "int", "score_percentile": "int", "k": "int"})


def test_the_items_of_a_data_set_run_are_read_too(ready: Client) -> None:
    items = ready.dataset("/infer_dataset", include_heatmap=True).ok()["items"]
    for item in items:
        _assert_reads(
            item,
            {
                "label": "string",
                "filename": "string",
                "mm_per_px": "double?",
                "score": "double?",
                "threshold": "double?",
                "decision": "string?",
                "regions": "object[]",
                "n_regions": "int",
                "heatmap_png_base64": "string",
                "error": "string?",
            },
        )
        for region in item["regions"]:
            _assert_reads(region, _REGION)
    assert any(item["regions"] for item in items)


def test_the_classes_of_a_list_and_the_calibration_of_a_manifest_are_read_too(ready: Client) -> None:
    for name, of_class in ready.about("/datasets/list").ok()["classes"].items():
        _assert_reads(of_class, {"count": "int", "files": "string[]", "meta": "object"})
        assert of_class["count"] == len(of_class["files"]), name
    _assert_reads(ready.about("/manifest").ok()["calib"], _CALIBRATION)


def test_numbers_that_may_not_be_null_are_numbers_when_there_is_nothing_to_tell(client: Client) -> None:
    client.fit([png(1), png(2)]).ok()
    answer = client.calibrate(ok_scores=[0.3], ng_scores=None).ok()
    assert (answer["ng_mean"], answer["p5_ng"]) == (0.0, None)
    _assert_reads(answer, _CALIBRATION)
    identical = client.at(f"{client.roi_id}-same")
    identical.fit([png(1)], memory_fit=True).ok()
    _assert_reads(identical.infer(png(1)).ok(), _ANSWERS["POST /infer"][1])


@pytest.mark.parametrize("percentile", [99, 99.0, 97.5, 100])
def test_a_whole_percentile_is_written_without_a_point(client: Client, percentile: float) -> None:
    client.fit([png(1), png(2)]).ok()
    body = client.calibrate(score_percentile=percentile).body
    assert re.search(rb'"score_percentile":([0-9.]+)', body)[1] == f"{percentile:g}".encode()  # type: ignore[index]
    calib = client.about("/manifest").body
    assert re.search(rb'"score_percentile":([0-9.]+)', calib)[1] == f"{percentile:g}".encode()  # type: ignore[index]


@pytest.mark.parametrize("spelling", ["true", "True", "TRUE", "1"])
def test_memory_fit_keeps_every_embedding(client: Client, spelling: str) -> None:
    answer = client.fit([png(1), png(2)], memory_fit=spelling).ok()
    assert answer["coreset_size"] == answer["n_embeddings"] == 128
    assert answer["coreset_rate_requested"] == answer["coreset_rate_applied"] == 1.0


@pytest.mark.parametrize("spelling", ["false", "False"])
def test_without_memory_fit_the_coreset_is_a_share(client: Client, spelling: str) -> None:
    answer = client.fit([png(1), png(2)], memory_fit=spelling).ok()
    assert answer["coreset_size"] < answer["n_embeddings"] == 128


@pytest.mark.parametrize(
    "call",
    [
        lambda c, key: c.fit([png(1), png(2)], model_key=key),
        lambda c, key: c.calibrate(model_key=key, ok_scores=[0.5]),
        lambda c, key: c.infer(png(5), model_key=key),
        lambda c, key: c.about("/state", model_key=key),
        lambda c, key: c.about("/manifest", model_key=key),
        lambda c, key: c.dataset("/calibrate_dataset", model_key=key),
        lambda c, key: c.dataset("/infer_dataset", model_key=key),
    ],
)
def test_a_model_key_is_echoed_and_names_a_model_of_its_own(
    client: Client, call: Callable[[Client, str], Reply]
) -> None:
    client.fit([png(1), png(2)], model_key="second").ok()
    assert call(client, "second").ok()["model_key"] == "second"
    assert client.about("/state").ok()["memory_fitted"] is False
    assert client.infer(png(1)).status == 400
    folder = client.models_dir / client.role_id / client.roi_id
    assert (folder / "keys" / "second" / "memory.npz").is_file()
    assert not (folder / "memory.npz").exists()


# --- request ids ------------------------------------------------------------------------------------------------------

_EVERY_CALL: dict[str, Callable[[Client], Reply]] = {
    **{name: ask for name, (ask, _) in _ANSWERS.items()},
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
def test_the_request_id_comes_back_in_header_and_body(ready: Client, call: str) -> None:
    asking = _WithRequestId(ready.host, ready.port, ready.models_dir, None, ready.role_id, ready.roi_id)
    reply = _EVERY_CALL[call](asking)
    assert reply.headers["X-Request-Id"] == _GUID
    if call != "OpenAPI":
        assert reply.json["request_id"] == _GUID


@pytest.mark.parametrize("call", _EVERY_CALL)
def test_a_call_without_a_request_id_gets_one_of_its_own(ready: Client, call: str) -> None:
    replies = [_EVERY_CALL[call](ready) for _ in range(2)]
    ids = [reply.headers["X-Request-Id"] for reply in replies]
    assert len(set(ids)) == 2
    assert all(uuid.UUID(an_id) for an_id in ids)
    if call != "OpenAPI":
        assert [reply.json["request_id"] for reply in replies] == ids


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "ñ", "tab\tid"])
def test_an_unusable_request_id_is_replaced(server: Client, sent: str) -> None:
    reply = server.send("GET", "/health", headers={"X-Request-Id": sent.encode("utf-8").decode("latin-1")})
    assert reply.ok()["request_id"] == reply.headers["X-Request-Id"]
    assert uuid.UUID(reply.headers["X-Request-Id"])


@pytest.mark.parametrize("sent", ["{8F0C6D0E-6D2E-4F0A-9A53-0D5F5C3F6B11}", "a", "<script>", "x" * 128, "%0d%0a"])
def test_any_visible_request_id_is_kept_as_it_is(server: Client, sent: str) -> None:
    reply = server.get("/health", headers={"X-Request-Id": sent})
    assert reply.ok()["request_id"] == reply.headers["X-Request-Id"] == sent


# --- OPTIONS, HEAD, CORS ----------------------------------------------------------------------------------------------

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


def test_options_with_a_query_a_body_or_a_recipe_answers_too(server: Client) -> None:
    assert server.send("OPTIONS", "/state?role_id=x").status == 204
    assert server.send("OPTIONS", "/fit_ok", b"body", {"Content-Type": "text/plain"}).status == 204
    assert server.at(recipe="last").send("OPTIONS", "/infer").status == 204


@pytest.mark.parametrize("path", ["/nothing", "/datasets", "/datasets/ok", "/fit", "/jobs"])
def test_options_on_what_is_not_there_is_404(server: Client, path: str) -> None:
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


# --- errors -----------------------------------------------------------------------------------------------------------


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


def test_a_scale_that_differs_by_more_than_one_percent_is_409_and_names_both_values(ready: Client) -> None:
    calls: list[Callable[[float], Reply]] = [
        lambda mm: ready.infer(png(1), mm_per_px=mm),
        lambda mm: ready.fit([png(1)], mm_per_px=mm),
        lambda mm: ready.calibrate(mm_per_px=mm, area_mm2_thr=0.1),
        lambda mm: ready.upload("ng", [encoded(defective_image(9))], [{"mm_per_px": mm}]),
    ]
    for call in calls:
        for too_far in (0.2021, 0.1979, 2.0):
            body = call(too_far).ok(409)
            assert (body["code"], f"{too_far:g}" in body["error"]) == ("mm_per_px_mismatch", True)
            assert "0.2" in body["error"]
        for near in (0.2019, 0.1981):
            assert call(near).status == 200
    call_with_the_old_value = calls[3](0.2)
    assert call_with_the_old_value.status == 200


# --- the OpenAPI document ---------------------------------------------------------------------------------------------


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = _DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def _leaves(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the scalar schemas that a field's values are made of."""
    schema = _resolved(schema)
    for option in schema.get("anyOf", []):
        yield from _leaves(option)
    if schema.get("type") == "array":
        yield from _leaves(schema["items"])
    elif schema.get("type") == "object":
        if isinstance(schema.get("additionalProperties"), dict):
            yield from _leaves(schema["additionalProperties"])
    elif "anyOf" not in schema:
        yield schema


_FIELDS = {
    f"{name}.{field}": schema
    for name, of in _DOCUMENT["components"]["schemas"].items()
    for field, schema in of.get("properties", {}).items()
}
_PARAMETERS = {
    f"{method} {path} {parameter['in']} {parameter['name']}": parameter
    for path, methods in _DOCUMENT["paths"].items()
    for method, operation in methods.items()
    for parameter in operation.get("parameters", [])
}


def test_every_number_has_a_range_and_every_integer_32_bits() -> None:
    leaves = [(name, leaf) for name, schema in _FIELDS.items() for leaf in _leaves(schema)]
    numbers = [(name, leaf) for name, leaf in leaves if leaf.get("type") in ("integer", "number")]
    assert len(numbers) > 100
    assert not [name for name, leaf in numbers if not {"minimum", "exclusiveMinimum"} & leaf.keys()]
    integers = [(name, leaf) for name, leaf in numbers if leaf["type"] == "integer"]
    assert not [
        name for name, leaf in integers if leaf.get("maximum", 2**31) >= 2**31 and leaf.get("format") != "int32"
    ]


def test_every_field_has_an_example_itself_or_in_its_parts() -> None:
    assert not [name for name, schema in _FIELDS.items() if not _has_example(schema)]


def _has_example(schema: dict[str, Any]) -> bool:
    parts = [_resolved(option) for option in [schema, *schema.get("anyOf", []), schema.get("items", {})]]
    parts += [schema["additionalProperties"]] if isinstance(schema.get("additionalProperties"), dict) else []
    is_file = any(leaf.get("format") == "binary" for leaf in _leaves(schema))
    return is_file or any("examples" in part or "properties" in _resolved(part) for part in parts)


def test_every_example_is_of_its_field_s_type() -> None:
    for name, schema in _FIELDS.items():
        kinds = {kind for option in [schema, *schema.get("anyOf", [])] if (kind := _resolved(option).get("type"))}
        for example in schema.get("examples", []):
            found = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
            kind = "null" if example is None else found[type(example)]
            assert kind in kinds or (kind == "integer" and "number" in kinds), (name, example, kinds)


def test_every_parameter_has_a_description_and_an_example() -> None:
    for name, parameter in _PARAMETERS.items():
        assert parameter["description"], name
        assert parameter["schema"].get("examples"), name


def test_every_text_of_a_request_has_a_limit() -> None:
    fields_sent = {name: of for name, of in _FIELDS.items() if "Body" in name and not name.startswith("ErrorBody")}
    texts = [(name, leaf) for name, of in fields_sent.items() for leaf in _leaves(of) if leaf.get("type") == "string"]
    assert len(texts) > 30
    limits = {"maxLength", "enum", "const", "pattern"}
    assert not [name for name, leaf in texts if leaf.get("format") != "binary" and not limits & leaf.keys()]


@pytest.mark.parametrize(("method", "path"), _OPERATIONS)
def test_every_error_status_has_its_body_declared(method: str, path: str) -> None:
    responses = _DOCUMENT["paths"][path][method]["responses"]
    assert {"400", "404", "409", "413", "422", "500", "503"} <= responses.keys()
    for status, response in responses.items():
        assert response["description"]
        if status[0] in "45":
            assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorBody"}


def test_files_and_methods_have_the_names_that_generators_of_clients_know() -> None:
    names = [operation["operationId"] for methods in _DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)
    assert {"fit_ok", "calibrate_ng", "infer", "health", "infer_dataset", "calibrate_dataset"} <= set(names)
    files = [_FIELDS["Body_infer.image"], _FIELDS["Body_fit_ok.images"]["items"]]
    files += [_FIELDS[f"Body_upload_{label}.images"]["items"] for label in ("ok", "ng")]
    assert [file["format"] for file in files] == ["binary"] * 4
    assert "prefixItems" not in json.dumps(_DOCUMENT)


@pytest.mark.parametrize("path", ["/fit_ok", "/infer_dataset", "/calibrate_dataset"])
def test_the_long_calls_declare_their_202(path: str) -> None:
    accepted = _DOCUMENT["paths"][path]["post"]["responses"]["202"]
    assert accepted["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobStarted"}


def test_the_served_document_is_this_one(server: Client) -> None:
    assert server.get("/openapi.json").ok() == _DOCUMENT
    assert server.get("/docs").status == 200
