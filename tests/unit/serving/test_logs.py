from __future__ import annotations

import io
import json
import logging
import logging.handlers
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from backend.serving.logs import MAX_WAITING, json_lines
from backend.settings import Settings

log = logging.getLogger("backend.of.this.test")


@contextmanager
def bare_root() -> Iterator[None]:
    """The root logger as a process finds it; pytest has put handlers of its own there."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = []
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(level)


@contextmanager
def logging_to(stream: io.StringIO, *, max_waiting: int = MAX_WAITING, **settings: Any) -> Iterator[None]:
    with bare_root(), json_lines(Settings(**settings), stream, max_waiting=max_waiting):
        yield


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line]


def test_a_line_is_one_json_object_with_time_level_logger_message_and_fields() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        log.warning(
            "%s waited", "an inspection", extra={"roi_id": "Muster-ä", "timings_ms": {"decode": 1.5}, "n": None}
        )
    (line,) = lines(stream.getvalue())
    when = datetime.fromisoformat(line.pop("timestamp"))
    assert when.utcoffset() is not None
    assert not when.utcoffset(), "UTC"
    assert line == {
        "level": "WARNING", "logger": log.name, "message": "an inspection waited", "roi_id": "Muster-ä",
        "timings_ms": {"decode": 1.5},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ['a\n{"level":"INFO"}', "a\r\nb", "a\u2028b\u2029c\x85d", '"}', "\x1b[2J", "\ud800", "\0"]
)
def test_nobody_can_write_a_line_of_his_own(text: str) -> None:
    stream = io.StringIO()
    with logging_to(stream):
        log.warning("id %s", text, extra={"roi_id": text})
    written = stream.getvalue()
    assert len(written.splitlines()) == 1
    assert written.isascii()
    (line,) = lines(written)
    assert (line["roi_id"], line["message"]) == (text, f"id {text}")


def test_a_line_says_what_was_so_when_it_was_logged() -> None:
    stream, gate, names = io.StringIO(), threading.Event(), ["a"]

    class Late(io.StringIO):
        def write(self, text: str) -> int:
            assert gate.wait(30)
            return stream.write(text)

    with logging_to(Late()):
        log.warning("keeps the writer busy")
        log.warning("%s", names)
        names.append("b")
        gate.set()
    assert lines(stream.getvalue())[-1]["message"] == "['a']"


def test_a_traceback_is_a_field() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        try:
            raise ValueError("seven")
        except ValueError:
            log.exception("it failed")
    (line,) = lines(stream.getvalue())
    assert line["message"] == "it failed"
    assert line["traceback"].endswith("ValueError: seven")


def test_the_level_is_that_of_the_settings() -> None:
    for level, expected in (("INFO", ["more", "less"]), ("ERROR", ["less"])):
        stream = io.StringIO()
        with logging_to(stream, log_level=level):
            log.info("more")
            log.error("less")
        assert [line["message"] for line in lines(stream.getvalue())] == expected


def test_the_details_of_libraries_are_left_out() -> None:
    stream = io.StringIO()
    with logging_to(stream, log_level="DEBUG"):
        log.debug("ours")
        logging.getLogger("PIL.PngImagePlugin").debug("STREAM IHDR")
    assert [line["message"] for line in lines(stream.getvalue())] == ["ours"]
    assert logging.getLogger("backend").level == logging.NOTSET


def test_the_servers_own_lines_have_the_same_form_and_its_access_lines_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, access = logging.getLogger("uvicorn.error"), logging.getLogger("uvicorn.access")
    monkeypatch.setattr(ours, "level", logging.INFO)  # a server of another test may have set it
    before = [(logger.handlers, logger.propagate) for logger in (ours, access)]
    stream = io.StringIO()
    with logging_to(stream):
        ours.info("Uvicorn running", extra={"color_message": "\x1b[32m"})
        assert not access.hasHandlers(), "the server asks this before it makes such a line"
    assert [(logger.handlers, logger.propagate) for logger in (ours, access)] == before
    (line,) = lines(stream.getvalue())
    assert (line["message"], line["logger"]) == ("Uvicorn running", "uvicorn.error")
    assert "color_message" not in line


def test_an_application_that_has_its_own_log_keeps_it(caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    handlers = list(root.handlers)
    assert handlers, "pytest's"
    stream = io.StringIO()
    with json_lines(Settings(), stream):
        assert root.handlers == handlers
        log.warning("seen by pytest")
    assert "seen by pytest" in caplog.text
    assert stream.getvalue() == ""


def test_everything_is_put_back_at_the_end_also_after_an_error() -> None:
    root, before = logging.getLogger(), set(threading.enumerate())
    with bare_root():
        with pytest.raises(ZeroDivisionError), json_lines(Settings(log_level="DEBUG"), io.StringIO()):
            _ = 1 // (len(root.handlers) - 1)  # one there, and an error
        assert (root.handlers, root.level) == ([], logging.WARNING)
    assert set(threading.enumerate()) <= before


def test_the_file_is_made_with_its_folder_and_rotated(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "roi.log"
    with logging_to(io.StringIO(), log_file=file, log_max_mb=0.01, log_files=3):
        for n in range(400):
            log.warning("line %s %s", n, "x" * 100)
    files = sorted(path for path in file.parent.iterdir() if path.suffix != ".lock" and "lock" not in path.name)
    assert len(files) == 4, "the one that is written and three before it"
    assert all(path.stat().st_size <= 11_000 for path in files)
    kept = [line["message"].split()[1] for path in files for line in lines(path.read_text())]
    assert "399" in kept
    assert "0" not in kept


def test_two_processes_rotate_one_file_and_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "roi.log"
    script = """
        import logging, sys
        from pathlib import Path
        from backend.serving.logs import json_lines
        from backend.settings import Settings
        with json_lines(Settings(log_file=Path(sys.argv[1]), log_max_mb=0.02, log_files=50), open("/dev/null", "w")):
            for n in range(300):
                logging.getLogger("x").warning("%s %s %s", sys.argv[2], n, "y" * 200)
    """
    script = textwrap.dedent(script).replace('"/dev/null"', repr(str(tmp_path / "stderr")))
    running = [subprocess.Popen([sys.executable, "-c", script, str(file), name]) for name in "ab"]
    assert [process.wait(120) for process in running] == [0, 0]
    logged_lines = [
        line["message"].rsplit(" ", 1)[0]
        for path in tmp_path.glob("roi.log*") if "lock" not in path.name
        for line in lines(path.read_text())
    ]  # fmt: skip
    assert sorted(logged_lines) == sorted(f"{name} {n}" for name in "ab" for n in range(300))
    assert len(list(tmp_path.glob("roi.log*"))) > 5, "it was rotated"


def test_a_disk_that_does_not_answer_holds_nobody_up_and_what_was_dropped_is_counted() -> None:
    gate, stream = threading.Event(), io.StringIO()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            assert gate.wait(30)
            return stream.write(text)

    with logging_to(Stuck(), max_waiting=10):
        for n in range(1000):  # would not come to an end if it waited for the writer
            log.warning("%s", n)
        gate.set()
        deadline = time.monotonic() + 30
        while stream.getvalue().count("\n") < 11:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        log.warning("after")
    written = lines(stream.getvalue())
    assert written[-1]["message"] == "after"
    assert sum(line.get("dropped_before", 0) for line in written) == 1000 - (len(written) - 1)


def test_what_the_image_library_remarks_on_does_not_stand_between_the_lines(capfd: pytest.CaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with logging_to(io.StringIO()):
            warnings.warn_explicit(
                "Metadata Warning", UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin"
            )
    assert capfd.readouterr() == ("", "")


def test_a_log_file_that_was_moved_or_removed_goes_on_in_a_new_one(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "roi.log"
    with bare_root(), json_lines(Settings(log_file=file), io.StringIO()):
        for number, change in enumerate(
            (lambda: file.rename(tmp_path / "moved"), file.unlink, lambda: file.parent.rename(tmp_path / "away"), None)
        ):
            logging.getLogger("backend").warning("line %d", number)
            _until(lambda number=number: file.exists() and f"line {number}" in file.read_text())
            if change is not None:
                change()
    assert "line 0" in (tmp_path / "moved").read_text()
    assert "line 2" in (tmp_path / "away" / "roi.log").read_text()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
