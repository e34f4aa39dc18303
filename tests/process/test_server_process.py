"""The service as it is started in the field: real processes, real sockets, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from tests.testkit.app import REPOSITORY, answer_of, error_of
from tests.testkit.client import strict_json
from tests.testkit.fakes import plates
from tests.testkit.server import Server, running_server

ENTRIES = {
    "cd backend && uvicorn app:app": (["app:app"], REPOSITORY / "backend"),
    "uvicorn app:app --app-dir backend": (["app:app", "--app-dir", "backend"], REPOSITORY),
    "uvicorn backend.app:app": (["backend.app:app"], REPOSITORY),
}


@pytest.mark.parametrize("command", ENTRIES)
def test_each_way_to_start_the_service_starts_the_same_one(tmp_path: Path, command: str) -> None:
    arguments, cwd = ENTRIES[command]
    with running_server(tmp_path, *arguments, cwd=cwd) as server:
        health = answer_of(server.api.client.get("/health"))
        assert (health["device"], health["model"]) == ("cpu", "filter-bank")
        fitted = answer_of(server.api.fit(plates(range(3))))
        found = answer_of(server.api.infer(plates([9])[0]))
        assert found["params"]["memory_checksum"] == fitted["checksum"]
        assert answer_of(server.api.client.get("/health"))["status"] == "ok"
    assert sorted(path.name for path in (tmp_path / "models" / "Inspection" / "inspection-1").glob("*.npz"))
    assert "Traceback" not in server.log.read_text()


def test_a_restarted_process_goes_on_with_what_was_stored(tmp_path: Path) -> None:
    with running_server(tmp_path, "backend.app:app") as first:
        answer_of(first.api.fit(plates(range(4))))
        threshold = answer_of(first.api.calibrate())["threshold"]
        before = answer_of(first.api.infer(plates([9])[0]))
    with running_server(tmp_path, "backend.app:app") as second:
        after = answer_of(second.api.infer(plates([9])[0]))
        grown = answer_of(second.api.fit(plates([4])))
    assert after["threshold"] == threshold
    for field in ("score", "decision", "regions", "heatmap_png_base64"):
        assert after[field] == before[field], field
    assert (grown["n_ok_total"], grown["n_new"]) == (5, 1)


def test_without_weights_the_service_starts_and_says_how_to_get_them(tmp_path: Path) -> None:
    environment = {
        "BDI_EXTRACTOR": "dinov2",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "empty"),
        "HF_HUB_CACHE": str(tmp_path / "empty" / "hub"),
    }
    with running_server(tmp_path, "backend.app:app", environment=environment) as server:
        at_once = answer_of(server.api.client.get("/health"))
        assert at_once["status"] in ("starting", "degraded")
        body = error_of(server.api.fit(plates(range(2))), 503, "weights_unavailable")
        assert "BDI_WEIGHTS" in body["error"], "one remedy"
        assert "reach the Hugging Face hub" in body["error"], "and the other"
        health = answer_of(server.api.client.get("/health"))
        assert (health["status"], health["model"]) == ("degraded", "dinov2-vit-s/14")
        assert health["reason"] == body["error"]
        error_of(server.api.infer(plates([9])[0]), 400, "memory_not_found")
        assert not (tmp_path / "models" / "Inspection").exists()


def test_importing_the_application_does_nothing(tmp_path: Path) -> None:
    script = """
        import sys, threading
        import backend.app
        heavy = {"torch", "timm", "openvino", "sklearn", "matplotlib"} & set(sys.modules)
        assert not heavy, heavy
        assert threading.active_count() == 1, threading.enumerate()
        assert not hasattr(backend.app.app.state, "service")
    """
    environment = os.environ | {
        "BDI_MAX_BODY_MB": "not a number: read at start-up, not before",
        "BDI_MODELS_DIR": str(tmp_path / "models"),
    }
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_a_setting_out_of_its_range_stops_the_start_and_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"(?s)uvicorn ended with .*max_body_mb"),
        running_server(tmp_path, "backend.app:app", environment={"BDI_MAX_BODY_MB": "0"}),
    ):
        pass


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM")
def test_a_fit_in_flight_at_sigterm_is_finished_answered_and_stored(tmp_path: Path) -> None:
    with running_server(tmp_path, "backend.app:app") as server:
        form = {"role_id": "Inspection", "roi_id": "inspection-1", "mm_per_px": "0.2"}
        files = [("images", (f"{n}.png", data)) for n, data in enumerate(plates(range(3)))]
        request = httpx.Request("POST", "http://line-pc/fit_ok", data=form, files=files)
        body = request.read()
        head = (
            f"POST /fit_ok HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n"
            f"Content-Type: {request.headers['Content-Type']}\r\n\r\n"
        )
        with socket.create_connection((server.host, server.port), timeout=60) as connection:
            connection.sendall(head.encode())
            assert connection.recv(1024).startswith(b"HTTP/1.1 100")  # a route is reading the body
            connection.sendall(body[:1000])
            server.process.send_signal(signal.SIGTERM)
            _until(lambda: "Shutting down" in server.log.read_text())
            connection.sendall(body[1000:])
            response = HTTPResponse(connection)
            response.begin()
            answer = strict_json(response.read().decode())
        assert server.process.wait(30) in (0, -signal.SIGTERM)
    assert (response.status, answer["n_ok_total"]) == (200, 3)
    assert (tmp_path / "models" / "Inspection" / "inspection-1" / "memory.npz").is_file()
    assert "Traceback" not in server.log.read_text()


# --- the limit on the body, over a socket -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes 1 MB a call."""
    folder = tmp_path_factory.mktemp("limited")
    with running_server(folder, "backend.app:app", environment={"BDI_MAX_BODY_MB": "1"}) as started:
        yield started


