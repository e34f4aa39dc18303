"""The service in a process of its own, on one models folder: to be started, killed, stopped and looked into."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.demo.service_process import SERVE_COMMAND, ServiceProcess, environment_with

SETTINGS: Mapping[str, Any] = {
    "extractor": "filter-bank",
    "input_size": 112,
    "device": "cpu",
    "threads": 1,
    "coreset_rate": 0.25,
    "score_mode": "percentile",  # in which the area of a calibration, its mark here, changes no score
}
"""Of every server and of the reference: all that changes a score; small, so that a fit takes a fraction of a second."""


class Server(ServiceProcess):
    """One process of the service.

    Args:
        folder: Holds the models folder, the log, and ``elsewhere``: the working, home and temporary folder of the
            process, in which it must leave nothing.
        name: Of the log.
        settings: Take the place of, or come beside, ``SETTINGS``.
        descriptors: How many files and sockets the process may have open; as many as this one by default.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "server",
        settings: Mapping[str, object] | None = None,
        descriptors: int | None = None,
    ) -> None:
        self.models_dir = folder / "models"
        self.elsewhere = folder / "elsewhere"
        environment = environment_with({**SETTINGS, "models_dir": self.models_dir, **(settings or {})})
        environment |= {"OMP_NUM_THREADS": "1"}
        environment |= dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), str(self.elsewhere))
        limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, {descriptors})); "
        command = SERVE_COMMAND if descriptors is None else ("-c", limited + SERVE_COMMAND[1], *SERVE_COMMAND[2:])
        super().__init__(folder / f"{name}.log", environment, command=command, cwd=self.elsewhere)

    @property
    def pid(self) -> int:
        """The process that runs now, or ran last."""
        return self.process.pid

    def start(self) -> float:
        """Start a process; return the seconds until it was ready to inspect.

        Raises:
            ServiceFailed: If it ends, or is not ready in time.
        """
        self.elsewhere.mkdir(parents=True, exist_ok=True)
        self.launch()
        self.wait_until_ready()
        return time.perf_counter() - self.started_s
