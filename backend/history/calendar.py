"""Hours, shifts and days of a time zone, as the beginnings of buckets on the time axis.

A day has 23 or 25 hours where the clocks change, and so has the shift that this falls into its own length. An hour that
comes twice is two.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Final, Literal
from zoneinfo import ZoneInfo

from backend.errors import InvalidInput
from backend.history.database import PERIOD_S

Bucket = Literal["hour", "shift", "day"]

MAX_SHIFTS: Final = 24


def zone_of(name: str) -> ZoneInfo:
    """Return a time zone by its IANA name.

    Raises:
        InvalidInput: If there is none of this name.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # unknown; a path out of the data base; a folder of it
        raise InvalidInput(
            f"tz is {name!r}, which is no time zone. Send a name such as Europe/Madrid, or UTC.",
            details={"field": "tz"},
        ) from error


def shifts_of(text: str) -> tuple[time, ...]:
    """Return the beginnings of shifts, as in ``06:00,14:00,22:00``.

    Raises:
        InvalidInput: If it is no such list, or a shift does not begin at a quarter of an hour.
    """
    refused = InvalidInput(
        "shifts must be the beginnings of shifts in ascending order, at whole quarters of an hour, as in "
        f"06:00,14:00,22:00; at most {MAX_SHIFTS}.",
        details={"field": "shifts"},
    )
    found = []
    for part in text.split(","):
        hours, colon, minutes = part.strip().partition(":")
        if not (colon and len(minutes) == 2 and 1 <= len(hours) <= 2 and (hours + minutes).isascii()):
            raise refused
        if not (hours + minutes).isdigit() or int(hours) > 23 or int(minutes) > 59 or int(minutes) % 15:
            raise refused
        found.append(time(int(hours), int(minutes)))
    if len(found) > MAX_SHIFTS or any(after <= before for before, after in pairwise(found)):
        raise refused
    return tuple(found)


def bucket_starts(bucket: Bucket, zone: ZoneInfo, shifts: Sequence[time]) -> Callable[[float], float]:
    """Return what gives the beginning of the bucket that a time falls into; both are s since 1970."""
    if bucket == "hour":
        return lambda at: _hour(at, zone)
    times = (time(0),) if bucket == "day" else tuple(shifts)

    @lru_cache(maxsize=1024)
    def boundaries(ordinal: int) -> list[float]:
        """Return the boundaries of a day and of the ones beside it."""
        days = [datetime.fromordinal(ordinal + n) for n in (-1, 0, 1)]
        return sorted(datetime.combine(day, each, zone).timestamp() for day in days for each in times)

    def start(at: float) -> float:
        moments = boundaries(datetime.fromtimestamp(at, zone).toordinal())
        return moments[bisect_right(moments, at) - 1]

    return start


def seconds_of(moment: datetime) -> float:
    """Return a time with its zone as s since 1970, also the first and the last that there are."""
    since = moment.replace(tzinfo=None) - datetime(1970, 1, 1)
    return (since - (moment.utcoffset() or timedelta())).total_seconds()


def period_of(moment: datetime) -> int:
    """Return the beginning of the period that a time falls into, s since 1970."""
    return int(seconds_of(moment) // PERIOD_S) * PERIOD_S


def iso(at: float) -> datetime:
    """Return a time of the file, s since 1970, as a time in UTC."""
    return datetime.fromtimestamp(at, UTC)


def _hour(at: float, zone: ZoneInfo) -> float:
    local = datetime.fromtimestamp(at, zone)
    return at - local.minute * 60 - local.second
