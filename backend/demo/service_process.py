"""The real server in a process of its own, for as long as somebody needs it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from backend.demo.demo_parts import DemoError

_SERVER = ["-m", "uvicorn", "backend.app:app"]
_START_S, _CALL_S, _STOP_S = 300.0, 900.0, 10.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server process that this demo has started."""

    client: httpx.Client
    process: subprocess.Popen[bytes]
    log_path: Path

    def wait_until_ready(self) -> dict[str, Any]:
        """Return the answer of ``GET /health`` once the service has made up its mind.

        Raises:
            DemoError: If the process ends or does not get ready in time; shows the tail of its log.
        """
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise DemoError(
                    f"the server ended with exit code {self.process.returncode} at start.\n{self._advice()}"
                )
            try:
                health: dict[str, Any] = self.client.get("/health", timeout=5.0).json()
            except (httpx.TransportError, json.JSONDecodeError):
                health = {"status": "starting"}
            if health["status"] != "starting":
                return health
            time.sleep(0.2)
        raise DemoError(f"the server was not ready after {_START_S:.0f} s.\n{self._advice()}")

    def _advice(self) -> str:
        tail = "\n".join(self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        return (
            f"The end of {self.log_path}:\n{tail}\n"
            "What to do: the lines above name the cause. A missing module: pip install -r requirements.txt. A setting "
            "that is refused: correct or unset the environment variable BDI_..."
        )


@contextmanager
def serving(models_dir: Path, log_path: Path) -> Iterator[Server]:
    """Run the service in a process of its own for the ``with`` block, whatever becomes of the block.

    Args:
        models_dir: Folder for its artefacts.
        log_path: Where its output goes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"BDI_EXTRACTOR": "auto", **os.environ, "BDI_MODELS_DIR": str(models_dir), "PYTHONUTF8": "1"}
    command = [sys.executable, *_SERVER, "--host", "127.0.0.1", "--port", str(port)]
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            # A proxy of the environment must not come between two processes of one machine.
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_CALL_S, trust_env=False) as client:
                yield Server(client=client, process=process, log_path=log_path)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
