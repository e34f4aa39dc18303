"""How long a request may take and an upload may pause, over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from pathlib import Path

import pytest

from backend.deadlines import DEADLINE_S, end_if_late, remaining_s
from backend.errors import RequestTimeout
from backend.settings import Settings
from tests.testkit.client import Client, fields, image, png, strict_json
from tests.testkit.fakes import FakeExtractor
from tests.testkit.server import running

FOREVER_S = 600.0


class Slow(FakeExtractor):
    """Takes ``seconds`` for each image, and begins none while ``gate`` is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.gate = threading.Event()
        self.gate.set()

    def extract_batch(self, images):
        assert self.gate.wait(FOREVER_S)
        time.sleep(self.seconds * len(images))
        return super().extract_batch(images)


@pytest.fixture
def extractor() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.seconds = 0.0
    slow.gate.set()


@pytest.fixture
def start(tmp_path: Path, extractor: Slow) -> Iterator[Callable[..., Client]]:
    """Return what starts the service with these limits, s; none is one that a test could reach."""
    with ExitStack() as stack:

        def started(*, pause_s: float = FOREVER_S, request_s: float = FOREVER_S) -> Client:
            settings = Settings(models_dir=tmp_path / "models", body_timeout_s=pause_s, request_timeout_s=request_s)
            return stack.enter_context(running(settings, extractor))

        yield started
        extractor.gate.set()


def stalled(client: Client, sent: bytes = b"only this", path: str = "/fit_ok") -> socket.socket:
    connection = socket.create_connection((client.host, client.port), timeout=60)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x"
    )
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    connection.sendall(head.encode() + b"\r\n\r\n" + part + sent)
    return connection


def answer_on(connection: socket.socket) -> tuple[int, dict[str, object]]:
    response = HTTPResponse(connection)
    response.begin()
    return response.status, strict_json(response.read().decode())


def in_flight(client: Client) -> float:
    text = client.get("/metrics").body.decode()
    return float(text.split("\nbdi_requests_in_flight ")[1].split("\n")[0])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("path", ["/fit_ok", "/infer", "/calibrate_ng", "/datasets/ok/upload"])
def test_an_upload_that_stalls_is_refused_while_it_stalls(start: Callable[..., Client], path: str) -> None:
    client, began = start(pause_s=0.2), time.monotonic()
    with stalled(client, path=path) as connection:
        status, body = answer_on(connection)
        assert time.monotonic() - began >= 0.2
        assert (status, body["code"]) == (408, "body_timeout")
        assert str(body["error"]).endswith("again.")
        assert connection.recv(1) == b"", "the connection is closed, it cannot be used for another request"


def test_an_upload_that_trickles_has_only_the_time_of_a_request(start: Callable[..., Client]) -> None:
    client, began, received = start(request_s=1.0), time.monotonic(), b""
    with stalled(client) as connection:
        connection.settimeout(0.05)
        while not received:
            connection.sendall(b"x")
            with suppress(TimeoutError):
                received = connection.recv(4096)
    assert received.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began >= 1.0


def test_a_slow_upload_that_does_not_stall_is_taken(start: Callable[..., Client]) -> None:
    client = start(pause_s=2.0)
    parts = [*fields({**client.roi, "mm_per_px": 0.2}), image(png(1))]
    body = b"".join(b"--x\r\n" + part.to_bytes() + b"\r\n" for part in parts) + b"--x--\r\n"
    head = f"POST /fit_ok HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((client.host, client.port), timeout=60) as connection:
        connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n")
        for begin in range(0, len(body), len(body) // 4 + 1):
            time.sleep(0.6)  # longer in all than one pause may be
            connection.sendall(body[begin : begin + len(body) // 4 + 1])
        assert answer_on(connection)[0] == 200


def test_clients_that_stall_give_back_what_they_hold(start: Callable[..., Client]) -> None:
    client = start(pause_s=0.5)
    client.fit([png(1), png(2)]).ok()
    threads = threading.active_count()
    for _ in range(3):
        connections = [stalled(client, bytes(100_000)) for _ in range(40)]
        client.infer(png(3)).ok()
        assert [answer_on(connection)[0] for connection in connections] == [408] * 40
        for connection in connections:
            connection.close()
        until(lambda: in_flight(client) == 1)  # the one that asks
    assert threading.active_count() <= threads + 2


def test_an_inspection_that_waits_too_long_for_the_device_is_given_up(
    start: Callable[..., Client], extractor: Slow
) -> None:
    client = start(request_s=2.0)
    client.fit([png(1), png(2)]).ok()
    extractor.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda seed: client.infer(png(seed)), (5, 6, 7)))
    assert [reply.ok(503)["code"] for reply in replies] == ["request_timeout"] * 3
    done_before = len(extractor.calls)
    extractor.gate.set()
    assert client.infer(png(8)).ok()["score"] >= 0
    assert len(extractor.calls) - done_before <= 2, "what was given up is not computed any more"


def test_a_fit_that_takes_too_long_is_ended_and_stores_nothing(start: Callable[..., Client], extractor: Slow) -> None:
    client = start(request_s=1.0)
    extractor.seconds = 0.2
    body = client.fit([png(seed) for seed in range(12)]).ok(503)
    assert body["code"] == "request_timeout"
    assert "Prefer: respond-async" in body["error"]
    extractor.seconds = 0.0
    assert client.about("/state").ok()["memory_fitted"] is False


def test_a_fit_in_the_background_has_no_limit(start: Callable[..., Client], extractor: Slow) -> None:
    client = start(request_s=1.0)
    extractor.seconds = 0.2
    job = client.fit([png(seed) for seed in range(6)], headers={"Prefer": "respond-async"}).ok(202)
    assert client.wait_for_job(job["job_id"])["state"] == "done"


def test_an_inspected_data_set_that_takes_too_long_is_ended(start: Callable[..., Client], extractor: Slow) -> None:
    client = start(request_s=3.0)
    client.upload("ok", [png(seed) for seed in range(10)]).ok()
    client.fit(use_dataset=True).ok()
    extractor.seconds = 0.5
    assert client.dataset("/infer_dataset").ok(503)["code"] == "request_timeout"


def test_without_a_request_nothing_limits_the_work() -> None:
    assert remaining_s() is None
    end_if_late(1, 2)


def test_what_is_left_is_never_negative_and_late_is_late() -> None:
    token = DEADLINE_S.set(time.monotonic() + 50)
    try:
        assert 49 < (remaining_s() or 0) <= 50
        end_if_late(1, 2)
        DEADLINE_S.set(time.monotonic() - 1)
        assert remaining_s() == 0.0
        with pytest.raises(RequestTimeout, match="respond-async"):
            end_if_late(1, 2)
    finally:
        DEADLINE_S.reset(token)
