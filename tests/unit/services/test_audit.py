from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from unittest import mock

import pytest

from backend.errors import AuditOff, AuditUnavailable
from backend.services import audit_table
from backend.services.audit import Audit

ENTRY = {
    "time_utc": "2026-03-14T09:26:53.589793Z",
    "source": "infer",
    "request_id": "r-1",
    "caller": "inspect",
    "recipe_id": "default",
    "role_id": "Inspection",
    "roi_id": "inspection-1",
    "model_key": "inspection-1",
    "image_name": "part.png",
    "image_digest": "d" * 64,
    "score": 0.61,
    "threshold": 0.55,
    "decision": "ng",
    "n_regions": 1,
    "area_mm2": 3.2,
    "memory_checksum": "m" * 64,
    "extractor_id": "fake",
    "mm_per_px": 0.2,
    "service_version": "0.1.0",
    "params": {"score_mode": "max", "calibration": {"n_ok": 30}},
    "serial": "SN-17 ä",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "audit.sqlite3"


@pytest.fixture
def kept(path: Path):
    made = Audit(path, keeps=True)
    yield made
    made.close()


def test_a_decision_comes_back_as_it_was_kept(kept: Audit) -> None:
    kept.write(ENTRY)
    assert kept.find(10) == [{"id": 1, **ENTRY}]


def test_it_is_on_the_disk_when_keep_returns(kept: Audit, path: Path) -> None:
    kept.write(ENTRY)
    with closing(sqlite3.connect(path)) as another:
        assert another.execute("SELECT score, decision FROM decisions").fetchall() == [(0.61, "ng")]
        assert another.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_each_transaction_waits_for_the_disk(path: Path) -> None:
    """In this mode only FULL does; NORMAL would lose the last decisions in a power cut."""
    with closing(audit_table.ready(path)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


@pytest.mark.parametrize("statement", ["UPDATE decisions SET decision = 'ok'", "DELETE FROM decisions"])
def test_no_row_is_ever_changed_or_deleted(kept: Audit, path: Path, statement: str) -> None:
    kept.write(ENTRY)
    with closing(sqlite3.connect(path)) as another, pytest.raises(sqlite3.IntegrityError, match="never changed"):
        another.execute(statement)
    assert kept.find(10) == [{"id": 1, **ENTRY}]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, [4, 3, 2, 1]),
        ({"roi_id": "inspection-2"}, [2]),
        ({"role_id": "Inspection", "decision": "ok"}, [3]),
        ({"recipe_id": "disc-b"}, [4]),
        ({"request_id": "r-1"}, [4, 3, 2, 1]),
        ({"image_digest": "e" * 64}, [3]),
        ({"before_id": 3}, [2, 1]),
        ({"since": datetime(2026, 3, 2, tzinfo=UTC)}, [4, 3, 2]),
        ({"until": datetime(2026, 3, 2, tzinfo=UTC)}, [1]),
        # Half past midnight of the 3rd, two hours east, is still the 2nd.
        ({"since": datetime(2026, 3, 3, 0, 30, tzinfo=timezone(timedelta(hours=2)))}, [4, 3]),
        ({"until": datetime.max.replace(tzinfo=timezone(-timedelta(hours=12)))}, [4, 3, 2, 1]),
        ({"since": datetime.min.replace(tzinfo=timezone(timedelta(hours=12)))}, [4, 3, 2, 1]),
        ({"role_id": "' OR 1=1 --"}, []),
    ],
)
def test_decisions_are_found_by_what_is_known_of_them_newest_first(kept: Audit, wanted: dict, found: list[int]):
    changes = [{}, {"roi_id": "inspection-2"}, {"decision": "ok", "image_digest": "e" * 64}, {"recipe_id": "disc-b"}]
    for day, change in enumerate(changes, 1):
        kept.write({**ENTRY, "time_utc": f"2026-03-{day:02}T00:00:00.000000Z", **change})
    assert [row["id"] for row in kept.find(10, **wanted)] == found
    assert [row["id"] for row in kept.find(1, **wanted)] == found[:1]


def test_where_nothing_is_kept_there_is_no_file_and_a_question_says_so(path: Path) -> None:
    off = Audit(path, keeps=False)
    with pytest.raises(AuditOff, match="BDI_AUDIT=1"):
        off.find(10)
    assert not path.exists()
    assert Audit(path, keeps=True).find(10) == []


def test_what_was_kept_can_be_looked_up_after_it_was_switched_off(kept: Audit, path: Path) -> None:
    kept.write(ENTRY)
    kept.close()
    assert Audit(path, keeps=False).find(10) == [{"id": 1, **ENTRY}]


def test_looking_up_writes_nothing(kept: Audit, path: Path) -> None:
    kept.write(ENTRY)
    kept.close()
    before = path.read_bytes()
    Audit(path, keeps=False).find(10)
    assert path.read_bytes() == before


