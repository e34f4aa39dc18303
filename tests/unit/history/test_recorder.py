"""The bound of the history, and that nobody waits for it."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from backend.artifacts.model_key import ModelKey
from backend.history import recorder
from backend.history.database import fault_of
from backend.history.recorder import History
from backend.history.writing import KEPT_DAYS, KEPT_MARKS
from backend.maintenance.verifying import verify_folder
from tests.unit.history.records import recorded

KEYS = [ModelKey(role_id="view", roi_id=f"roi-{n}") for n in range(3)]


def count(history: History, table: str) -> int:
    return history.read(
        lambda connection: int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]), empty=0
    )


def test_each_model_keeps_its_last_decisions_and_all_counts(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3", kept=10)
    for n in range(40):
        for key in KEYS[: 2 if n % 2 else 3]:
            history._take(recorded(key, 1e9 + n, 0.7))
        history.flush(10)
    assert count(history, "decisions") == 30
    n_counted = history.read(lambda c: c.execute("SELECT SUM(n) FROM periods").fetchone()[0], empty=0)
    assert n_counted == 40 + 40 + 20
    history.close()


def test_old_periods_and_marks_are_not_kept_for_ever(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3", kept=10)
    for day in (0, 1, KEPT_DAYS, KEPT_DAYS + 1):
        history._take(recorded(KEYS[0], 1e9 + 86_400 * day, 0.7))
        history.flush(10)
    assert count(history, "periods") == 3
    for n in range(KEPT_MARKS + 5):
        history.mark(KEYS[0], "calibration", "a" * 64, at=float(n))
    assert count(history, "marks") == KEPT_MARKS
    history.close()


def test_more_than_can_wait_is_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MAX_WAITING", 5)
    path = tmp_path / "history.sqlite3"
    history = History(path, kept=100)
    history._take(recorded(KEYS[0], 1e9, 0.7))
    history.flush(10)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # whoever writes now waits
    for n in range(50):
        history._take(recorded(KEYS[0], 1e9 + n, 0.7))
    assert history.dropped >= 40
    other.execute("ROLLBACK")
    other.close()
    assert count(history, "decisions") + history.dropped == 51
    history.close()


def test_what_waits_is_written_at_the_end_and_nothing_is_taken_after_it(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3", kept=100)
    for n in range(50):
        history._take(recorded(KEYS[0], time.time() + n, 0.7))
    history.close()
    history._take(recorded(KEYS[0], 1e9, 0.7))
    assert (count(history, "decisions"), history.dropped) == (50, 1)


def test_two_processes_on_one_file_count_together(tmp_path: Path) -> None:
    histories = [History(tmp_path / "history.sqlite3", kept=100) for _ in range(2)]
    for n in range(20):
        histories[n % 2]._take(recorded(KEYS[0], 1e9 + n, 0.7))
        histories[n % 2].flush(10)
    total = histories[0].read(lambda c: c.execute("SELECT SUM(n) FROM periods").fetchone()[0], empty=0)
    assert (total, [each.dropped for each in histories]) == (20, [0, 0])
    for each in histories:
        each.close()


def test_verify_knows_the_history_and_names_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    history = History(path, kept=100)
    history._take(recorded(KEYS[0], 1e9, 0.7))
    history.flush(10)
    assert verify_folder(tmp_path) == []
    history.close()
    path.write_bytes(b"no database" * 500)
    assert fault_of(path) is not None
    assert [(problem.path, problem.fault) for problem in verify_folder(tmp_path)] == [(path.name, "damaged")]
    again = History(path, kept=100)
    again._take(recorded(KEYS[0], 1e9, 0.7))
    assert (count(again, "decisions"), again.dropped) == (1, 0)
    again.close()
    assert verify_folder(tmp_path) == []