@pytest.mark.parametrize("framing", ["Content-Length: 10000000000", "Transfer-Encoding: chunked"])
def test_a_body_without_end_is_refused_while_it_streams_in(server: Server, framing: str) -> None:
    head = (
        f"POST /fit_ok HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-Id: endless\r\n{framing}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        connection.sendall(head.encode() + _framed(part, framing))
        for _ in range(12):
            connection.sendall(_framed(bytes(100_000), framing))
        response = HTTPResponse(connection)
        response.begin()  # 1.2 MB of 10 GB were sent; the answer is here
        body = strict_json(response.read().decode())
    assert (response.status, body["code"], body["request_id"]) == (413, "too_large", "endless")
    assert not (server.api.models / "Inspection").exists()
    assert answer_of(server.api.client.get("/health"))["status"] == "ok"


def test_a_client_that_sends_all_of_a_large_body_before_it_reads_gets_the_answer_too(server: Server) -> None:
    body = error_of(server.api.fit([bytes(8_000_000)]), 413, "too_large")
    assert "1 MB" in body["error"]
    answer_of(server.api.client.get("/health"))


def test_a_client_that_hangs_up_in_the_middle_leaves_nothing_behind(server: Server) -> None:
    head = (
        "POST /fit_ok HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    )
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        connection.sendall(head.encode() + bytes(1000))
    assert answer_of(server.api.client.get("/health"))["status"] == "ok"
    assert not (server.api.models / "Inspection").exists()
    assert "Traceback" not in server.log.read_text()


def test_numbers_that_json_does_not_know_are_refused_over_the_socket_as_well(server: Server) -> None:
    text = json.dumps({"role_id": "a", "roi_id": "b", "ok_scores": [float("nan")]})
    response = server.api.client.post("/calibrate_ng", content=text, headers={"Content-Type": "application/json"})
    error_of(response, 422, "invalid_input")


def _framed(data: bytes, framing: str) -> bytes:
    return data if framing.startswith("Content-Length") else b"%x\r\n%s\r\n" % (len(data), data)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
