"""Requests that only a socket can send: refusals before a body has come, and addresses with a slash at their end."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.client import HTTPResponse

import pytest

from backend.settings import Settings
from tests.testkit.client import Client, Part, dotnet_form, fields, image, png
from tests.testkit.fakes import FakeExtractor
from tests.testkit.server import running

KEY = "inspect-only-0123456789"
ADMIN_KEY = "administration-0123456789"
KNOWN = {"X-API-Key": ADMIN_KEY}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A service with keys, on a real socket, that takes bodies of 1 MB."""
    settings = Settings(
        models_dir=tmp_path_factory.mktemp("sockets") / "models",
        api_keys=f"inspect:{KEY},admin:{ADMIN_KEY}",
        max_body_mb=1,
    )
    with running(settings, FakeExtractor()) as client:
        client.fit([png(seed) for seed in range(3)], headers=KNOWN).ok()
        yield client


def head_of(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: a", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


REFUSED = {
    "too large": ("POST", "/infer", {**KNOWN, "Content-Length": "2000000"}, 413),
    "no key": ("POST", "/infer", {"Content-Length": "100"}, 401),
    "wrong key": ("POST", "/infer", {"X-API-Key": "nobody-0123456789abc", "Content-Length": "100"}, 401),
    "not allowed": ("POST", "/fit_ok", {"X-API-Key": KEY, "Content-Length": "100"}, 403),
    "another site": ("POST", "/infer", {**KNOWN, "Origin": "http://elsewhere", "Content-Length": "100"}, 403),
    "no such address": ("POST", "/nothing", {**KNOWN, "Content-Length": "100"}, 404),
    "no such method": ("PUT", "/infer", {**KNOWN, "Content-Length": "100"}, 405),
    "no form": ("POST", "/infer", {**KNOWN, "Content-Type": "application/json", "Content-Length": "100"}, 422),
    "no JSON": ("POST", "/calibrate_ng", {**KNOWN, "Content-Type": "text/plain", "Content-Length": "100"}, 422),
    "twice": ("POST", "/infer?role_id=a", {**KNOWN, "Content-Type": "text/plain", "Content-Length": "100"}, 422),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_refusal_before_the_body_was_asked_for_ends_the_connection(server: Client, why: str) -> None:
    method, path, headers, status = REFUSED[why]
    if "Content-Type" not in headers:
        headers = {**headers, "Content-Type": "multipart/form-data; boundary=x"}
    with socket.create_connection((server.host, server.port), timeout=20) as connection:
        connection.sendall(head_of(method, path, {**headers, "Expect": "100-continue"}))
        response = HTTPResponse(connection, method=method)
        response.begin()
        body = json.loads(response.read())
        assert (response.status, response.headers["Connection"]) == (status, "close"), body
        assert body["error"]
        assert connection.recv(1000) == b"", "and the service closes it"


def test_a_body_that_was_asked_for_is_read_and_the_connection_stays(server: Client) -> None:
    body, content_type = dotnet_form([*fields({**server.roi, "mm_per_px": 0.2}), image(png(7), name="image")])
    headers = {**KNOWN, "Content-Type": content_type, "Content-Length": str(len(body)), "Expect": "100-continue"}
    with socket.create_connection((server.host, server.port), timeout=20) as connection:
        for _ in range(2):
            connection.sendall(head_of("POST", "/infer", headers))
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")
            connection.sendall(body)
            response = HTTPResponse(connection)
            response.begin()
            assert response.status == 200, response.read()
            assert response.headers["Connection"] is None
            response.read()


@pytest.mark.parametrize("slashes", ["/", "//"])
def test_a_slash_at_the_end_of_an_address_makes_no_difference(server: Client, slashes: str) -> None:
    parts: list[Part] = [*fields({**server.roi, "mm_per_px": 0.2}), image(png(7), name="image")]
    form, plain = server.form("/infer" + slashes, parts, headers=KNOWN), server.form("/infer", parts, headers=KNOWN)
    assert form.ok()["score"] == plain.ok()["score"]
    assert server.post(f"/calibrate_ng{slashes}", {**server.roi}, headers=KNOWN).ok()["threshold"] > 0
    assert server.about(f"/state{slashes}", headers=KNOWN).ok()["memory_fitted"] is True
    assert server.get(f"/health{slashes}").ok()["status"] == "ok"
    assert server.get(f"/docs{slashes}", headers=KNOWN).status == 200
    for method, path in (("OPTIONS", "/infer"), ("OPTIONS", "/state"), ("HEAD", "/health"), ("OPTIONS", "/docs")):
        with_slash, without = (server.send(method, path + end, headers=KNOWN) for end in (slashes, ""))
        assert (with_slash.status, with_slash.headers["Allow"]) == (without.status, without.headers["Allow"])
    assert server.about(f"/state{slashes}").status == 401, "a key is needed as without"
    assert server.get(f"/nothing{slashes}", headers=KNOWN).status == 404
    assert server.get("/", headers=KNOWN).status == 404
