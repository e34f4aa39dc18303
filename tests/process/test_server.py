"""How ``roi-inspector serve`` starts and ends: real processes, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path

import pytest

from tests.testkit.app import SMALL_INPUT_PX
from tests.testkit.client import Client, Reply, fields, image, png
from tests.testkit.server import Process

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM")

# The real command over an extractor that waits for a file before it looks at an image on demand.
_SERVE = """
import sys, threading, time
from pathlib import Path
from backend import cli, wiring
from backend.extractors.filter_bank import FilterBankFeatures

hold = Path(sys.argv[1])

class Slow(FilterBankFeatures):
    def extract_batch(self, images):
        while hold.exists():
            (hold.parent / "held").touch()
            time.sleep(0.02)
        return super().extract_batch(images)

wiring.make_extractor = lambda settings: (Slow(input_size=settings.input_size), None)
if sys.argv[2:]:
    import uvicorn
    uvicorn.main(["backend.app:app", *sys.argv[2:]])
sys.exit(cli.main(["serve"]))
"""


_PLAIN = ("--host", "127.0.0.1", "--timeout-graceful-shutdown", "1")


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    client: Client
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def hold(self) -> None:
        (self.folder / "hold").touch()

    def let_go(self) -> None:
        (self.folder / "hold").unlink()

    def wait_until_held(self) -> None:
        _until((self.folder / "held").exists)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def serving(folder: Path, *, plain: bool = False, **settings: object) -> Iterator[Running]:
    """Run ``roi-inspector serve``, or plain uvicorn as ``make serve`` does."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    chosen = {"models_dir": folder / "models", "input_size": SMALL_INPUT_PX, "backend_port": port, **settings}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BDI_")}
    environment |= {f"BDI_{name.upper()}": str(value) for name, value in chosen.items()}
    plainly = [*_PLAIN, "--port", str(port)] if plain else []
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(folder / "hold"), *plainly],
            cwd=Path(__file__).parents[2], env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    running = Running(process, Client("127.0.0.1", port, folder / "models"), folder)
    try:
        _until(lambda: _status(running) == "ok")
        yield running
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _status(running: Running) -> str | None:
    assert running.process.poll() is None, running.log
    try:
        return str(running.client.get("/health").json["status"])
    except OSError:
        return None


def _until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _in_background(call: Callable[[], Reply]) -> tuple[threading.Thread, list[Reply]]:
    found: list[Reply] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    return thread, found


def test_what_is_being_inspected_is_answered_and_new_work_is_refused_meanwhile(tmp_path: Path) -> None:
    with serving(tmp_path, shutdown_s=600) as running:
        running.client.fit([png(seed) for seed in range(3)]).ok()
        running.hold()
        calls = [_in_background(lambda seed=seed: running.client.infer(png(seed))) for seed in (5, 6, 7)]
        running.wait_until_held()
        _until(lambda: "bdi_requests_in_flight 4.0" in running.client.get("/metrics").body.decode())  # and this one
        running.terminate()
        _until(lambda: _status(running) == "stopping")
        for refused in (running.client.infer(png(8)), running.client.fit([png(9)]), running.client.calibrate()):
            assert refused.ok(503)["code"] == "shutting_down"
            assert (refused.headers["Retry-After"], refused.headers["Connection"]) == ("5", "close")
        health = running.client.get("/health")
        assert health.ok()["reason"] == "The service is stopping."
        assert health.headers["Connection"] == "close"
        running.let_go()
        for thread, found in calls:  # one was on the device, two were in the queue
            thread.join(30)
            assert found[0].ok()["score"] >= 0
        assert running.process.wait(60) == 0
        assert "Traceback" not in running.log


def test_a_large_upload_that_is_refused_gets_its_answer(tmp_path: Path) -> None:
    with serving(tmp_path, shutdown_s=30) as running:
        running.client.fit([png(seed) for seed in range(3)]).ok()
        running.hold()
        thread, _ = _in_background(lambda: running.client.infer(png(5)))
        running.wait_until_held()
        running.terminate()
        _until(lambda: _status(running) == "stopping")
        refused = running.client.form("/infer", [*fields(running.client.roi), image(bytes(20_000_000), name="image")])
        assert refused.ok(503)["code"] == "shutting_down"
        running.let_go()
        thread.join(30)
        assert running.process.wait(30) == 0


def test_a_running_job_ends_at_its_next_step_and_is_lost_and_stores_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, shutdown_s=30) as running:
        running.hold()
        job = running.client.fit([png(seed) for seed in range(4)], headers={"Prefer": "respond-async"}).ok(202)
        waiting = [
            running.client.fit([png(seed)], headers={"Prefer": "respond-async"}).ok(202)["job_id"] for seed in (8, 9)
        ]
        running.wait_until_held()
        running.terminate()
        _until(lambda: running.process.poll() is not None or _status(running) in ("stopping", None))
        running.let_go()
        assert running.process.wait(30) == 0
    assert not (tmp_path / "models" / "Inspection" / "inspection-1" / "memory.npz").exists()
    assert not list((tmp_path / "models").rglob(".tmp-*"))
    with Process(tmp_path / "models") as following:
        client = following.start()
        for job_id in (job["job_id"], *waiting):
            assert client.get(f"/jobs/{job_id}").ok()["state"] == "lost"
        client.fit([png(1), png(2)]).ok()


