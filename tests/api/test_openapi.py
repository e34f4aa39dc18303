"""The OpenAPI document: every field of every request and answer has a type and says what it means."""

from __future__ import annotations

import json
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


def test_every_field_has_a_type_a_description_and_an_example_itself_or_in_its_parts() -> None:
    assert not [name for name, of in FIELDS.items() if not (is_typed(of) and is_described(of) and has_example(of))]


def test_every_parameter_has_a_type_a_description_and_an_example() -> None:
    for name, operation in OPERATIONS.items():
        for parameter in operation.get("parameters", []):
            assert is_typed(parameter["schema"]), (name, parameter)
            assert parameter.get("description"), (name, parameter)
            assert parameter["schema"].get("examples"), (name, parameter)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_says_what_it_is_and_declares_its_answers_and_the_one_error_body(operation: str) -> None:
    described = OPERATIONS[operation]
    assert described["summary"]
    assert described["description"]
    responses = described["responses"]
    assert {"400", "404", "409", "413", "422", "500", "503"} <= responses.keys()
    assert any(status.startswith("2") for status in responses)
    for status, response in responses.items():
        assert response["description"]
        if status[0] in "45":
            assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorBody"}
        else:
            assert response["content"], "an answer has a media type"
            assert all(of["schema"] for kind, of in response["content"].items() if kind == "application/json")


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rsplit("/", 1)[1]]
    return schema


