"""What is asked of the history: decisions, counts and quantiles over time, marks, and what drift needs."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from backend.artifacts.model_key import ModelKey
from backend.history.database import PERIOD_S
from backend.history.drift import Drift, find_drift
from backend.history.sketch import Sketch

STRIP: Final = 50
"""Decisions of a model in an overview."""

DRIFT_DAYS: Final = 30
DAY_S: Final = 86_400


@dataclass(frozen=True, kw_only=True)
class BucketOfTime:
    """What was counted in an hour, a shift or a day.

    Attributes:
        start: When it began, s since 1970.
        n: Decisions on parts that the memory had not learned.
        n_ng: Of these ``ng``.
        n_foreign: Of these for an image that is none of the part.
        sketch: Scores, ratios and statistics of the images.
    """

    start: float
    n: int
    n_ng: int
    n_foreign: int
    sketch: Sketch


@dataclass(frozen=True, kw_only=True)
class Recent:
    """What is new of a model.

    Attributes:
        last: The last decisions, newest last.
        n: Decisions of the last 24 hours, by whole periods.
        n_ng: Of these ``ng``.
    """

    last: Sequence[Mapping[str, Any]]
    n: int
    n_ng: int


def model_number(connection: sqlite3.Connection, key: ModelKey) -> int | None:
    """Return the number of a model in the file; None where nothing is kept of it."""
    found = connection.execute(
        "SELECT id FROM models WHERE recipe_id = ? AND role_id = ? AND roi_id = ? AND model_key = ?",
        (key.recipe_id, key.role_id, key.roi_id, key.model_key),
    ).fetchone()
    return None if found is None else int(found[0])


def find_decisions(
    connection: sqlite3.Connection, model: int, limit: int, **wanted: float | int | str | None
) -> list[dict[str, Any]]:
    """Return decisions, newest first, at most ``limit``.

    Args:
        connection: As ``open_to_read`` made it.
        model: Number of the model.
        limit: The most.
        wanted: since (s, included), until (s, not included), decision, before_id; None asks for all.
    """
    conditions = {"since": "at >= ?", "until": "at < ?", "decision": "decision = ?", "before_id": "id < ?"}
    asked = {conditions[name]: value for name, value in wanted.items() if value is not None}
    where = " AND ".join(["model = ?", *asked])
    rows = connection.execute(
        f"SELECT * FROM decisions WHERE {where} ORDER BY id DESC LIMIT ?", [model, *asked.values(), limit]
    )
    return [dict(row) for row in rows]


def find_marks(connection: sqlite3.Connection, model: int, since: int, until: int) -> list[dict[str, Any]]:
    """Return the marks of a model in a time, oldest first."""
    rows = connection.execute(
        "SELECT * FROM marks WHERE model = ? AND at >= ? AND at < ? ORDER BY id", (model, since, until)
    )
    return [{**dict(row), "facts": json.loads(row["facts"])} for row in rows]


def find_buckets(
    connection: sqlite3.Connection, model: int, since: int, until: int, start_of: Callable[[float], float]
) -> list[BucketOfTime]:
    """Return what was counted between two times, oldest first; buckets in which nothing was inspected are left out."""
    buckets: dict[float, list[tuple[int, int, int, bytes]]] = defaultdict(list)
    for at, *counted in connection.execute(
        "SELECT at, n, n_ng, n_foreign, sketch FROM periods WHERE model = ? AND at >= ? AND at < ? ORDER BY at",
        (model, since, until),
    ):
        buckets[start_of(at)].append(tuple(counted))
    return [
        BucketOfTime(
            start=start,
            n=sum(row[0] for row in rows),
            n_ng=sum(row[1] for row in rows),
            n_foreign=sum(row[2] for row in rows),
            sketch=Sketch.sum(Sketch.from_bytes(row[3]) for row in rows),
        )
        for start, rows in buckets.items()
    ]


def find_recent(connection: sqlite3.Connection, model: int, now: float) -> Recent:
    """Return what is new of a model."""
    last = connection.execute(
        "SELECT id, at, decision, score, threshold, reject_reason FROM decisions "
        "WHERE model = ? AND NOT learned ORDER BY id DESC LIMIT ?",
        (model, STRIP),
    ).fetchall()
    n, n_ng = connection.execute(
        "SELECT TOTAL(n), TOTAL(n_ng) FROM periods WHERE model = ? AND at > ?", (model, now - DAY_S - PERIOD_S)
    ).fetchone()
    return Recent(last=[dict(row) for row in reversed(last)], n=int(n), n_ng=int(n_ng))


def drift_of(connection: sqlite3.Connection, model: int) -> Drift:
    """Return whether the ratio of score and threshold has moved since the last fit, calibration or activation.

    What counts is the last 30 days of decisions with the memory and the score mode of the newest one.
    """
    newest = connection.execute(
        "SELECT at, memory FROM periods WHERE model = ? ORDER BY at DESC LIMIT 1", (model,)
    ).fetchone()
    if newest is None:
        return Drift(state="too_few")
    at, memory = newest
    (mark,) = connection.execute("SELECT MAX(at) FROM marks WHERE model = ?", (model,)).fetchone()
    # From the first whole period since a mark.
    since = max(at - DRIFT_DAYS * DAY_S, 0 if mark is None else -int(-mark // PERIOD_S) * PERIOD_S)
    rows = connection.execute(
        "SELECT at, n_ratio, ratio FROM periods WHERE model = ? AND at >= ? AND memory = ? AND n_ratio > 0 ORDER BY at",
        (model, since, memory),
    ).fetchall()
    times, counts, medians = ([row[column] for row in rows] for column in range(3))
    return find_drift(times, counts, medians)
