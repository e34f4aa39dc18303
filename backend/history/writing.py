"""Decisions into the file of the history, many at a time."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from backend.artifacts.model_key import ModelKey
from backend.history.database import DECISION_COLUMNS, PERIOD_S
from backend.history.record import Decision, Mark
from backend.history.sketch import Sketch

KEPT_DAYS: Final = 400
"""How long periods are kept."""

KEPT_MARKS: Final = 1000

_INSERT = f"INSERT INTO decisions ({', '.join(DECISION_COLUMNS)}) VALUES ({', '.join('?' * len(DECISION_COLUMNS))})"
_UPSERT = (
    "INSERT OR REPLACE INTO periods (model, at, memory, n, n_ng, n_foreign, n_ratio, ratio, sketch) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class Writer:
    """Writes to one connection; for one thread.

    Args:
        connection: As ``open_to_write`` made it.
        kept: Decisions that are kept of each model; up to 1 % more stay until the next are deleted together.
    """

    def __init__(self, connection: sqlite3.Connection, kept: int) -> None:
        self._connection = connection
        self._kept = kept
        self._models: dict[ModelKey, int] = {}
        self._since_trim: dict[int, int] = {}

    def write(self, records: Sequence[Decision | Mark]) -> None:
        """Write records in one transaction: all of them, or none.

        Raises:
            sqlite3.Error: If they cannot be written.
        """
        numbers = {key: self._number(key) for key in {record.key for record in records}}
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                decisions = [each for each in records if isinstance(each, Decision)]
                self._connection.executemany(_INSERT, [(numbers[each.key], each.at, *each.row) for each in decisions])
                self._count(numbers, decisions)
                for mark in records:
                    if isinstance(mark, Mark):
                        self._mark(numbers[mark.key], mark)
                for model in {numbers[each.key] for each in decisions}:
                    self._trim(model, sum(numbers[each.key] == model for each in decisions))
        except BaseException:
            self._models.clear()  # what was numbered in it is not
            raise

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _number(self, key: ModelKey) -> int:
        if key not in self._models:
            ids = (key.recipe_id, key.role_id, key.roi_id, key.model_key)
            self._connection.execute(
                "INSERT OR IGNORE INTO models (recipe_id, role_id, roi_id, model_key) VALUES (?, ?, ?, ?)", ids
            )
            (self._models[key],) = self._connection.execute(
                "SELECT id FROM models WHERE recipe_id = ? AND role_id = ? AND roi_id = ? AND model_key = ?", ids
            ).fetchone()
        return self._models[key]

    def _count(self, numbers: dict[ModelKey, int], decisions: Iterable[Decision]) -> None:
        periods: dict[tuple[int, int, str], list[Decision]] = defaultdict(list)
        for each in decisions:
            if not each.is_learned:
                periods[numbers[each.key], int(each.at // PERIOD_S) * PERIOD_S, each.memory].append(each)
        for period, found in periods.items():
            before = self._connection.execute(
                "SELECT n, n_ng, n_foreign, sketch FROM periods WHERE model = ? AND at = ? AND memory = ?", period
            ).fetchone()
            n, n_ng, n_foreign, data = before or (0, 0, 0, None)
            sketch = Sketch.of([value for each in found for value in each.values])
            if data is not None:
                sketch = Sketch.sum([Sketch.from_bytes(data), sketch])
            self._connection.execute(
                _UPSERT,
                (
                    *period,
                    n + len(found),
                    n_ng + sum(each.decision == "ng" for each in found),
                    n_foreign + sum(each.is_foreign for each in found),
                    sketch.count("ratio"),
                    sketch.quantiles(0.5).get("ratio"),
                    sketch.to_bytes(),
                ),
            )

    def _mark(self, model: int, mark: Mark) -> None:
        if mark.kind == "fit":
            last = self._connection.execute(
                "SELECT memory_checksum FROM marks WHERE model = ? ORDER BY id DESC LIMIT 1", (model,)
            ).fetchone()
            if last is not None and last[0] == mark.memory_checksum:
                return  # nothing new was learned
        self._connection.execute(
            "INSERT INTO marks (model, at, kind, memory_checksum, facts) VALUES (?, ?, ?, ?, ?)",
            (model, mark.at, mark.kind, mark.memory_checksum, json.dumps(dict(mark.facts), allow_nan=False)),
        )
        self._delete_beyond("marks", model, KEPT_MARKS)

    def _trim(self, model: int, n_new: int) -> None:
        due = self._since_trim.get(model)
        self._since_trim[model] = n_new if due is None else due + n_new
        if due is not None and due + n_new <= self._kept // 100:
            return
        self._since_trim[model] = 0
        self._delete_beyond("decisions", model, self._kept)
        self._connection.execute(
            "DELETE FROM periods WHERE model = ? AND at < (SELECT MAX(at) FROM periods WHERE model = ?) - ?",
            (model, model, KEPT_DAYS * 86_400),
        )

    def _delete_beyond(self, table: str, model: int, kept: int) -> None:
        self._connection.execute(
            f"DELETE FROM {table} WHERE model = ? AND id <= "
            f"(SELECT id FROM {table} WHERE model = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (model, model, kept),
        )
