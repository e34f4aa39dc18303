"""Requests whose framing does not end, in bytes or in time, on a real socket."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import pytest
import uvicorn

from backend.serving.http_protocol import H11WithHeadTimeout

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
MUCH = 20_000_000
"""More than the buffers of both sides hold."""


class Recording(H11WithHeadTimeout):
    reads: ClassVar[list[int]] = []

    def data_received(self, data: bytes) -> None:
        self.reads.append(len(data))
        super().data_received(data)


class Hasty(H11WithHeadTimeout):
    head_timeout_s = 1.0


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the length of the body; at /SECONDS after so long."""
    await asyncio.sleep(float(scope["path"][1:] or 0))
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(length).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def _serving(http: type[H11WithHeadTimeout]) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(_echo, http=http, loop="asyncio", lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    listener.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with _serving(H11WithHeadTimeout) as served:
        yield served


@pytest.fixture(scope="module")
def hasty_port() -> Iterator[int]:
    with _serving(Hasty) as served:
        yield served


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def _until_the_end(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes the connection."""
    received = b""
    try:
        while some := connection.recv(1 << 16):
            received += some
    except ConnectionError:
        pass
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
            while sent < MUCH:
                connection.sendall(endless)
                sent += len(endless)
        except ConnectionError:  # refused, and more was sent
            pass
    assert sent < MUCH


@pytest.mark.parametrize(
    ("request_bytes", "length"),
    [
        (HEAD + b"X: " + b"a" * 10_000 + b"\r\nContent-Length: 0\r\n\r\n", 0),
        (HEAD + b"Content-Length: 300000\r\n\r\n" + b"b" * 300_000, 300_000),
        (CHUNKED + b"1\r\nb\r\n" * 10_000 + b"0\r\n\r\n", 10_000),
        (CHUNKED + b"%x\r\n%s\r\n" % (200_000, b"b" * 200_000) + b"0\r\nX: y\r\n\r\n", 200_000),
    ],
)
def test_what_is_well_formed_passes_and_so_does_what_follows_it(port: int, request_bytes: bytes, length: int) -> None:
    with _connected(port) as connection:
        connection.sendall(request_bytes * 2 + request_bytes.replace(HEAD, HEAD + b"Connection: close\r\n"))
        assert _until_the_end(connection).count(b"\r\n\r\n%d" % length) == 3


def test_a_large_body_is_read_in_small_pieces_between_which_others_have_their_turn() -> None:
    with _serving(Recording) as port, _connected(port) as connection:
        connection.sendall(HEAD + b"Connection: close\r\nContent-Length: 2000000\r\n\r\n" + bytes(2_000_000))
        assert _until_the_end(connection).endswith(b"2000000")
    assert max(Recording.reads) <= 65_536  # what asyncio reads on Windows


def test_a_connection_whose_head_never_comes_is_closed(hasty_port: int) -> None:
    with ExitStack() as stack:
        opened = []
        for before in (b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"):
            for begin in (b"", b"GET / HT", HEAD):
                connection = stack.enter_context(_connected(hasty_port))
                connection.sendall(before + begin)
                opened.append((connection, bool(before)))
        for connection, is_answered in opened:
            assert _until_the_end(connection).count(b"HTTP/1.1 200") == is_answered


def test_a_head_that_trickles_in_is_cut_off_too(hasty_port: int) -> None:
    with _connected(hasty_port) as connection:
        connection.sendall(HEAD + b"X: ")
        connection.settimeout(0.05)
        for _ in range(1000):
            try:
                connection.sendall(b"a")
                assert connection.recv(1000) == b""
                return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    raise AssertionError("the connection is still open")


def test_an_answer_may_take_longer_than_a_head(hasty_port: int) -> None:
    with _connected(hasty_port) as connection:
        connection.sendall(b"GET /2.5 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert _until_the_end(connection).endswith(b"\r\n\r\n0")


def test_nonsense_behind_a_pipeline_is_refused_and_no_failure_of_the_service(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with _connected(port) as connection:
        connection.sendall(b"GET /0.2 HTTP/1.1\r\nHost: a\r\n\r\n" * 2 + b"\0\0\r\n\r\n")
        statuses = re.findall(rb"HTTP/1\.1 (\d+)", _until_the_end(connection))
    assert statuses == [b"200", b"200", b"400"]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    ("request_bytes", "answers"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1),
        (b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n", 1),
        (HEAD + b"Content-Length: 300000\r\n\r\n" + b"b" * 300_000, 1),
        (HEAD.replace(b"/", b"/0.5", 1) + b"Content-Length: 5\r\n\r\nabcde", 1),
        (b"GET /0.2 HTTP/1.1\r\nHost: a\r\n\r\n" * 3, 3),
        (b"GET /0.2 HTTP/1.1\r\nHost: a\r\n\r\n" + HEAD + b"Content-Length: 5\r\n\r\nab", 1),
        (HEAD + b"Content-Length: 5\r\n\r\nab", 0),
        (HEAD, 0),
        (b"", 0),
    ],
    ids=[
        "short",
        "slow",
        "body",
        "slow with a body",
        "pipeline",
        "pipeline that breaks off",
        "part",
        "head",
        "nothing",
    ],
)
def test_a_client_that_has_closed_its_side_is_answered_what_it_asked_in_full(
    port: int, request_bytes: bytes, answers: int
) -> None:
    with _connected(port) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        assert _until_the_end(connection).count(b"HTTP/1.1 200") == answers
