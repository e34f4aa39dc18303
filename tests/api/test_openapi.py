"""The OpenAPI document: every field of every request and answer has a type and says what it means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.app import create_app
from tests.testkit.app import running_app

ORDERED = {"/fit_ok": "post", "/calibrate_ng": "post", "/infer": "post", "/health": "get"}
DOCUMENT: dict[str, Any] = create_app().openapi()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


OPERATIONS = dict(operations())
FIELDS = {
    f"{name}.{field}": of for name, schema in SCHEMAS.items() for field, of in schema.get("properties", {}).items()
}


def is_typed(schema: dict[str, Any]) -> bool:
    if any(key in schema for key in ("$ref", "const", "enum")):
        return True
    if "anyOf" in schema:
        return all(map(is_typed, schema["anyOf"]))
    if schema.get("type") == "array":
        return "prefixItems" in schema or is_typed(schema.get("items", {}))
    return "type" in schema


def is_described(schema: dict[str, Any]) -> bool:
    """A field says what it means itself, in one of its options or in the schema that it refers to, or has one value."""
    if schema.get("description") or "const" in schema:
        return True
    if "$ref" in schema:
        return is_described(SCHEMAS[schema["$ref"].rsplit("/", 1)[1]])
    return any(map(is_described, schema.get("anyOf", [])))


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_has_a_type_and_a_description(field: str) -> None:
    assert is_typed(FIELDS[field]), FIELDS[field]
    assert is_described(FIELDS[field]), FIELDS[field]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_parameter_has_a_type_and_a_description(operation: str) -> None:
    for parameter in OPERATIONS[operation].get("parameters", []):
        assert is_typed(parameter["schema"])
        assert parameter.get("description"), f"{parameter['in']} {parameter['name']} is not described"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_a_summary_and_says_what_it_answers(operation: str) -> None:
    assert OPERATIONS[operation]["summary"]
    assert OPERATIONS[operation]["description"]
    answers = [answer for status, answer in OPERATIONS[operation]["responses"].items() if status.startswith("2")]
    assert answers
    for content in (answer.get("content", {}) for answer in answers):
        assert content, "an answer has a media type"
        for media_type, described in content.items():
            assert media_type != "application/json" or described["schema"], "a JSON answer has a schema"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_declares_the_one_error_body(operation: str) -> None:
    responses = OPERATIONS[operation]["responses"]
    for status in ("400", "409", "413", "422", "500", "503"):
        assert responses[status]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorBody"}
        assert responses[status]["description"]
    assert "HTTPValidationError" not in SCHEMAS


def test_the_error_body_is_the_contracts() -> None:
    assert set(SCHEMAS["ErrorBody"]["properties"]) == {"error", "code", "details", "request_id", "recipe_id"}
    assert set(SCHEMAS["ErrorBody"]["required"]) == {"error", "code", "request_id", "recipe_id"}


@pytest.mark.parametrize(
    ("path", "required", "optional"),
    [
        ("/fit_ok", {"role_id", "roi_id", "mm_per_px"}, {"images", "model_key", "recipe_id", "shape", "memory_fit"}),
        ("/infer", {"role_id", "roi_id", "mm_per_px", "image"}, {"model_key", "recipe_id", "shape", "heatmap"}),
    ],
)
def test_the_forms_are_the_contracts(path: str, required: set[str], optional: set[str]) -> None:
    form = _form(path)
    assert set(form["required"]) == required
    assert optional <= set(form["properties"])


def test_images_are_files() -> None:
    for schema in (_form("/infer")["properties"]["image"], _form("/fit_ok")["properties"]["images"]["items"]):
        assert schema["type"] == "string"
        assert "binary" in schema.get("format", "") or schema.get("contentMediaType") == "application/octet-stream"


@pytest.mark.parametrize(
    ("where", "limits"),
    [
        (("/fit_ok", "mm_per_px"), {"low": True, "maximum": 100}),
        (("/fit_ok", "role_id"), {"minLength": 1, "maxLength": 64}),
        (("/fit_ok", "roi_id"), {"minLength": 1, "maxLength": 64}),
        (("/fit_ok", "coreset_rate"), {"exclusiveMinimum": 0, "maximum": 1}),
        (("/fit_ok", "mode"), {"enum": ["add", "replace"]}),
        (("/infer", "mm_per_px"), {"low": True, "maximum": 100}),
        (("/infer", "shape"), {"maxLength": 4096}),
        (("/infer", "heatmap"), {"enum": ["base64", "path", "none"]}),
        (("/calibrate_ng", "mm_per_px"), {"low": True, "maximum": 100}),
        (("/calibrate_ng", "area_mm2_thr"), {"minimum": 0, "maximum": 1e6}),
        (("/calibrate_ng", "score_percentile"), {"exclusiveMinimum": 0, "maximum": 100}),
        (("/calibrate_ng", "ok_percentile"), {"exclusiveMinimum": 0, "maximum": 100}),
        (("/calibrate_ng", "margin"), {"minimum": 0.5, "maximum": 3}),
        (("/calibrate_ng", "score_mode"), {"enum": ["percentile", "top_mean", "max"]}),
        (("/calibrate_ng", "role_id"), {"minLength": 1, "maxLength": 64}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_range_stands_in_the_document(where: tuple[str, str], limits: dict[str, Any]) -> None:
    path, field = where
    schema = _body(path)["properties"][field]
    schema = schema | next((option for option in schema.get("anyOf", []) if option.get("type") != "null"), {})
    for key, value in limits.items():
        if key == "low":
            assert schema.get("exclusiveMinimum", schema.get("minimum")) >= 0
        else:
            assert schema[key] == value


def test_the_scores_of_a_calibration_are_not_negative() -> None:
    for field in ("ok_scores", "ng_scores"):
        items = SCHEMAS["CalibrateBody"]["properties"][field]["anyOf"][0]["items"]
        assert (items["type"], items["minimum"]) == ("number", 0)


@pytest.mark.parametrize(
    ("schema", "fields"),
    [
        ("FitAnswer", {"n_ok_total", "n_embeddings", "coreset_size", "coreset_rate_applied", "coreset_rate_requested"}),
        ("FitAnswer", {"checksum", "token_shape", "request_id", "recipe_id"}),
        ("CalibrateAnswer", {"threshold", "p99_ok", "p5_ng", "ok_mean", "ng_mean", "mm_per_px", "area_mm2_thr"}),
        ("InferAnswer", {"score", "threshold", "heatmap_png_base64", "regions", "token_shape", "params"}),
        ("RegionAnswer", {"bbox", "x", "y", "w", "h", "area_px", "area_mm2", "contour"}),
        ("InferParams", {"extractor", "coreset_rate", "k", "p_score", "blur_sigma", "mm_per_px", "score_percentile"}),
        ("HealthAnswer", {"status", "device", "model", "version"}),
    ],
)
def test_the_answers_promise_what_the_contract_lists(schema: str, fields: set[str]) -> None:
    assert fields <= set(SCHEMAS[schema]["required"])


def test_a_decision_is_ok_ng_or_null() -> None:
    options = SCHEMAS["InferAnswer"]["properties"]["decision"]["anyOf"]
    assert [option.get("enum", option.get("type")) for option in options] == [["ok", "ng"], "null"]


@pytest.mark.parametrize("path", ORDERED)
def test_the_ordered_endpoints_know_the_headers_of_the_client(path: str) -> None:
    headers = {entry["name"].lower() for entry in OPERATIONS[f"{ORDERED[path].upper()} {path}"]["parameters"]}
    assert {"x-request-id", "x-recipe-id"} <= headers


def test_documentation_is_there_to_be_read(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        page = api.client.get("/docs")
        assert (page.status_code, page.headers["Content-Type"].split(";")[0]) == (200, "text/html")
        assert "/openapi.json" in page.text
        assert api.client.get("/openapi.json").json() == DOCUMENT


def _body(path: str) -> dict[str, Any]:
    (content,) = OPERATIONS[f"POST {path}"]["requestBody"]["content"].values()
    schema: dict[str, Any] = SCHEMAS[content["schema"]["$ref"].rsplit("/", 1)[1]]
    return schema


def _form(path: str) -> dict[str, Any]:
    assert list(OPERATIONS[f"POST {path}"]["requestBody"]["content"]) == ["multipart/form-data"]
    return _body(path)


def test_the_documentation_needs_no_internet(tmp_path: Path) -> None:
    with running_app(tmp_path) as api:
        page = api.client.get("/docs").text
        scripts = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert any(script.endswith("swagger-ui-bundle.js") for script in scripts)
        for script in scripts:
            assert script.startswith("/"), "a line PC has no internet"
            assert api.client.get(script).status_code == 200
