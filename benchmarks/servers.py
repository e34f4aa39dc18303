"""Servers in processes of their own, clients over real sockets, and the service with its extractor stubbed out."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from backend.app import create_app
from backend.demo.service_process import Server
from backend.extractors.base import FeatureExtractor
from backend.extractors.loader import ExtractorLoader
from backend.imaging.placement import Placement, place
from backend.memory_bank.threads import limit_threads, usable_cpus
from backend.settings import Settings
from backend.wiring import build_service

SERVICE = ("backend.app:app",)
REFERENCE = ("--factory", "benchmarks.references:reference_app")
STUBBED = ("--factory", "benchmarks.servers:stubbed_app")

ROLE, MM_PER_PX = "Inspection", 0.2
_ROWS_VARIABLE = "BENCHMARK_ROWS"
_ROOT = Path(__file__).resolve().parent.parent
_CALL_S, _STOP_S, _IDLE_S = 600.0, 20.0, 3.0


@dataclass(frozen=True, kw_only=True)
class Form:
    """A multipart request whose body is put together before the clock starts."""

    path: str
    body: bytes
    content_type: str


def form(path: str, roi_id: str, files: Sequence[tuple[str, bytes]], **fields: object) -> Form:
    """Return a multipart request about a ROI with files (field name, PNG)."""
    data = {"role_id": ROLE, "roi_id": roi_id, "mm_per_px": str(MM_PER_PX)}
    data |= {name: str(value) for name, value in fields.items()}
    parts = [(field, (f"{number}.png", png, "image/png")) for number, (field, png) in enumerate(files)]
    request = httpx.Request("POST", "http://line-pc/", data=data, files=parts)
    return Form(path=path, body=request.read(), content_type=request.headers["Content-Type"])


def fit_form(roi_id: str, pngs: Sequence[bytes], **fields: object) -> Form:
    """Return a request to learn good images."""
    return form("/fit_ok", roi_id, [("images", png) for png in pngs], **fields)


def infer_form(roi_id: str, png: bytes) -> Form:
    """Return a request to inspect one image."""
    return form("/infer", roi_id, [("image", png)])


class CallFailed(Exception):
    """A server answered with another status than 200.

    Attributes:
        status: The status.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"status {status}: {text[:300]}")
        self.status = status


class Caller:
    """One client with one connection, by Python's plain HTTP client, which adds the least of its own."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_CALL_S)
        self._used_s = time.perf_counter()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def get(self, path: str) -> bytes:
        """Return the body of an answer.

        Raises:
            CallFailed: If its status is not 200.
        """
        return self._ask("GET", path)

    def send(self, request: Form) -> bytes:
        """Return the body of the answer to a form; raises as ``get``."""
        return self._ask("POST", request.path, request.body, request.content_type)

    def post_json(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a JSON body; raises as ``get``."""
        answer: dict[str, Any] = json.loads(self._ask("POST", path, json.dumps(body).encode(), "application/json"))
        return answer

    def _ask(self, method: str, path: str, content: bytes | None = None, content_type: str = "") -> bytes:
        if time.perf_counter() - self._used_s > _IDLE_S:
            self._connection.close()  # uvicorn closes a connection after 5 s without a request; this one opens anew
        self._connection.request(method, path, content, {"Content-Type": content_type} if content_type else {})
        response = self._connection.getresponse()
        body = response.read()
        self._used_s = time.perf_counter()
        if response.status != 200:
            raise CallFailed(response.status, body.decode(errors="replace"))
        return body


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server process.

    Attributes:
        server: The process, its log, and how to wait for it.
        port: On the loopback interface.
        started_s: When the process was started, on ``time.perf_counter``'s clock.
    """

    server: Server
    port: int
    started_s: float

    def caller(self) -> Caller:
        """Return a client."""
        return Caller(self.port)

    def seconds_until_health_answers(self) -> float:
        """Return how long after the start of the process ``GET /health`` answered first; call it right after it."""
        while self.server.process.poll() is None:
            caller = self.caller()
            try:
                caller.get("/health")
                return time.perf_counter() - self.started_s
            except OSError:
                time.sleep(0.01)
            finally:
                caller.close()
        self.server.wait_until_ready()  # says what the log says
        raise AssertionError("a process that ended cannot get ready")

    def seconds_until_ready(self) -> float:
        """Return how long after the start of the process the extractor was there."""
        self.server.wait_until_ready()
        return time.perf_counter() - self.started_s

    def resident_mb(self) -> float | None:
        """Return the memory that the process holds, MB (10⁶ bytes), or None where the system does not tell."""
        try:
            status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        except OSError:
            return None
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024 / 1e6


@contextmanager
def serving(app: Sequence[str], folder: Path, *, settings: Mapping[str, object]) -> Iterator[Running]:
    """Run an application in a process of its own for the ``with`` block.

    Args:
        app: What uvicorn is told to run: ``SERVICE``, ``REFERENCE`` or ``STUBBED``.
        folder: For its log.
        settings: Its environment beside this process's own, of which the service's settings are left out.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BDI_")}
    environment |= {name: str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "uvicorn", *app, "--host", "127.0.0.1", "--port", str(port), "--no-access-log"]
    log_path = folder / f"server-{port}.log"
    started_s = time.perf_counter()
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                server = Server(client=client, process=process, log_path=log_path)
                yield Running(server=server, port=port, started_s=started_s)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


class StubExtractor:
    """Answers every image at once with the same rows: what is left of an inspection is everything but the network.

    Args:
        rows: [Ht*Wt, D] float32, unit rows.
        extractor_id: The id of the extractor that the memory was made with.
        precision: And what that one multiplied in.
        input_size: Edge of that extractor's network input, px.
    """

    name, device, precision, whitens, batch_size = "stub", "cpu", "fp32", False, 1

    def __init__(self, rows: NDArray[np.float32], extractor_id: str, precision: str, input_size: int) -> None:
        self.extractor_id, self.precision = extractor_id, precision
        self._rows, self._input_size = rows, input_size

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        """Return how an image of this size is brought to the patch grid."""
        return place(image_hw, input_size=self._input_size, cell_px=14)

    def extract(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the rows and their grid."""
        return self._rows, self.placement((image_bgr.shape[0], image_bgr.shape[1])).grid_hw

    def extract_batch(self, images_bgr: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return the rows for each image."""
        return [self._rows for _ in images_bgr]


def stub_settings(rows: NDArray[np.float32], extractor: FeatureExtractor, path: Path) -> dict[str, object]:
    """Write what the stub answers in an extractor's place; return the environment that ``stubbed_app`` finds it by."""
    np.savez(
        path, rows=rows, extractor_id=np.asarray(extractor.extractor_id), precision=np.asarray(extractor.precision)
    )
    return {_ROWS_VARIABLE: path}


def stubbed_app() -> FastAPI:
    """Return the service with its extractor stubbed out."""
    settings = Settings()
    with np.load(os.environ[_ROWS_VARIABLE], allow_pickle=False) as stored:
        extractor = StubExtractor(
            stored["rows"], str(stored["extractor_id"]), str(stored["precision"]), settings.input_size
        )
    limit_threads(usable_cpus())  # as the service does when it makes its extractor
    return create_app(settings, build_service(settings, extractor=ExtractorLoader(lambda: (extractor, None))))
