"""Decisions, trends and drift of models: the use cases of ``/decisions`` and ``/stats``, and part of ``/overview``."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from backend.artifacts.model_key import ModelKey
from backend.history.calendar import Bucket, bucket_starts, period_of, seconds_of, shifts_of, zone_of
from backend.history.database import PERIOD_S
from backend.history.drift import Drift
from backend.history.reading import (
    BucketOfTime,
    Recent,
    drift_of,
    find_buckets,
    find_decisions,
    find_marks,
    find_recent,
    model_number,
)
from backend.history.recorder import History

DEFAULT_DAYS: Final = 30

_HALF_STEP_S: Final = 5e-7
"""Times are answered in whole microseconds: what was answered finds its own row."""

_NO_DRIFT: Final = Drift(state="too_few")


@dataclass(frozen=True, kw_only=True)
class Trend:
    """What a model has decided over time; ``zone`` is the time zone of its buckets."""

    zone: ZoneInfo
    buckets: Sequence[BucketOfTime]
    marks: Sequence[dict[str, Any]]
    drift: Drift


class Trends:
    """Answers questions about the history; safe to call from many threads."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._drifts: dict[ModelKey, tuple[object, Drift]] = {}

    def decisions(
        self, key: ModelKey, *, since: datetime | None, until: datetime | None, limit: int, **wanted: Any
    ) -> list[dict[str, Any]]:
        """Return decisions of a model, newest first; see ``find_decisions``.

        Raises:
            HistoryUnavailable: If the history cannot be read now.
        """
        times = {
            "since": None if since is None else seconds_of(since) - _HALF_STEP_S,
            "until": None if until is None else seconds_of(until) - _HALF_STEP_S,
        }

        def ask(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            model = model_number(connection, key)
            return [] if model is None else find_decisions(connection, model, limit, **times, **wanted)

        return self._history.read(ask, empty=[])

    def trend(
        self,
        key: ModelKey,
        *,
        since: datetime | None,
        until: datetime | None,
        bucket: Bucket,
        shifts: str,
        tz: str,
    ) -> Trend:
        """Return what a model has decided over time, and whether its scores have moved.

        Args:
            key: The model.
            since: From when; 30 days before ``until`` by default. Times are taken at whole periods.
            until: Until when; now by default.
            bucket: Over what values are put together.
            shifts: See ``shifts_of``.
            tz: See ``zone_of``.

        Raises:
            InvalidInput: If ``shifts`` or ``tz`` is malformed.
            HistoryUnavailable: If the history cannot be read now.
        """
        zone = zone_of(tz)
        start_of = bucket_starts(bucket, zone, shifts_of(shifts))
        nothing = Trend(zone=zone, buckets=[], marks=[], drift=_NO_DRIFT)
        last = int(time.time()) + 1 if until is None else -(-period_of(until) // PERIOD_S) * PERIOD_S
        first = last - DEFAULT_DAYS * 86_400 if since is None else period_of(since)

        def ask(connection: sqlite3.Connection) -> Trend:
            model = model_number(connection, key)
            if model is None:
                return nothing
            return Trend(
                zone=zone,
                buckets=find_buckets(connection, model, first, last, start_of),
                marks=find_marks(connection, model, first, last),
                drift=self._drift(connection, key, model),
            )

        return self._history.read(ask, empty=nothing)

    def recent(self, keys: Sequence[ModelKey]) -> dict[ModelKey, tuple[Recent, Drift]]:
        """Return what is new of each model, for those of which anything is kept.

        Raises:
            HistoryUnavailable: If the history cannot be read now.
        """
        now = time.time()

        def ask(connection: sqlite3.Connection) -> dict[ModelKey, tuple[Recent, Drift]]:
            numbers = {key: model_number(connection, key) for key in keys}
            return {
                key: (find_recent(connection, model, now), self._drift(connection, key, model))
                for key, model in numbers.items()
                if model is not None
            }

        return self._history.read(ask, empty={})

    def _drift(self, connection: sqlite3.Connection, key: ModelKey, model: int) -> Drift:
        """Return the drift of a model, computed again with each new period or mark."""
        state = tuple(
            connection.execute(
                "SELECT (SELECT MAX(at) FROM periods WHERE model = ?), (SELECT MAX(id) FROM marks WHERE model = ?)",
                (model, model),
            ).fetchone()
        )
        known = self._drifts.get(key)
        if known is None or known[0] != state:
            known = self._drifts[key] = (state, drift_of(connection, model))
        return known[1]
