"""Requests of .NET's HttpClient, byte for byte as it sent them, against a real server.

Their form is its own: a quoted boundary, unquoted field names, Content-Type before Content-Disposition, file names in
RFC 2047 beside RFC 5987, and in ``seed.http`` an image part without any Content-Type.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.testkit.app import heatmap_of
from tests.testkit.client import strict_json
from tests.testkit.fakes import encoded, plate
from tests.testkit.server import Server, running_server

CAPTURED = Path(__file__).parents[2] / "tests" / "fixtures" / "dotnet"
GUID = "8f0c6d0e-6d2e-4f0a-9a53-0d5f5c3f6b11"
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("dotnet"), "backend.app:app") as started:
        yield started


@pytest.fixture(scope="module")
def fitted(server: Server) -> tuple[int, dict[str, Any]]:
    """The answer to the captured fit."""
    return send(server, captured("fit"))


def captured(name: str, *, recipe: str | None = None, image: bytes | None = None) -> bytes:
    """Return a captured request; with a recipe header put in, or with its image part replaced."""
    head, body = (CAPTURED / f"{name}.http").read_bytes().split(b"\r\n\r\n", 1)
    if image is not None:
        start, end = body.index(PNG_START), body.index(PNG_END) + len(PNG_END)
        body = body[:start] + image + body[end:]
        head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head)
    if recipe is not None:
        head += b"\r\nX-Recipe-Id: " + recipe.encode()
    return head + b"\r\n\r\n" + body


def send(server: Server, request: bytes) -> tuple[int, dict[str, Any]]:
    status, _, body = _exchange(server, request)
    return status, body


def _exchange(server: Server, request: bytes) -> tuple[int, HTTPMessage, dict[str, Any]]:
    with socket.create_connection((server.host, server.port), timeout=60) as connection:
        connection.sendall(request)
        response = HTTPResponse(connection)
        response.begin()
        body = strict_json(response.read().decode("utf-8"))
    return response.status, response.headers, body


@pytest.mark.parametrize("name", ["calib", "fit", "infer", "seed"])
def test_the_captured_requests_are_as_they_were(name: str) -> None:
    head, body = captured(name).split(b"\r\n\r\n", 1)
    assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"


@pytest.mark.parametrize("name", ["seed", "infer"])
def test_an_inspection_before_the_fit_is_told_apart_by_its_text(server: Server, name: str) -> None:
    status, body = send(server, captured(name, recipe="unfitted"))
    assert status == 400
    assert isinstance(body["error"], str)
    assert "memory not found" in body["error"]
    assert "run /fit_ok first" in body["error"]


def test_a_calibration_before_the_fit_is_told_apart_by_its_text(server: Server) -> None:
    status, body = send(server, captured("calib", recipe="unfitted"))
    assert (status, body["code"]) == (400, "memory_not_found")
    assert "run /fit_ok first" in body["error"]


def test_the_captured_fit_is_learned(fitted: tuple[int, dict[str, Any]]) -> None:
    status, body = fitted
    assert status == 200, body
    assert (body["role_id"], body["roi_id"], body["model_key"]) == ("Inspection", "inspection-1", "inspection-1")
    assert body["n_new"] + body["n_duplicates"] == captured("fit").count(PNG_START)
    for field in ("n_ok_total", "n_embeddings", "coreset_size"):
        assert type(body[field]) is int
        assert 0 < body[field] < 2**31
    assert body["coreset_rate_requested"] == 0.02, "memory_fit=false"


@pytest.mark.usefixtures("fitted")
def test_the_captured_inspection_is_answered_in_numbers(server: Server) -> None:
    status, body = send(server, captured("seed"))
    assert status == 200, body
    assert type(body["score"]) is float
    assert body["threshold"] is None or type(body["threshold"]) is float
    assert heatmap_of(body).shape == (48, 48)
    assert type(body["params"]["mm_per_px"]) is float


@pytest.mark.usefixtures("fitted")
def test_the_captured_ring_lies_outside_of_the_captured_image_and_is_refused(server: Server) -> None:
    """``infer.http`` sends the ring of a 384 px ROI with a 48 px image: it covers none of its pixels."""
    status, body = send(server, captured("infer"))
    assert (status, body["code"]) == (422, "shape_outside_image")
    assert "48×48" in body["error"]


@pytest.mark.usefixtures("fitted")
def test_the_guid_of_the_client_comes_back_in_header_and_body(server: Server) -> None:
    _, headers, body = _exchange(server, captured("infer"))
    assert headers["X-Request-Id"] == body["request_id"] == GUID
    assert headers["Content-Type"].split(";")[0] == "application/json"


@pytest.mark.usefixtures("fitted")
def test_the_captured_calibration_sets_the_threshold_that_the_inspection_uses(server: Server) -> None:
    send(server, captured("fit", recipe="calibrated"))
    status, body = send(server, captured("calib", recipe="calibrated"))
    assert status == 200, body
    assert (body["threshold"], body["p99_ok"], body["p5_ng"]) == (0.24, 0.24, None)
    for field in ("threshold", "ok_mean", "ng_mean", "score_percentile", "area_mm2_thr", "mm_per_px"):
        assert type(body[field]) in (int, float), f"System.Text.Json reads {field} as a number"
    status, found = send(server, captured("seed", recipe="calibrated"))
    assert (status, found["threshold"], found["recipe_id"]) == (200, 0.24, "calibrated")
    assert found["decision"] == ("ng" if found["score"] > 0.24 else "ok")


def test_the_same_requests_work_with_images_of_384_px(server: Server) -> None:
    images = [encoded(plate(seed, (384, 384))) for seed in range(3)]
    for image in images:
        status, fitted = send(server, captured("fit", recipe="large", image=image))
        assert status == 200, fitted
    assert fitted["n_ok_total"] >= 3
    status, body = send(server, captured("calib", recipe="large"))
    assert status == 200, body
    for name in ("seed", "infer"):
        status, found = send(server, captured(name, recipe="large", image=images[0]))
        assert status == 200, found
        assert heatmap_of(found).shape == (384, 384)
        assert found["threshold"] == body["threshold"]
        assert found["params"]["scoring"] == "leave_one_out"
    ring = heatmap_of(found)
    assert not ring[192, 192]
    assert ring[192, 192 + 120]


@pytest.mark.usefixtures("fitted")
def test_several_requests_go_over_one_connection(server: Server) -> None:
    with socket.create_connection((server.host, server.port), timeout=60) as connection:
        for name, expected in (("seed", 200), ("infer", 422), ("calib", 200), ("seed", 200)):
            connection.sendall(captured(name))
            response = HTTPResponse(connection)
            response.begin()
            strict_json(response.read().decode())
            assert response.status == expected


def test_the_client_probes_with_options(server: Server) -> None:
    for path in ("/fit_ok", "/infer", "/calibrate_ng", "/state", "/manifest"):
        request = f"OPTIONS {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        with socket.create_connection((server.host, server.port), timeout=60) as connection:
            connection.sendall(request)
            response = HTTPResponse(connection, method="OPTIONS")
            response.begin()
            assert response.status != 404, path
