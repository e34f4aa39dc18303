import time
from pathlib import Path

import pytest

from backend.demo.service_process import ServiceFailed, ServiceProcess, environment_with

_WAITS = ("-c", "import time; time.sleep(600)")
_ENDS = ("-c", "import sys; sys.exit('No module named torch')")


def _process(folder, command):
    return ServiceProcess(folder / "server.log", environment_with({}), command=command)


def test_settings_are_named_as_the_service_reads_them_and_others_left_out(monkeypatch):
    monkeypatch.setenv("BDI_AUDIT", "1")
    assert environment_with({"input_size": 112})["BDI_INPUT_SIZE"] == "112"
    assert "BDI_AUDIT" not in environment_with({})
    assert environment_with({"audit": 0}, inherit=True)["BDI_AUDIT"] == "0"
    assert environment_with({}, inherit=True)["BDI_AUDIT"] == "1"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("stop")])
def test_the_process_is_ended_whatever_becomes_of_the_block(tmp_path, error):
    server = _process(tmp_path, _WAITS)

    def block():
        with server:
            server.launch()
            assert server.is_running
            raise error

    with pytest.raises((KeyboardInterrupt, ValueError)):
        block()
    assert not server.is_running


def test_a_process_that_dies_at_start_shows_the_end_of_its_log_and_what_to_do(tmp_path):
    with _process(tmp_path, _ENDS) as server:
        server.launch()
        with pytest.raises(ServiceFailed, match=r"(?s)exit code 1 at start.*No module named torch.*pip install"):
            server.wait_until_ready()


def test_a_process_that_is_not_ready_in_time_is_a_failure(tmp_path):
    with _process(tmp_path, _WAITS) as server:
        server.launch()
        assert server.health() is None
        with pytest.raises(ServiceFailed, match="not ready after 0 s"):
            server.wait_until_ready(limit_s=0.2)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the child in /proc")
def test_a_kill_ends_the_children_too(tmp_path):
    script = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); sys.stdin.read(); "
    script += "import time; time.sleep(600)"
    server = ServiceProcess(tmp_path / "log", environment_with({}), command=("-c", script), in_own_group=True)
    with server:
        server.launch()
        while not server.log.read_text().endswith("\n"):
            assert server.is_running
            time.sleep(0.01)
        child = int(server.log.read_text())
        server.kill()
    while _is_alive(child):  # until init has reaped it
        time.sleep(0.01)


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_server_that_was_never_started_has_no_process(tmp_path):
    with pytest.raises(ServiceFailed, match="never started"), _process(tmp_path, _WAITS) as server:
        server.stop()
