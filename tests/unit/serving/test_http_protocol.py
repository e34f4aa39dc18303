"""Requests whose framing does not end, in bytes or in time, on a real socket."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from backend.serving import http_protocol
from backend.serving.http_protocol import MAX_FRAMING_BYTES, BoundedHttp

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the length of the body; at /slow after a while."""
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(length).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(http_protocol, "HEAD_S", 0.5)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(_echo, http=BoundedHttp, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    listener.close()
    assert not thread.is_alive()


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def _answer(connection: socket.socket) -> bytes:
    """Return what comes until the body of one answer is there, or the connection ends."""
    received = b""
    while not (b"\r\n\r\n" in received and received.partition(b"\r\n\r\n")[2]):
        try:
            some = connection.recv(1 << 16)
        except ConnectionError:
            break
        if not some:
            break
        received += some
    return received


ENDLESS = {
    "request line": (b"GET /", b"a" * 10_000),
    "headers": (HEAD, b"X: " + b"a" * 995 + b"\r\n"),
    "header": (HEAD + b"X: ", b"a" * 10_000),
    "name of a header": (HEAD, b"a" * 10_000),
    "trailers": (CHUNKED + b"1\r\na\r\n0\r\n", b"X: " + b"a" * 995 + b"\r\n"),
    "size of a chunk": (CHUNKED + b"1;", b"e" * 10_000),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_framing_without_end_is_refused_before_it_takes_memory(port: int, what: str) -> None:
    begin, endless = ENDLESS[what]
    sent = 0
    with _connected(port) as connection:
        connection.sendall(begin)
        try:
            while sent < 50 * MAX_FRAMING_BYTES:
                connection.sendall(endless)
                sent += len(endless)
        except ConnectionError:  # refused, and more was sent
            pass
    # What lies in the buffers of both sides was sent too; none of it was taken.
    assert sent < 50 * MAX_FRAMING_BYTES


def test_a_head_that_is_too_long_is_told_so(port: int) -> None:
    with _connected(port) as connection:
        connection.sendall(HEAD + b"X: " + b"a" * MAX_FRAMING_BYTES)
        assert _answer(connection).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("request_bytes", "length"),
    [
        (HEAD + b"X: " + b"a" * (MAX_FRAMING_BYTES - 200) + b"\r\nContent-Length: 0\r\n\r\n", 0),
        (HEAD + b"Content-Length: 300000\r\n\r\n" + b"b" * 300_000, 300_000),
        (CHUNKED + b"1\r\nb\r\n" * 60_000 + b"0\r\n\r\n", 60_000),
        (CHUNKED + b"%x\r\n%s\r\n" % (200_000, b"b" * 200_000) + b"0\r\nX: y\r\n\r\n", 200_000),
    ],
)
def test_what_is_well_formed_passes_and_so_does_what_follows_it(port: int, request_bytes: bytes, length: int) -> None:
    with _connected(port) as connection:
        for _ in range(3):
            connection.sendall(request_bytes)
            answer = _answer(connection)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert answer.endswith(b"\r\n\r\n%d" % length)


@pytest.mark.parametrize("begin", [b"", b"GET / HT", HEAD])
def test_a_connection_whose_head_never_comes_is_cut_off(port: int, begin: bytes) -> None:
    with _connected(port) as connection:
        started_s = time.monotonic()
        connection.sendall(begin)
        assert connection.recv(1000) == b""
        assert 0.4 < time.monotonic() - started_s < 5


def test_a_head_that_trickles_in_is_cut_off_too(port: int) -> None:
    with _connected(port) as connection:
        connection.settimeout(0.05)
        connection.sendall(HEAD + b"X: ")
        deadline, received = time.monotonic() + 5, None
        while received is None:
            assert time.monotonic() < deadline
            try:
                connection.sendall(b"a")
                received = connection.recv(1000)
            except TimeoutError:
                continue
            except ConnectionError:
                received = b""
    assert received == b""


def test_a_body_may_take_longer_than_a_head(port: int) -> None:
    with _connected(port) as connection:
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n")
        time.sleep(1.0)
        connection.sendall(b"ab")
        assert _answer(connection).endswith(b"\r\n\r\n2")


def test_nonsense_behind_a_pipeline_is_refused_and_no_failure_of_the_service(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with _connected(port) as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" * 2 + b"\0\0\r\n\r\n")
        assert _answer(connection).startswith(b"HTTP/1.1 400")
        time.sleep(1.0)  # the answers to both have nowhere to go
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
