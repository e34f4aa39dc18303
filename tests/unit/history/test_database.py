from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from backend.history.database import FILE_NAME, fault_of, open_to_read


def test_a_history_that_is_only_just_begun_is_neither_damaged_nor_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    assert fault_of(path) is None
    with pytest.raises(FileNotFoundError):
        open_to_read(path)


def test_a_file_with_tables_of_somebody_else_is_no_history(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (id INTEGER)")
    assert fault_of(path) is not None