def test_what_many_threads_keep_at_once_is_all_there(kept: Audit) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: kept.write({**ENTRY, "request_id": f"r-{n}"}), range(200)))
    assert {row["request_id"] for row in kept.find(1000)} == {f"r-{n}" for n in range(200)}


def test_several_processes_keep_in_one_file(path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from backend.services.audit import Audit
        from test_audit import ENTRY
        kept = Audit(Path(sys.argv[1]), keeps=True)
        for n in range(40):
            kept.write({**ENTRY, "request_id": f"{sys.argv[2]}-{n}"})
        kept.close()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    running = [subprocess.Popen([*command, name], cwd=Path(__file__).parent) for name in "abc"]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    found = Audit(path, keeps=False).find(1000)
    assert {row["request_id"] for row in found} == {f"{name}-{n}" for name in "abc" for n in range(40)}
    assert len(found) == 120


def test_a_file_that_another_program_has_locked_is_waited_for(kept: Audit, path: Path) -> None:
    kept.write(ENTRY)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as another:
        another.execute("BEGIN IMMEDIATE")
        threading.Timer(0.3, lambda: another.execute("COMMIT")).start()
        kept.write(ENTRY)
        assert len(kept.find(10)) == 2


def test_a_decision_that_cannot_be_kept_is_not_given_and_the_next_one_may_be(
    kept: Audit, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_table, "_BUSY_S", 0.05)
    kept.write(ENTRY)
    with closing(sqlite3.connect(path, isolation_level=None)) as another:
        another.execute("BEGIN IMMEDIATE")
        with pytest.raises(AuditUnavailable, match="not given") as refused:
            kept.write({**ENTRY, "request_id": "refused"})
        assert str(path) not in refused.value.sentence
        another.execute("COMMIT")
    kept.write({**ENTRY, "request_id": "after"})
    assert [row["request_id"] for row in kept.find(10)] == ["after", "r-1"]


@pytest.mark.parametrize("content", [b"long, and no database " * 50, "folder", "version"])
def test_a_file_that_is_none_of_ours_is_not_written_to(path: Path, content: bytes | str) -> None:
    path.parent.mkdir()
    if content == "folder":
        path.mkdir()
    elif content == "version":
        with closing(sqlite3.connect(path)) as newer:
            newer.execute("PRAGMA user_version = 7")
    else:
        path.write_bytes(content)
    kept = Audit(path, keeps=True)
    with pytest.raises(AuditUnavailable):
        kept.write(ENTRY)
    if content != "folder":
        with pytest.raises(AuditUnavailable):
            kept.find(1)
    kept.close()


def test_names_that_sqlite_does_not_take_are_kept_readable(kept: Audit) -> None:
    kept.write({**ENTRY, "image_name": "half \ud800 of a pair, and a \n line"})
    (row,) = kept.find(1)
    assert row["image_name"] == "half ? of a pair, and a \n line"


def version_1(path: Path) -> None:
    """Leave a file as the first version of the service did: rows without a serial."""
    first = Audit(path, keeps=True)
    first.write(ENTRY)
    first.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DROP INDEX decisions_by_serial")
        connection.execute("ALTER TABLE decisions DROP COLUMN serial")
        connection.execute("PRAGMA user_version = 1")


def test_a_file_of_the_first_version_is_read_and_written_on(path: Path) -> None:
    version_1(path)
    old = {"id": 1, **ENTRY, "serial": None}
    looked_up = Audit(path, keeps=False)
    assert looked_up.find(10) == [old]
    assert looked_up.find(10, serial="SN-17 ä") == []
    kept = Audit(path, keeps=True)
    kept.write(ENTRY)
    assert kept.find(10) == [{"id": 2, **ENTRY}, old]
    assert [row["id"] for row in kept.find(10, serial="SN-17 ä")] == [2]
    with closing(sqlite3.connect(path)) as another, pytest.raises(sqlite3.IntegrityError, match="never changed"):
        another.execute("DELETE FROM decisions")
    kept.close()


def test_two_services_that_find_a_file_of_the_first_version_at_once_both_write(path: Path) -> None:
    version_1(path)
    audits = [Audit(path, keeps=True) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda each: each.write(ENTRY), audits)) == [2, 3, 4, 5]
    for each in audits:
        each.close()


def test_a_thread_that_could_not_start_once_is_started_by_the_next_decision(kept: Audit) -> None:
    none_left = mock.Mock(side_effect=RuntimeError("can't start new thread"))
    with mock.patch("threading.Thread.start", none_left), pytest.raises(RuntimeError, match="thread"):
        kept.write(ENTRY)
    kept.write(ENTRY)
    assert len(kept.find(10)) == 1, "and that of the decision that was not given is not kept"
