"""Connections that ask for nothing are closed before the descriptors run out, and others are answered."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from backend.demo.service_process import SERVE_COMMAND, ServiceProcess, environment_with
from tests.testkit.app import REPOSITORY

COMMANDS = {"serve": list(SERVE_COMMAND), "uvicorn": ["-m", "uvicorn", "backend.app:app"]}
DESCRIPTORS, SILENT = 512, 600


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such limit")
@pytest.mark.parametrize("command", COMMANDS)
def test_more_silent_connections_than_descriptors_keep_nobody_from_an_answer(tmp_path: Path, command: str) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * SILENT:
        pytest.skip("this process may not open as many sockets")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * SILENT), hard))
    limited = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}));"
    limited += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    settings = {"models_dir": tmp_path / "models", "extractor": "filter-bank", "input_size": 64}
    arguments = ["-c", limited, *COMMANDS[command]]
    with ServiceProcess(tmp_path / "log", environment_with(settings), command=arguments, cwd=REPOSITORY) as service:
        service.launch()
        service.wait_until_ready()
        with ExitStack() as open_ones:
            for _ in range(SILENT):
                open_ones.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=60))
            for _ in range(20):
                health = httpx.get(f"http://127.0.0.1:{service.port}/health", timeout=20, trust_env=False)
                assert health.json()["status"] == "ok"