def leaves(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the scalar schemas that a field's values are made of."""
    schema = resolved(schema)
    for option in schema.get("anyOf", []):
        yield from leaves(option)
    if schema.get("type") == "array":
        yield from leaves(schema["items"])
    elif schema.get("type") == "object":
        if isinstance(schema.get("additionalProperties"), dict):
            yield from leaves(schema["additionalProperties"])
    elif "anyOf" not in schema:
        yield schema


def has_example(schema: dict[str, Any]) -> bool:
    parts = [resolved(option) for option in [schema, *schema.get("anyOf", []), schema.get("items", {})]]
    parts += [schema["additionalProperties"]] if isinstance(schema.get("additionalProperties"), dict) else []
    is_file = any(leaf.get("format") == "binary" for leaf in leaves(schema))
    return is_file or any("examples" in part or "properties" in resolved(part) for part in parts)


def test_every_number_has_a_range_and_every_integer_32_bits() -> None:
    found = [(name, leaf) for name, schema in FIELDS.items() for leaf in leaves(schema)]
    numbers = [(name, leaf) for name, leaf in found if leaf.get("type") in ("integer", "number")]
    assert len(numbers) > 100
    assert not [name for name, leaf in numbers if not {"minimum", "exclusiveMinimum"} & leaf.keys()]
    integers = [(name, leaf) for name, leaf in numbers if leaf["type"] == "integer"]
    assert not [
        name for name, leaf in integers if leaf.get("maximum", 2**31) >= 2**31 and leaf.get("format") != "int32"
    ]


def test_every_example_is_of_its_field_s_type() -> None:
    for name, schema in FIELDS.items():
        kinds = {kind for option in [schema, *schema.get("anyOf", [])] if (kind := resolved(option).get("type"))}
        for example in schema.get("examples", []):
            found = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
            kind = "null" if example is None else found[type(example)]
            assert kind in kinds or (kind == "integer" and "number" in kinds), (name, example, kinds)


def test_every_text_of_a_request_has_a_limit() -> None:
    fields_sent = {name: of for name, of in FIELDS.items() if "Body" in name and not name.startswith("ErrorBody")}
    texts = [(name, leaf) for name, of in fields_sent.items() for leaf in leaves(of) if leaf.get("type") == "string"]
    assert len(texts) > 30
    limits = {"maxLength", "enum", "const", "pattern"}
    assert not [name for name, leaf in texts if leaf.get("format") != "binary" and not limits & leaf.keys()]


def test_files_and_methods_have_the_names_that_generators_of_clients_know() -> None:
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    assert {"fit_ok", "calibrate_ng", "infer", "health", "infer_dataset", "calibrate_dataset"} <= set(names)
    files = [FIELDS["Body_infer.image"], FIELDS["Body_fit_ok.images"]["items"]]
    files += [FIELDS[f"Body_upload_{label}.images"]["items"] for label in ("ok", "ng")]
    assert [(file["type"], file["format"]) for file in files] == [("string", "binary")] * 4
    assert "prefixItems" not in json.dumps(DOCUMENT)
    assert "HTTPValidationError" not in SCHEMAS


def test_the_long_calls_declare_their_202() -> None:
    for path in ("/fit_ok", "/infer_dataset", "/calibrate_dataset", "/refit", "/versions/compare"):
        accepted = OPERATIONS[f"POST {path}"]["responses"]["202"]
        assert accepted["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobStarted"}


def test_the_error_body_is_the_contracts() -> None:
    assert set(SCHEMAS["ErrorBody"]["properties"]) == {"error", "code", "details", "request_id", "recipe_id"}
    assert set(SCHEMAS["ErrorBody"]["required"]) == {"error", "code", "request_id", "recipe_id"}


@pytest.mark.parametrize(
    ("path", "required", "optional"),
    [
        ("/fit_ok", {"role_id", "roi_id", "mm_per_px"}, {"images", "model_key", "recipe_id", "shape", "memory_fit"}),
        (
            "/infer",
            {"role_id", "roi_id", "mm_per_px", "image"},
            {"model_key", "recipe_id", "shape", "heatmap", "overlay_px", "serial", "trial", "version"},
        ),
    ],
)
def test_the_forms_are_the_contracts(path: str, required: set[str], optional: set[str]) -> None:
    form = _form(path)
    assert set(form["required"]) == required
    assert optional <= set(form["properties"])


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
        (("/infer", "heatmap"), {"enum": ["base64", "path", "none", "overlay"]}),
        (("/calibrate_ng", "mm_per_px"), {"low": True, "maximum": 100}),
        (("/calibrate_ng", "area_mm2_thr"), {"minimum": 0, "maximum": 1e6}),
        (("/calibrate_ng", "score_percentile"), {"exclusiveMinimum": 0, "maximum": 100}),
        (("/calibrate_ng", "ok_percentile"), {"exclusiveMinimum": 0, "maximum": 100}),
        (("/calibrate_ng", "margin"), {"minimum": 0.5, "maximum": 3}),
        (("/calibrate_ng", "threshold"), {"exclusiveMinimum": 0, "maximum": 2}),
        (("/calibrate_dataset", "ok_percentile"), {"exclusiveMinimum": 0, "maximum": 100}),
        (("/calibrate_dataset", "margin"), {"minimum": 0.5, "maximum": 3}),
        (("/calibrate_dataset", "threshold"), {"exclusiveMinimum": 0, "maximum": 2}),
        (("/calibrate_ng", "score_mode"), {"enum": ["percentile", "top_mean", "max", "area"]}),
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


def test_the_answers_promise_what_the_contract_lists() -> None:
    rates = {"coreset_rate_applied", "coreset_rate_requested"}
    for schema, fields in {
        "FitAnswer": {"n_ok_total", "n_embeddings", "coreset_size", "checksum", "token_shape", "request_id", *rates},
        "CalibrateAnswer": {"threshold", "p99_ok", "p5_ng", "ok_mean", "ng_mean", "mm_per_px", "area_mm2_thr"},
        "InferAnswer": {"score", "threshold", "heatmap_png_base64", "regions", "token_shape", "params", "recipe_id"},
        "RegionAnswer": {"bbox", "x", "y", "w", "h", "area_px", "area_mm2", "contour"},
        "InferParams": {"extractor", "coreset_rate", "k", "p_score", "blur_sigma", "mm_per_px", "score_percentile"},
        "HealthAnswer": {"status", "device", "model", "version"},
    }.items():
        assert fields <= set(SCHEMAS[schema]["required"]), schema


def test_a_decision_is_ok_ng_or_null() -> None:
    options = SCHEMAS["InferAnswer"]["properties"]["decision"]["anyOf"]
    assert [option.get("enum", option.get("type")) for option in options] == [["ok", "ng"], "null"]


def test_the_ordered_endpoints_know_the_headers_of_the_client() -> None:
    for path, method in ORDERED.items():
        headers = {entry["name"].lower() for entry in OPERATIONS[f"{method.upper()} {path}"]["parameters"]}
        assert {"x-request-id", "x-recipe-id"} <= headers


def test_documentation_is_there_to_be_read_and_needs_no_internet(tmp_path: Path) -> None:
    with running_app(tmp_path / "models") as api:
        page = api.client.get("/docs")
        assert (page.status_code, page.headers["Content-Type"].split(";")[0]) == (200, "text/html")
        assert "/openapi.json" in page.text
        assert api.client.get("/openapi.json").json() == DOCUMENT
        scripts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert any(script.endswith("swagger-ui-bundle.js") for script in scripts)
        for script in scripts:
            assert script.startswith("/"), "a line PC has no internet"
            assert api.client.get(script).status_code == 200


def _body(path: str) -> dict[str, Any]:
    (content,) = OPERATIONS[f"POST {path}"]["requestBody"]["content"].values()
    schema: dict[str, Any] = SCHEMAS[content["schema"]["$ref"].rsplit("/", 1)[1]]
    return schema


def _form(path: str) -> dict[str, Any]:
    assert list(OPERATIONS[f"POST {path}"]["requestBody"]["content"]) == ["multipart/form-data"]
    return _body(path)
