"""What is refused over HTTP: the right status, the one error body, and nothing stored or changed by it."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.testkit.app import Api, answer_of, error_of, files_below, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import encoded, plate, plates

MAX_IMAGES = 5


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A fitted and calibrated ROI on a service that takes 1 MB and five images a call."""
    models = tmp_path_factory.mktemp("bad-input") / "models"
    with running_app(models, max_body_mb=1, max_images=MAX_IMAGES) as started:
        answer_of(started.fit(plates(range(4))))
        answer_of(started.calibrate())
        yield started


@pytest.fixture(autouse=True)
def untouched(api: Api) -> Iterator[None]:
    """Whatever a test here sends, every file and folder is as it was."""
    before = files_below(api.models)
    yield
    assert files_below(api.models) == before


# --- images -----------------------------------------------------------------------------------------------------------


@cache
def huge_png(edge_px: int) -> bytes:
    """Return a one-bit grey PNG of this many pixels a side: tens of kilobytes, whatever it would decode to."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (edge_px + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(edge_px)) + packer.flush()
    header = struct.pack(">IIBBBBB", edge_px, edge_px, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _saved(file_format: str, size: tuple[int, int] = (96, 96)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (90, 120, 60)).save(buffer, file_format)
    return buffer.getvalue()


def _with_a_flipped_bit(data: bytes) -> bytes:
    damaged = bytearray(data)
    damaged[len(damaged) // 2] ^= 0x10
    return bytes(damaged)


PNG, JPEG = encoded(plate(9)), encoded(plate(9), "JPEG")
BAD_IMAGES = {
    "empty": (b"", 400, "undecodable_image", "is empty"),
    "PNG without its second half": (PNG[: len(PNG) // 2], 400, "undecodable_image", "truncated"),
    "PNG without its last chunk": (PNG[:-12], 400, "undecodable_image", "truncated"),
    "PNG of 20 bytes": (PNG[:20], 400, "undecodable_image", "Send the ROI as PNG or JPEG"),
    "PNG with a flipped bit": (_with_a_flipped_bit(PNG), 400, "undecodable_image", "damaged"),
    "JPEG without its second half": (JPEG[: len(JPEG) // 2], 400, "undecodable_image", "truncated"),
    "JPEG without its end marker": (JPEG[:-2], 400, "undecodable_image", "truncated"),
    "text": (b"this is no image, whatever its name says", 400, "undecodable_image", "Send the ROI as PNG or JPEG"),
    "JSON": (b'{"image": 1}', 400, "undecodable_image", "Send the ROI as PNG or JPEG"),
    "GIF": (_saved("GIF"), 400, "undecodable_image", "Send the ROI as PNG or JPEG"),
    "one pixel": (_saved("PNG", (1, 1)), 400, "undecodable_image", "at least 8 px"),
    "one row": (_saved("PNG", (500, 1)), 400, "undecodable_image", "at least 8 px"),
    "7 px": (_saved("PNG", (7, 7)), 400, "undecodable_image", "at least 8 px"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_inspection_refuses_a_bad_image(api: Api, name: str) -> None:
    data, status, code, remedy = BAD_IMAGES[name]
    body = error_of(api.infer(data), status, code)
    assert remedy in body["error"]
    assert "part.png" in body["error"], "the file is named"


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize("roi_id", [ROI, "new-roi"])
def test_one_bad_image_among_good_ones_spoils_the_fit_and_nothing_is_stored(api: Api, name: str, roi_id: str) -> None:
    data, status, code, remedy = BAD_IMAGES[name]
    body = error_of(api.fit([*plates([20, 21]), data, *plates([22])], roi_id=roi_id), status, code)
    assert remedy in body["error"]
    assert "good-2.png" in body["error"], "the bad one is named, not a good one"


@pytest.mark.parametrize("edge_px", [6400, 20_000])
@pytest.mark.parametrize("endpoint", ["fit", "infer"])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    api: Api, monkeypatch: pytest.MonkeyPatch, endpoint: str, edge_px: int
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    data = huge_png(edge_px)
    assert len(data) < 100_000
    with monkeypatch.context() as patched:
        patched.setattr("backend.imaging.image_codec.cv2.imdecode", decode)
        response = api.infer(data) if endpoint == "infer" else api.fit([data])
    assert "Send the ROI, not the whole scene" in error_of(response, 413, "too_large")["error"]


def test_the_image_must_be_a_file(api: Api) -> None:
    form = {"role_id": ROLE, "roi_id": ROI, "mm_per_px": "0.2"}
    for path, field in (("/infer", "image"), ("/fit_ok", "images")):
        sent_as_text = error_of(api.client.post(path, data={**form, field: "abc"}), 422, "invalid_input")
        assert sent_as_text["error"].startswith(field)
        assert "file" in sent_as_text["error"]
        left_out = error_of(api.client.post(path, data=form), 422, "invalid_input")
        assert field in left_out["error"]
        assert left_out["details"]["field"] == field


def test_more_images_than_a_call_may_have_are_refused(api: Api) -> None:
    body = error_of(api.fit(plates(range(30, 30 + MAX_IMAGES + 1))), 413, "too_large")
    assert "6 images" in body["error"]
    assert "at most 5" in body["error"]
    assert "several calls" in body["error"]


def test_more_than_the_reader_of_forms_takes_is_refused_in_the_same_way(api: Api, tmp_path: Path) -> None:
    assert "1000" in error_of(api.fit([b"x"] * 1001), 413, "too_large")["error"]
    with running_app(tmp_path / "models") as without_limit:
        error_of(without_limit.infer(PNG, shape=" " * 2_000_000), 413, "too_large")


def test_part_ids_must_be_as_many_as_images(api: Api) -> None:
    body = error_of(api.fit(plates([20, 21]), part_id=["A"]), 422, "invalid_input")
    assert (body["details"]["field"], "1 part_id" in body["error"]) == ("part_id", True)


# --- fields of a form -------------------------------------------------------------------------------------------------

MM_PER_PX = ["0", "-0.2", "nan", "NaN", "inf", "Infinity", "-Infinity", "1e400", "1e-200", "101", "abc", "0,2", "", " "]
IDS = ["", "   ", "x" * 65, "x" * 300, "..", ".", "...", "../../etc", "a/b", "a\\b", "a\x00b", "a\nb", "\u202eabc"]


@pytest.mark.parametrize("endpoint", ["fit", "infer"])
def test_mm_per_px_must_be_a_positive_number(api: Api, endpoint: str) -> None:
    for value in MM_PER_PX:
        body = error_of(_send(api, endpoint, mm_per_px=value), 422, "invalid_input")
        assert body["error"].startswith("mm_per_px")
        assert body["details"]["field"] == "mm_per_px"


@pytest.mark.parametrize("endpoint", ["fit", "infer"])
def test_a_missing_field_is_named(api: Api, endpoint: str) -> None:
    for field in ("role_id", "roi_id", "mm_per_px"):
        body = error_of(_send(api, endpoint, **{field: None}), 422, "invalid_input")
        assert field in body["error"]
        assert body["details"]["field"] == field


@pytest.mark.parametrize("endpoint", ["fit", "infer", "calibrate"])
@pytest.mark.parametrize("field", ["role_id", "roi_id", "model_key"])
def test_an_id_that_cannot_name_a_folder_is_refused(api: Api, endpoint: str, field: str) -> None:
    for value in IDS[field == "model_key" :]:  # an empty model_key is the roi_id
        sent = {field: value}
        response = api.calibrate(**sent) if endpoint == "calibrate" else _send(api, endpoint, **sent)
        assert response.status_code == 422, value
        body = error_of(response, 422, response.json()["code"])
        assert body["code"] in ("invalid_input", "invalid_id")
        assert field in body["error"]
        assert body["details"]["field"] == field


@pytest.mark.parametrize(
    ("endpoint", "field", "value"),
    [
        ("infer", "heatmap", "maybe"),
        ("fit", "mode", "append"),
        ("fit", "memory_fit", "perhaps"),
        ("fit", "coreset_rate", "0"),
        ("fit", "coreset_rate", "1.01"),
        ("fit", "coreset_rate", "nan"),
        ("fit", "coreset_rate", "-1"),
    ],
)
def test_a_field_out_of_its_range_is_named_with_what_was_sent(api: Api, endpoint: str, field: str, value: str) -> None:
    body = error_of(_send(api, endpoint, **{field: value}), 422, "invalid_input")
    assert body["error"].startswith(field)
    assert value in body["error"]


def test_several_wrong_fields_are_all_named(api: Api) -> None:
    body = error_of(api.client.post("/infer", data={"roi_id": ROI, "mm_per_px": "0"}), 422, "invalid_input")
    assert set(body["details"]["fields"]) == {"role_id", "mm_per_px", "image"}
    assert all(field in body["error"] for field in ("role_id", "mm_per_px", "image"))


# --- shapes -----------------------------------------------------------------------------------------------------------

SHAPES = {
    "broken": ('{"kind":"circle"', 400, "bad_shape", "not valid JSON"),
    "array": ("[1,2,3]", 400, "bad_shape", "JSON object"),
    "no kind": ('{"cx":48,"cy":48,"r":20}', 400, "bad_shape", "rect, circle or annulus"),
    "unknown kind": ('{"kind":"polygon","points":[]}', 400, "bad_shape", "rect, circle or annulus"),
    "missing number": ('{"kind":"circle","cx":48,"cy":48}', 400, "bad_shape", "shape.r "),
    "number as text": ('{"kind":"circle","cx":"48","cy":48,"r":20}', 400, "bad_shape", "shape.cx"),
    "null for a number": ('{"kind":"rect","x":null,"y":0,"w":5,"h":5}', 400, "bad_shape", "shape.x"),
    "NaN": ('{"kind":"circle","cx":NaN,"cy":48,"r":20}', 400, "bad_shape", "shape.cx"),
    "overflow": ('{"kind":"circle","cx":48,"cy":48,"r":1e999}', 400, "bad_shape", "shape.r"),
    "integer of 400 digits": ('{"kind":"circle","cx":48,"cy":48,"r":' + "9" * 400 + "}", 400, "bad_shape", "shape.r"),
    "deep": ("[" * 2000 + "]" * 2000, 400, "bad_shape", "shape"),
    "wholly outside": ('{"kind":"circle","cx":500,"cy":48,"r":20}', 422, "shape_outside_image", "96×96"),
    "between two pixels": ('{"kind":"circle","cx":10.5,"cy":10.5,"r":0.1}', 422, "shape_outside_image", "96×96"),
    "negative height": ('{"kind":"rect","x":0,"y":0,"w":5,"h":-5}', 422, "invalid_input", "shape.h"),
    "inside out": ('{"kind":"annulus","cx":48,"cy":48,"r":20,"r_inner":30}', 422, "invalid_input", "shape.r_inner"),
    "5,000 characters": ('{"kind":"circle"' + " " * 5000 + "}", 422, "invalid_input", "shape"),
}


@pytest.mark.parametrize("endpoint", ["fit", "infer"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_that_means_nothing_is_refused(api: Api, endpoint: str, name: str) -> None:
    text, status, code, remedy = SHAPES[name]
    body = error_of(_send(api, endpoint, shape=text), status, code)
    assert remedy in body["error"]
    assert "shape" in body["error"]


# --- calibrations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "sent"),
    [
        ("score_percentile", "0"),
        ("score_percentile", "NaN"),
        ("score_percentile", '"many"'),
        ("ok_percentile", "0"),
        ("ok_scores", "[]"),
        ("ok_scores", '["0.2","high"]'),
        ("ok_scores", "[0.2,NaN]"),
        ("ok_scores", "[0.2,1e999]"),
        ("ok_scores", "[0.2,-0.1]"),
        ("ok_scores", '{"a":0.2}'),
        ("ng_scores", "[NaN]"),
        ("add_ok_scores", "[-1]"),
        ("add_ok_scores", "[0.3]"),  # not in a dry run
        ("add_ng_scores", '{"a":0.2}'),
        ("area_mm2_thr", "-1"),
        ("margin", "0.1"),
        ("score_mode", '"mean"'),
        ("mm_per_px", "0"),
        ("mm_per_px", '"fine"'),
        ("role_id", "5"),
    ],
)
def test_a_calibration_field_out_of_its_range_is_named(api: Api, field: str, sent: str) -> None:
    fields = {"role_id": '"Inspection"', "roi_id": '"inspection-1"', "ok_scores": "[0.2,0.3]", field: sent}
    text = "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"
    response = api.client.post("/calibrate_ng", content=text, headers={"Content-Type": "application/json"})
    assert response.status_code == 422, response.text
    body = error_of(response, 422, response.json()["code"])
    assert body["code"] in ("invalid_input", "invalid_scores")
    assert body["error"].startswith(field)
    assert body["details"]["field"].split(".")[0] == field


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b'{"role_id":', 400),
        (b"", 422),
        (b"not json", 400),
        (b"\xff\xfe\x00", 400),
        (b"[" * 100_000, 400),
        (b'{"role_id":"a","roi_id":"b","ok_scores":[' + b"1" * 5000 + b"]}", 400),
        (b"[]", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b"{}", 422),
    ],
    ids=["cut off", "empty", "no JSON", "no UTF-8", "deep", "5,000 digits", "array", "null", "text", "no field"],
)
def test_a_body_that_is_no_calibration_is_refused(api: Api, text: bytes, status: int) -> None:
    response = api.client.post("/calibrate_ng", content=text, headers={"Content-Type": "application/json"})
    error_of(response, status, "bad_request" if status == 400 else "invalid_input")


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("multipart/form-data", b"--x\r\n\r\n--x--"),
        ("multipart/form-data; boundary=x", b"no part at all"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\nnameless\r\n--x--\r\n"),
        ("application/json", b'{"role_id":"Inspection"}'),
        ("application/x-www-form-urlencoded", b"role_id=Inspection&roi_id=inspection-1&mm_per_px=0.2"),
        ("application/octet-stream", b"\x00\x01"),
        ("", b"abc"),
    ],
)
@pytest.mark.parametrize("path", ["/infer", "/fit_ok"])
def test_a_body_of_another_kind_is_refused(api: Api, path: str, content_type: str, content: bytes) -> None:
    response = api.client.post(path, content=content, headers={"Content-Type": content_type})
    assert response.status_code in (400, 415, 422), response.text
    error_of(response, response.status_code, response.json()["code"])


# --- before a fit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["role_id", "roi_id", "model_key", "recipe_id"])
def test_an_inspection_before_a_fit_tells_the_client_to_fit_first(api: Api, field: str) -> None:
    body = error_of(api.infer(PNG, **{field: "never-fitted"}), 400, "memory_not_found")
    assert "memory not found" in body["error"]
    assert "run /fit_ok first" in body["error"]


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/fit_ok", "/infer", "/calibrate_ng"])
@pytest.mark.parametrize("streamed", [False, True], ids=["with Content-Length", "in chunks"])
def test_a_body_over_the_limit_is_refused(api: Api, path: str, streamed: bool) -> None:
    form = (
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
        + bytes(1_100_000)
        + b"\r\n--x--\r\n"
    )
    if path == "/calibrate_ng":
        body, content_type = json.dumps({"ok_scores": [0.123456789] * 100_000}).encode(), "application/json"
    else:
        body, content_type = form, "multipart/form-data; boundary=x"
    assert len(body) > 1_000_000
    content: Any = (body[start : start + 65536] for start in range(0, len(body), 65536)) if streamed else body
    refused = error_of(api.client.post(path, content=content, headers={"Content-Type": content_type}), 413, "too_large")
    assert "1 MB" in refused["error"]


def test_a_body_at_the_limit_is_taken(api: Api) -> None:
    body = json.dumps({"role_id": ROLE, "roi_id": "never-fitted", "ok_scores": [0.2]}).encode().ljust(1_000_000)
    response = api.client.post("/infer", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422


# --- addresses and accidents ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/fit", "/infer/x", "/../etc/passwd", "/models/Inspection"])
def test_an_unknown_path_is_404(api: Api, path: str) -> None:
    assert "/docs" in error_of(api.client.get(path), 404, "not_found")["error"]


@pytest.mark.parametrize(
    ("accident", "status", "code"),
    [
        (RuntimeError("secret at /opt/place"), 500, "internal_error"),
        (KeyError("secret"), 500, "internal_error"),
        (OSError(28, "No space left", "/secret/file"), 503, "storage_full"),
    ],
)
@pytest.mark.parametrize("endpoint", ["fit", "infer", "calibrate"])
def test_an_accident_says_nothing_internal_and_the_log_has_it_under_the_request_id(
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    endpoint: str,
    accident: Exception,
    status: int,
    code: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise accident

    name = {"fit": "fit_ok", "infer": "infer", "calibrate": "calibrate"}[endpoint]
    with monkeypatch.context() as patched:
        patched.setattr(f"backend.services.inspection.InspectionService.{name}", fail)
        headers = {"X-Request-Id": "accident-1", "X-Recipe-Id": "winter"}
        if endpoint == "calibrate":
            response = api.calibrate(headers=headers)
        else:
            response = api.fit(plates([20]), headers=headers) if endpoint == "fit" else api.infer(PNG, headers=headers)
    body = error_of(response, status, code)
    assert "secret" not in response.text
    assert type(accident).__name__ not in response.text
    assert (body["request_id"], body["recipe_id"]) == ("accident-1", "winter")
    assert any(getattr(record, "request_id", "") == "accident-1" for record in caplog.records)
    assert "secret" in caplog.text


def test_the_service_works_on_after_all_of_this(api: Api) -> None:
    assert answer_of(api.infer(PNG))["decision"] == "ok"


def _send(api: Api, endpoint: str, **fields: Any) -> Any:
    return api.fit(plates([20]), **fields) if endpoint == "fit" else api.infer(PNG, **fields)


def test_the_huge_image_is_a_whole_one() -> None:
    with Image.open(io.BytesIO(huge_png(64))) as image:
        assert np.asarray(image).shape == (64, 64)
