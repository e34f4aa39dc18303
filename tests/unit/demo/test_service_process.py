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
        with pytest.raises(ServiceFailed, match="not ready after 0 s"):
            server.wait_until_ready(limit_s=0.2)


def test_a_server_that_was_never_started_has_no_process(tmp_path):
    with pytest.raises(ServiceFailed, match="never started"), _process(tmp_path, _WAITS) as server:
        server.stop()