@pytest.mark.parametrize("what", ["inspection", "fit", "job", "upload"])
def test_the_process_ends_within_its_limit_whatever_hangs(tmp_path: Path, what: str) -> None:
    with serving(tmp_path, shutdown_s=3) as running:
        running.client.fit([png(seed) for seed in range(3)]).ok()
        connection = None
        if what == "upload":
            connection = socket.create_connection(("127.0.0.1", running.client.port))
            connection.sendall(b"POST /fit_ok HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999\r\n\r\nonly this")
        else:
            _hang(running, what)
        running.terminate()
        running.process.wait(60)  # what hangs would hang for ever
        if connection is not None:
            connection.close()
    memory = tmp_path / "models" / "Inspection" / "inspection-1" / "memory.npz"
    before = memory.read_bytes()
    with Process(tmp_path / "models", input_size=SMALL_INPUT_PX) as following:
        assert following.start().infer(png(5)).ok()["score"] >= 0  # what was stored is whole
    assert memory.read_bytes() == before


@pytest.mark.parametrize("what", ["inspection", "fit", "job"])
def test_under_plain_uvicorn_nothing_that_hangs_keeps_the_process_either(tmp_path: Path, what: str) -> None:
    with serving(tmp_path, plain=True, shutdown_s=1) as running:
        running.client.fit([png(seed) for seed in range(3)]).ok()
        _hang(running, what)
        running.terminate()
        assert running.process.wait(60) == -signal.SIGTERM
    with Process(tmp_path / "models", input_size=SMALL_INPUT_PX) as following:
        assert following.start().infer(png(5)).ok()["score"] >= 0


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(tmp_path: Path, first: signal.Signals) -> None:
    with serving(tmp_path, shutdown_s=600) as running:
        running.client.fit([png(seed) for seed in range(3)]).ok()
        _hang(running, "inspection")
        running.process.send_signal(first)
        _until(lambda: _status(running) == "stopping")
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(60) == 128 + signal.SIGINT


def test_a_service_with_nothing_to_do_ends_at_once_and_without_complaint(tmp_path: Path) -> None:
    with serving(tmp_path, shutdown_s=600) as running:
        kept_open = HTTPConnection("127.0.0.1", running.client.port)
        kept_open.request("GET", "/health")
        answer: HTTPResponse = kept_open.getresponse()
        answer.read()
        running.terminate()
        assert running.process.wait(60) == 0
        kept_open.close()
        lines = [json.loads(line) for line in running.log.splitlines()]
    assert all(line["level"] == "INFO" for line in lines), lines


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"backend_host": "0.0.0.0"}, True),
        ({"backend_host": "0.0.0.0", "api_keys": "admin:admin-0123456789abcdef"}, False),
        ({"backend_host": "127.0.0.1"}, False),
    ],
)
def test_a_service_that_other_machines_reach_without_a_key_warns_of_it(
    tmp_path: Path, settings: dict[str, str], warned: bool
) -> None:
    with serving(tmp_path, **settings) as running:
        lines = [json.loads(line) for line in running.log.splitlines()]
    said = [line["level"] for line in lines if "whoever is on this network can fit, delete" in line["message"]]
    assert said == (["WARNING"] if warned else [])


def test_a_port_that_is_taken_and_a_malformed_key_end_the_start_with_a_sentence(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        port = str(running.client.port)
        taken = _serve_once({"BDI_BACKEND_PORT": port, "BDI_MODELS_DIR": str(tmp_path / "other")})
        assert taken.returncode not in (0, None)
        assert "address already in use" in taken.stderr
    refused = _serve_once({"BDI_API_KEYS": "admin:short-key", "BDI_MODELS_DIR": str(tmp_path / "other")})
    assert refused.returncode not in (0, None)
    assert "secret of entry 1 is shorter than 16 characters" in refused.stderr
    assert "short-key" not in refused.stderr


def _serve_once(settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BDI_")}
    environment |= {"BDI_EXTRACTOR": "filter-bank", "BDI_BACKEND_PORT": "0", **settings}
    command = [sys.executable, "-c", "import sys; from backend.cli import main; sys.exit(main(['serve']))"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2]
    )


def _hang(running: Running, what: str) -> None:
    """Start a call that does not end: an inspection, a fit, or a fit as a job."""
    running.hold()
    asynchronous = {"Prefer": "respond-async"} if what == "job" else None
    call = (
        (lambda: running.client.infer(png(5)))
        if what == "inspection"
        else lambda: running.client.fit([png(6)], headers=asynchronous)
    )
    threading.Thread(target=_ignoring_ends, args=[call], daemon=True).start()
    running.wait_until_held()


def _ignoring_ends(call: Callable[[], Reply]) -> None:
    with contextlib.suppress(OSError, HTTPException):
        call()
