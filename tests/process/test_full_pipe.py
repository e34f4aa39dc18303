"""A service whose output goes to a pipe that nobody reads, as with .NET's RedirectStandardError, still ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from backend.demo.service_process import SERVE_COMMAND, environment_with
from tests.testkit.app import REPOSITORY

COMMANDS = {
    "serve": list(SERVE_COMMAND),
    "uvicorn": ["-m", "uvicorn", "backend.app:app"],
}


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_though_nobody_reads_its_output(
    tmp_path: Path, command: str, sent: signal.Signals
) -> None:
    log = tmp_path / "service.log"
    settings = {"models_dir": tmp_path / "models", "extractor": "filter-bank", "input_size": 64, "log_file": log}
    with httpx.Client(timeout=60, trust_env=False) as client:
        process, port = started(command, environment_with(settings | {"shutdown_s": 20}))
        try:
            address = f"http://127.0.0.1:{port}"
            until_ready(client, address)
            said = "x" * 100
            for n in range(300):  # each is a line of some hundred bytes; a pipe holds 64 KiB
                assert (
                    client.get(f"{address}/no-such-{said}", headers={"X-Request-Id": f"{said}{n}"}).status_code == 404
                )
            process.send_signal(sent)
            process.wait(60)
        finally:
            process.kill()
            process.wait(60)
            process.stdout.close()
    assert f"{said}299" in log.read_text(), "the file has what the pipe does not take"


def started(command: str, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    arguments = [sys.executable, *COMMANDS[command], "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        arguments, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return process, port


def until_ready(client: httpx.Client, address: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            client.get(f"{address}/health")
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the service does not answer")
