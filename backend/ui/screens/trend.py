"""Trend: scores, NG rate and image statistics by day, shift or hour, and whether the scores have moved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from starlette.responses import Response

from backend.ui.page import Page
from backend.ui.screen import Screen

screen = Screen("trend")

SPANS = (1, 7, 30, 90, 365)
BUCKETS = ("hour", "shift", "day")
SHIFTS = "06:00,14:00,22:00"
STATISTICS = (
    "level", "dark_areas", "median", "bright_areas", "contrast", "sharpness_fine", "sharpness_medium",
    "sharpness_local", "sharpness_coarse", "black", "white", "plain", "blue", "red", "layout_tone", "layout_detail",
)  # fmt: skip
"""Of the image check, as ``/stats`` names them."""

_LISTED = 50


@screen.get()
async def show(page: Page) -> Response:
    """Show the trend over the time that the address names."""
    if not await page.choose_roi():
        return await page.render("no_roi.html")
    query = page.request.query_params
    days = next((span for span in SPANS if str(span) == query.get("days")), 30)
    bucket = next((each for each in BUCKETS if each == query.get("bucket")), "day")
    shifts, place = query.get("shifts") or SHIFTS, _zone(query["tz"]) if query.get("tz") else local_zone()
    zone = "UTC" if place is None else place.key
    statistic = next((name for name in STATISTICS if name == query.get("statistic")), STATISTICS[0])
    now = datetime.now(UTC)
    asked = {"bucket": bucket, "tz": zone, "from": (now - timedelta(days=days)).isoformat()}
    if bucket == "shift":
        asked["shifts"] = shifts
    stats = await page.calls.get("/stats", **page.selection.roi, **asked)
    is_unknown_zone, place = place is None, place or ZoneInfo("UTC")
    periods = [_period(page, each, bucket, statistic) for each in stats["buckets"]]
    for period, after in zip(periods, [*periods[1:], None], strict=True):
        period["to"] = after["from"] if after else now.isoformat()
    return await page.render(
        "trend.html",
        days=days,
        spans=SPANS,
        bucket=bucket,
        buckets=BUCKETS,
        shifts=shifts,
        zone=zone,
        is_unknown_zone=is_unknown_zone,
        statistic=statistic,
        statistics=STATISTICS,
        drift=stats["drift"],
        since=_shown(page, stats["drift"]["since"], place),
        p_value=_p_value(page, stats["drift"]["p_value"]),
        periods=periods,
        marks=[{**mark, "time": _shown(page, mark["at"], place)} for mark in stats["marks"]],
        charts=_charts(page, periods, stats["marks"], now.astimezone(place), statistic),
        total=_total(periods),
        warnings=stats["warnings"],
    )


@screen.get("decisions")
async def decisions(page: Page) -> Response:
    """Show the decisions of one period, newest first."""
    query = page.request.query_params
    wanted = {name: query[name] for name in ("from", "to", "decision", "before_id") if query.get(name)}
    place = _zone(query.get("tz", "")) or UTC
    found = await page.calls.get("/decisions", **page.selection.roi, **wanted, limit=_LISTED)
    return page.fragment(
        "trend_decisions.html",
        found=[{**each, "time": _shown(page, each["at"], place)} for each in found["decisions"]],
        next_before_id=found["next_before_id"],
        asked={name: query.get(name, "") for name in ("from", "to", "tz", "name")},
        only=query.get("decision", ""),
    )


def local_zone() -> ZoneInfo:
    """Return the time zone of this machine by a name; one of a fixed offset where the system does not say which."""
    offset = datetime.now().astimezone().utcoffset() or timedelta(0)
    hours, rest = divmod(offset, timedelta(hours=1))
    _, _, name = str(Path("/etc/localtime").resolve()).partition("zoneinfo/")
    for each in (name, "UTC" if not offset else f"Etc/GMT{-hours:+d}" if not rest else ""):
        place = _zone(each) if each else None
        if place is not None and datetime.now(place).utcoffset() == offset:
            return place
    return ZoneInfo("UTC")


def _zone(name: str) -> ZoneInfo | None:
    """Return a time zone by its name; None where nobody knows it."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None


def _shown(page: Page, iso: str | None, place: tzinfo) -> str:
    return page.words.moment(datetime.fromisoformat(iso).astimezone(place), seconds=False) if iso else "–"


def _p_value(page: Page, value: float | None) -> str:
    return (
        f"< {page.words.number(0.0001, 4)}"
        if value is not None and value < 0.0001
        else f"= {page.words.number(value, 4)}"
    )


def _wall_s(when: datetime) -> float:
    """Return what a clock on the wall shows, s since 1970, for an axis that knows no time zones."""
    return when.replace(tzinfo=UTC).timestamp()


def _period(page: Page, bucket: dict[str, Any], by: str, statistic: str) -> dict[str, Any]:
    start = datetime.fromisoformat(bucket["start"])
    return {
        **bucket,
        "from": bucket["start"],
        "wall_s": _wall_s(start),
        "name": page.words.moment(start, hours=by != "day"),
        "statistic": bucket["image_statistics"].get(statistic),
    }


def _charts(
    page: Page, periods: list[dict[str, Any]], marks: list[dict[str, Any]], now: datetime, statistic: str
) -> list[dict[str, Any]]:
    """Return a chart each of ratios, scores, rates and the statistic, as the script draws it."""
    t, at = page.words, [each["wall_s"] for each in periods]
    shown = [{"at": _wall_s(datetime.fromisoformat(m["at"]).astimezone(now.tzinfo)), "kind": m["kind"]} for m in marks]
    times = [min([*at, *(mark["at"] for mark in shown)], default=0.0), _wall_s(now)]

    def chart(name: str, *lines: tuple[str, str, list[Any]], **how: Any) -> dict[str, Any]:
        named = [{"name": label, "colour": colour, "values": values} for label, colour, values in lines]
        return {"title": name, "data": {"at": at, "range": times, "marks": shown, "lines": named, **how}}

    both = [(t("trend.median"), "accent", "median"), (t("trend.p95"), "warn", "p95")]
    of = {
        which: [(label, colour, [each[which][name] for each in periods]) for label, colour, name in both]
        for which in ("ratio", "score")
    }
    return [
        chart(t("trend.ratio"), *of["ratio"], limit=1),
        chart(t("trend.score"), *of["score"]),
        chart(t("trend.ng_rate"), (t("trend.ng_rate"), "ng", [each["ng_rate"] for each in periods]), percent=True),
        chart(
            t(f"trend.statistic_{statistic}"),
            (t("trend.median"), "accent", [each["statistic"] for each in periods]),
            floats=True,
        ),
    ]


def _total(periods: list[dict[str, Any]]) -> dict[str, Any]:
    n, n_ng = (sum(each[name] for each in periods) for name in ("n", "n_ng"))
    return {
        "n": n,
        "n_ng": n_ng,
        "ng_rate": n_ng / n if n else None,
        "n_foreign": sum(each["n_not_an_image_of_the_part"] for each in periods),
    }
