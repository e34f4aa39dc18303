"""Every endpoint and every field that the published client sends and reads, over real sockets.

An answer is read as System.Text.Json reads it into the client's classes: an ``int`` is a number without a point, within
32 bits; a ``double`` is a number and not null; a name that is missing or null is only for what may be null.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backend.app import create_app
from tests.testkit.client import Client, Part, Reply, dotnet_form, fields, image, png, text
from tests.testkit.fakes import defective_image, encoded

_FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures" / "dotnet"
_GUID = "8f0c6d0e-6d2e-4f0a-9a53-0d5f5c3f6b11"
_DOCUMENT: dict[str, Any] = create_app().openapi()
_OPERATIONS = [(method, path) for path, methods in _DOCUMENT["paths"].items() for method in methods]


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
    "score_mode": "string",
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
            "warnings": "string[]",
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
        "DELETE /recipes": "not called by the client; test_recipes",
        "POST /refit": "not called by the client; test_refit",
        "GET /versions": "test_versions",
        "POST /versions/activate": "test_versions",
        "POST /versions/compare": "test_version_comparison",
        "GET /jobs/{job_id}": "test_jobs_http",
        "DELETE /jobs/{job_id}": "test_jobs_http",
        "GET /metrics": "not JSON",
        "GET /datasets/preview": "bytes; test_stored_image_views",
        "GET /scores/map": "bytes; test_stored_image_views",
        "POST /datasets/exclude": "test_stored_image_views",
        "GET /jobs": "test_upkeep",
        "GET /storage": "test_upkeep",
        "POST /verify": "test_upkeep",
        "GET /backup": "bytes; test_upkeep",
        "POST /restore": "test_upkeep",
        "GET /audit": "test_audit",
        "GET /audit/{entry_id}/regions": "test_audit",
        "GET /audit/{entry_id}/{view}": "bytes; test_audit",
        "GET /overview": "not called by the client; test_history",
        "GET /decisions": "not called by the client; test_history",
        "GET /stats": "not called by the client; test_history",
        "GET /scores": "not called by the client; test_scores",
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


def test_a_whole_percentile_is_written_without_a_point(client: Client) -> None:
    client.fit([png(1), png(2)]).ok()
    for percentile in (99, 99.0, 97.5, 100):
        written = f'"score_percentile":{percentile:g},'.encode()
        assert written in client.calibrate(score_percentile=percentile).body
        assert written in client.about("/manifest").body


def test_memory_fit_keeps_every_embedding_however_it_is_spelled(client: Client) -> None:
    for spelling in ("true", "True", "TRUE", "1"):
        answer = client.fit([png(1), png(2)], memory_fit=spelling).ok()
        assert answer["coreset_size"] == answer["n_embeddings"] == 128
        assert answer["coreset_rate_requested"] == answer["coreset_rate_applied"] == 1.0
    for spelling in ("false", "False"):
        answer = client.fit([png(1), png(2)], memory_fit=spelling).ok()
        assert answer["coreset_size"] < answer["n_embeddings"] == 128


def test_a_model_key_is_echoed_and_names_a_model_of_its_own(client: Client) -> None:
    key = {"model_key": "second"}
    for reply in (
        client.fit([png(1), png(2)], **key),
        client.calibrate(ok_scores=[0.5], **key),
        client.infer(png(5), **key),
        client.about("/state", **key),
        client.about("/manifest", **key),
        client.dataset("/calibrate_dataset", **key),
        client.dataset("/infer_dataset", **key),
    ):
        assert reply.ok()["model_key"] == "second"
    assert client.about("/state").ok()["memory_fitted"] is False
    assert client.infer(png(1)).status == 400
    folder = client.models_dir / client.role_id / client.roi_id
    assert (folder / "keys" / "second" / "memory.npz").is_file()
    assert not (folder / "memory.npz").exists()
