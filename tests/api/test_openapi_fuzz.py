"""Requests made up from the OpenAPI document: none fails the service, and every answer is one that it declares."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from backend.app import create_app
from tests.testkit.client import ROI, ROLE, Client, png
from tests.testkit.fakes import defective_image, encoded
from tests.testkit.server import Process

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed; see requirements.txt")

from schemathesis.specs.openapi import checks  # noqa: E402

_EXAMPLES_PER_OPERATION = 6
_FILES = [png(1), png(2), png(90), encoded(defective_image(3)), png(1)[:200], b"", b"\xff\xd8\xff", b"GIF89a\0\0"]
_JSON_TEXTS = [
    "{}",
    '{"mm_per_px":0.2,"part_id":"a"}',
    '{"mm_per_px":1e400}',
    '{"mm_per_px":1' + "0" * 400 + "}",
    '{"x":1e400}',
    '{"x":NaN}',
    '{"x":"\\ud800"}',
    '{"x":' + "[" * 600 + "]" * 600 + "}",
    '{"x":' + "[" * 30 + "]" * 30 + "}",
    '{"shape":[1],"shape_json":5}',
    '{"part_id":[1,{}]}',
    "[]",
    "null",
    '{"kind":"circle","cx":32,"cy":32,"r":20}',
    '{"kind":"circle","cx":1e999,"cy":32,"r":20}',
    '{"kind":"rect","x":-5,"y":0,"w":1e300,"h":1e-300}',
    '{"kind":"annulus","cx":32,"cy":32,"r":20,"r_inner":20}',
    '{"kind":["rect"]}',
]
_CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
    checks.allow_header_conformance,
]
"""Not the two that expect a schema to say everything: what an image holds or a ROI was fitted with, it cannot say."""


def _schema(*modes: Any) -> Any:
    schema = schemathesis.openapi.from_dict(create_app().openapi())
    schema.config.generation.update(modes=list(modes), deterministic=True, database="none")
    return schema


schemathesis.openapi.format("binary", st.sampled_from(_FILES))
_SENSIBLE = _schema(schemathesis.GenerationMode.POSITIVE)
_SENSELESS = _schema(schemathesis.GenerationMode.NEGATIVE)
_repeatable = settings(
    max_examples=_EXAMPLES_PER_OPERATION,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@_SENSIBLE.hook
def map_query(_context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    return _about_the_fitted_roi(query)


@_SENSIBLE.hook
def map_body(_context: Any, body: Any) -> Any:
    return _with_json_texts(_about_the_fitted_roi(body))


def _about_the_fitted_roi(sent: Any) -> Any:
    """Let every other request, by its content, be about a ROI that there is: else none gets past the first check."""
    if isinstance(sent, dict) and "role_id" in sent and _number_of(sent) % 2:
        return {**sent, "role_id": ROLE, "roi_id": ROI, "model_key": ROI, "recipe_id": "default"}
    return sent


def _with_json_texts(sent: Any) -> Any:
    """Let fields that hold JSON as a text hold some: random texts are none."""
    if not isinstance(sent, dict):
        return sent
    number, sent = _number_of(sent), dict(sent)
    if isinstance(sent.get("metas"), list) and isinstance(sent.get("images"), list):
        sent["metas"] = [_JSON_TEXTS[(number + n) % len(_JSON_TEXTS)] for n in range(len(sent["images"]))]
    if isinstance(sent.get("shape"), str):
        sent["shape"] = _JSON_TEXTS[number % len(_JSON_TEXTS)]
    return sent


def _number_of(sent: dict[str, Any]) -> int:
    return zlib.crc32(repr(sorted(sent.items(), key=repr)).encode("utf-8", "surrogatepass"))


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A service with a fitted and calibrated ROI and images of both classes."""
    with Process(tmp_path_factory.mktemp("fuzz") / "models", input_size=56, max_images=8) as process:
        client = process.start()
        client.upload("ng", [encoded(defective_image(9))], [{"mm_per_px": 0.2}]).ok()
        client.fit([png(seed) for seed in range(4)]).ok()
        client.calibrate().ok()
        yield process


@pytest.fixture(scope="module")
def server(process: Process) -> Client:
    return process.client


@_SENSIBLE.parametrize()
@_repeatable
def test_what_the_document_allows_never_fails_the_service(case: Any, server: Client) -> None:
    _assert_answered_as_declared(case, server)


@_SENSELESS.parametrize()
@_repeatable
def test_what_the_document_forbids_never_fails_the_service(case: Any, server: Client) -> None:
    _assert_answered_as_declared(case, server)


def _assert_answered_as_declared(case: Any, server: Client) -> None:
    response = case.call(base_url=f"http://{server.host}:{server.port}")
    assert response.status_code < 500, response.text
    if response.headers.get("content-type") == ["application/json"]:
        json.loads(response.text, parse_constant=_refuse)
    case.validate_response(response, checks=_CHECKS)


def test_the_service_is_whole_after_all_that(server: Client) -> None:
    assert server.get("/health").ok()["status"] == "ok"
    assert server.get("/recipes").status == 200
    assert server.about("/state").ok()["memory_fitted"] is True
    server.fit([png(1), png(2)], mode="replace").ok()
    assert server.infer(png(50)).ok()["score"] > 0


def test_the_log_tells_of_no_failure_in_the_background_either(process: Process) -> None:
    log = process.log.read_text("utf-8")
    assert "Uvicorn running" in log
    assert "Traceback" not in log, log[log.index("Traceback") :][:4000]


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")
