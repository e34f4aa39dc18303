"""Real servers: a thread of this process, the service's own command, or plain uvicorn, on sockets of the loopback."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import uvicorn

from backend.app import create_app
from backend.demo.service_process import ServiceFailed, ServiceProcess, environment_with
from backend.extractors.base import FeatureExtractor
from backend.settings import Settings
from backend.wiring import build_service
from tests.testkit.app import REPOSITORY, SMALL_INPUT_PX, Api, ready
from tests.testkit.client import DEADLINE_S, Client


@contextmanager
def running(settings: Settings, extractor: FeatureExtractor | None = None) -> Iterator[Client]:
    """Serve an application on a real socket of this process, with the extractor given or the settings' own."""
    service = None
    if extractor is not None:
        service = build_service(settings, extractor=ready(extractor))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(settings, service), log_level="error", timeout_graceful_shutdown=20)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        assert thread.is_alive(), "the server did not start"
        yield Client("127.0.0.1", listener.getsockname()[1], settings.models_dir)
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


class Process:
    """The real service in a process of its own, on the filter bank; to be stopped, killed and started again."""

    def __init__(self, models_dir: Path, **settings: object) -> None:
        chosen = {"models_dir": models_dir, "extractor": "filter-bank", "input_size": SMALL_INPUT_PX, **settings}
        self.log = models_dir.with_suffix(".log")
        self.client = Client("127.0.0.1", 0, models_dir)
        self._service = ServiceProcess(self.log, environment_with(chosen), cwd=REPOSITORY)

    def start(self) -> Client:
        self._service.launch()
        health = self._service.wait_until_ready()
        assert health["status"] == "ok", health
        self.client = replace(self.client, port=self._service.port)
        return self.client

    def stop(self) -> None:
        """End the process as a service manager does."""
        self._service.stop()

    def kill(self) -> None:
        """End the process as a power cut does."""
        self._service.kill()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._service.is_running:
            self.kill()


@dataclass(frozen=True)
class Server:
    """A running ``uvicorn`` process."""

    process: subprocess.Popen[bytes]
    host: str
    port: int
    log: Path
    api: Api


@contextmanager
def running_server(
    folder: Path, *arguments: str, cwd: Path = REPOSITORY, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start ``uvicorn`` with these arguments on a free loopback port, and stop it with SIGTERM: it must end cleanly.

    The models lie in ``folder/models``, the log in ``folder/server.log``.
    """
    script = shutil.which("uvicorn", path=str(Path(sys.executable).parent))
    assert script is not None
    folder.mkdir(parents=True, exist_ok=True)
    models, log = folder / "models", folder / "server.log"
    settings = {"models_dir": models, "extractor": "filter-bank", "input_size": SMALL_INPUT_PX, "device": "cpu"}
    variables = environment_with(settings) | dict(environment or {})
    with ServiceProcess(log, variables, command=[script, *arguments], cwd=cwd) as server:
        server.launch()
        try:
            server.wait_until_it_answers()
        except ServiceFailed as error:
            raise AssertionError(f"uvicorn ended with an error: {error}") from error
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=DEADLINE_S, trust_env=False) as client:
            yield Server(server.process, "127.0.0.1", server.port, log, Api(client, models))
        status = server.stop(limit_s=DEADLINE_S)
        assert status in (0, -signal.SIGTERM), f"uvicorn ended with {status}:\n{server.log_tail()}"
