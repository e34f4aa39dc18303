"""The service in a process of its own: started on a free port, waited for, stopped or killed, its log kept.

The demo, the benchmarks, the proofs in ``reliability/`` and the tests all start their servers through it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from backend.demo.client import CallCutOff, CallFailed, Client

PLAIN_UVICORN = ("-m", "uvicorn", "backend.app:app")
SERVE_COMMAND = ("-c", "import sys; from backend.cli import main; sys.exit(main())", "serve")
"""``roi-inspector serve``, whether or not the command is installed."""

_START_S, _STOP_S, _POLL_S = 300.0, 60.0, 0.02


class ServiceFailed(Exception):
    """A process did not start or did not stop; the text holds the end of its log."""


def environment_with(settings: Mapping[str, object], *, inherit: bool = False) -> dict[str, str]:
    """Return this process's environment with settings of the service put in, by their names in ``Settings``.

    Args:
        settings: They take the place of what the environment says.
        inherit: Keep the other ``BDI_...`` variables of this process.
    """
    kept = {name: value for name, value in os.environ.items() if inherit or not name.upper().startswith("BDI_")}
    chosen = {f"BDI_{name.upper()}": str(value) for name, value in settings.items()}
    return {**kept, "PYTHONUTF8": "1", **chosen}


class ServiceProcess:
    """One process at a time on one port; ``with`` starts nothing, and ends what still runs.

    Args:
        log: Where output goes; appended to.
        environment: Of the process; see ``environment_with``.
        command: What Python is given; ``--host`` and ``--port`` follow.
        cwd: Working folder; this process's own by default.
        in_own_group: Make it the head of a process group, which ``kill`` ends with it (POSIX).
    """

    def __init__(
        self,
        log: Path,
        environment: Mapping[str, str],
        *,
        command: Sequence[str] = SERVE_COMMAND,
        cwd: Path | None = None,
        in_own_group: bool = False,
    ) -> None:
        self.log, self.port, self.started_s = log, 0, 0.0
        self._environment, self._command, self._cwd = dict(environment), list(command), cwd
        self._in_own_group = in_own_group and os.name == "posix"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that runs now, or ran last.

        Raises:
            ServiceFailed: If there never was one.
        """
        if self._process is None:
            raise ServiceFailed("the server was never started")
        return self._process

    @property
    def is_running(self) -> bool:
        """True between the start of a process and its end."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start a process on a free port and return at once.

        Raises:
            ServiceFailed: If one runs already.
        """
        if self.is_running:
            raise ServiceFailed("the server runs already")
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            self.port = reserved.getsockname()[1]
        command = [sys.executable, *self._command, "--host", "127.0.0.1", "--port", str(self.port)]
        self.started_s = time.perf_counter()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=self._in_own_group,
            )

    def wait_until_it_answers(self, *, limit_s: float = _START_S) -> dict[str, Any]:
        """Return the first answer of ``GET /health``, whatever it says; raises as ``wait_until_ready``."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if not self.is_running:
                code = self.process.returncode
                raise ServiceFailed(f"the server ended with exit code {code} at start.\n{self._advice()}")
            health = self.health()
            if health is not None:
                return health
            time.sleep(_POLL_S)
        raise ServiceFailed(f"the server was not ready after {limit_s:.0f} s.\n{self._advice()}")

    def wait_until_ready(self, *, limit_s: float = _START_S) -> dict[str, Any]:
        """Return the answer of ``GET /health`` once the service has its extractor, or knows that it gets none.

        Raises:
            ServiceFailed: If the process ends or is not ready in time.
        """
        deadline = time.monotonic() + limit_s
        while (health := self.wait_until_it_answers(limit_s=deadline - time.monotonic()))["status"] == "starting":
            time.sleep(_POLL_S)
        return health

    def health(self) -> dict[str, Any] | None:
        """Return the answer of ``GET /health``, or None while there is none."""
        with self.client(timeout_s=5.0) as client:
            try:
                return dict(client.get("/health").ok())
            except (CallCutOff, CallFailed, ValueError):
                return None

    def client(self, *, timeout_s: float = 60.0) -> Client:
        """Return a client with a connection of its own."""
        return Client(self.port, timeout_s=timeout_s)

    def stop(self, *, limit_s: float = _STOP_S) -> int:
        """Ask the process to end, as a service manager does; return its exit code.

        Raises:
            ServiceFailed: If it goes on.
        """
        self.process.terminate()
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise ServiceFailed(f"the server was still there {limit_s:.0f} s after it was asked to stop") from error

    def kill(self) -> None:
        """End the process as a power cut does: no signal handler, no flush."""
        if self._in_own_group:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait(_STOP_S)

    def log_tail(self, lines: int = 25) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.is_running:
            try:
                self.stop(limit_s=10.0)
            except ServiceFailed:
                self.kill()

    def _advice(self) -> str:
        return (
            f"The end of {self.log}:\n{self.log_tail()}\n"
            "What to do: the lines above name the cause. A missing module: pip install -r requirements.txt. A setting "
            "that is refused: correct or unset the environment variable BDI_..."
        )
