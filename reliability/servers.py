"""The service in a process of its own, on one models folder: to be started, killed, stopped and looked into."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from reliability.clients import CallCutOff, Client

SETTINGS: Mapping[str, Any] = {
    "extractor": "filter-bank",
    "input_size": 112,
    "device": "cpu",
    "threads": 1,
    "coreset_rate": 0.25,
}
"""Of every server and of the reference: all that changes a score; small, so that a fit takes a fraction of a second."""

_COMMAND = "import sys; from backend.cli import main; sys.exit(main())"
_START_S, _STOP_S = 120.0, 40.0


class ServerFailed(Exception):
    """A server did not start, or did not stop."""


class Server:
    """One process of the service; ``with`` kills what is still running.

    Args:
        folder: Holds the models folder, the log, and ``elsewhere``: the working, home and temporary folder of the
            process, in which it must leave nothing.
        name: Of the log.
        settings: Take the place of, or come beside, ``SETTINGS``.
    """

    def __init__(self, folder: Path, *, name: str = "server", settings: Mapping[str, object] | None = None) -> None:
        self.models_dir = folder / "models"
        self.elsewhere = folder / "elsewhere"
        self.log = folder / f"{name}.log"
        self.port = 0
        self._settings = {**SETTINGS, "models_dir": self.models_dir, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that runs now, or ran last."""
        return self._running().pid

    def start(self) -> float:
        """Start a process; return the seconds until it was ready to inspect.

        Raises:
            ServerFailed: If it ends, or is not ready in time.
        """
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BDI_")}
        environment |= {f"BDI_{name.upper()}": str(value) for name, value in self._settings.items()}
        environment |= {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
        environment |= dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), str(self.elsewhere))
        command = [sys.executable, "-c", _COMMAND, "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        self.elsewhere.mkdir(parents=True, exist_ok=True)
        started_s = time.perf_counter()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.elsewhere,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while not self._is_ready():
            if self._process.poll() is not None:
                raise ServerFailed(f"a server ended with {self._process.returncode} at start:\n{self.log_tail()}")
            if time.perf_counter() - started_s > _START_S:
                raise ServerFailed(f"a server was not ready after {_START_S:.0f} s:\n{self.log_tail()}")
            time.sleep(0.02)
        return time.perf_counter() - started_s

    def kill(self) -> None:
        """End the process and its children as a power cut does: no signal handler, no flush, no goodbye."""
        process = self._running()
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait(_STOP_S)

    def stop(self) -> int:
        """Ask the process to end, as a service manager does; return its status.

        Raises:
            ServerFailed: If it goes on.
        """
        process = self._running()
        process.terminate()
        try:
            return process.wait(_STOP_S)
        except subprocess.TimeoutExpired as error:
            raise ServerFailed(f"a server was still there {_STOP_S:.0f} s after it was asked to stop") from error

    def client(self) -> Client:
        """Return a client with a connection of its own."""
        return Client(self.port)

    def log_tail(self, lines: int = 25) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerFailed("the server was never started")
        return self._process

    def _is_ready(self) -> bool:
        client = self.client()
        try:
            return bool(client.get("/health").json["status"] != "starting")
        except CallCutOff:
            return False
        finally:
            client.close()
