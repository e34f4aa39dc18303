"""Why: one decision with its image, overlay, regions and image check, and what it would do to keep the image."""

from __future__ import annotations

from math import ceil
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from backend.ui.client import CallFailed
from backend.ui.page import Page
from backend.ui.screen import Screen
from backend.ui.screens import jobs
from backend.ui.screens.threshold import in_force

screen = Screen("why")

_LISTED = 25
_SHOWN_REGIONS = 50
_LARGEST_ID = 2**53 - 1
_REASON_CHARS = 200
_ASKED_AS = {"verdict": "decision", "before": "before_id"}
"""What the address calls the parameters of ``/decisions``."""
_AROUND = 1.4
"""Edge of the patches that are shown, in edges of the region."""
_ROUNDING = 1e-3


class Nearest(BaseModel):
    """A place of a good image, px of that image."""

    image_digest: str
    name: str | None
    x: int
    y: int
    w: int
    h: int


class Region(BaseModel):
    """A region, px of the image; fields as of ``/infer``."""

    x: int
    y: int
    w: int
    h: int
    area_mm2: float
    peak: float
    nearest: Nearest | None = None


class Statistic(BaseModel):
    """A statistic of the image beside its range on the good ones."""

    value: float
    low: float
    high: float
    distance: float


class Check(BaseModel):
    """The image check."""

    verdict: Literal["ok", "unusual", "foreign"]
    statistics: dict[str, Statistic]


class Found(BaseModel):
    """What the screen shows of an answer of ``/infer``, or of a decision."""

    score: float
    threshold: float | None
    decision: Literal["ok", "ng"] | None
    reject_reason: str | None = None
    regions: list[Region] = []
    image_check: Check | None = None
    warnings: list[str] = []
    params: dict[str, Any] = {}


@screen.get()
async def show(page: Page) -> Response:
    """Show the newest decisions, or those of a time, and the one that the address names."""
    if not await page.choose_roi():
        return await page.render("no_roi.html")
    query, roi = page.request.query_params, page.selection.roi
    wanted = {name: query.get(name) or None for name in ("from", "to", "verdict", "before")}
    asked = {_ASKED_AS.get(name, name): text for name, text in wanted.items()}
    listed = await page.calls.get("/decisions", **roi, limit=_LISTED, **asked)
    chosen = query.get("decision", "")
    shown: dict[str, Any] = {"found": None}
    if chosen.isascii() and chosen.isdecimal() and int(chosen) < _LARGEST_ID:
        near = await page.calls.get("/decisions", **roi, before_id=int(chosen) + 1, limit=1)
        shown = await _decision(page, next((each for each in near["decisions"] if each["id"] == int(chosen)), None))
    fit = (await page.calls.get("/manifest", **roi))["fit"]
    return await page.render("why.html", listed=listed, wanted=wanted, chosen=chosen, fit=fit, **shown)


@screen.post("found")
async def found(page: Page) -> Response:
    """Show an answer of ``/infer`` that the browser has asked for; it also has the images."""
    form = await page.form()
    try:
        answer = Found.model_validate_json(form.get("answer", ""))
    except ValidationError:
        return page.notice(page.words("why.unreadable"), kind="error")
    shown = await _shown(page, answer, name=form.get("name", "")[:200], of_browser=True)
    return page.fragment("why_found.html", **shown)


@screen.post("would")
async def would(page: Page) -> Response:
    """Show what the threshold would be if an image were kept."""
    form = await page.form()
    label = "ng" if form.get("label") == "ng" else "ok"
    stored = (await page.calls.get("/scores", **page.selection.roi))["images"]
    if known := [image["label"] for image in stored if image["image_digest"] == form.get("digest")]:
        return page.fragment("why_known.html", label=known[0])
    calib = await in_force(page)
    asked = {"score_mode": form.get("mode") or None, **_settings_of(calib), "dry_run": True}
    new = await page.calls.post(
        "/calibrate_ng", {**page.selection.roi, **asked, f"add_{label}_scores": [form.get("score", "")]}
    )
    without = await page.calls.post("/calibrate_ng", {**page.selection.roi, **asked})
    moves = calib is not None and abs(without["threshold"] - calib["threshold"]) > _ROUNDING * calib["threshold"]
    return page.fragment(
        "why_would.html",
        label=label,
        score=float(form.get("score", "")),
        old=calib,
        new=new,
        without=without if moves else None,
        rests_on_sent=calib is not None and "request" in (calib["ok_scores_from"], calib["ng_scores_from"]),
    )


@screen.post("kept")
async def kept(page: Page) -> Response:
    """Say what became of an image that the browser has stored; a bad one counts at once."""
    form = await page.form()
    name, label, new = form.get("name", ""), form.get("label", ""), None
    if label == "ng" and (calib := await in_force(page)) is not None:
        asked = {**_settings_of(calib), "reason": f"NG + {name}"[:_REASON_CHARS]}
        new = await page.calls.post("/calibrate_ng", {**page.selection.roi, **asked})
    return page.fragment("why_kept.html", label=label, name=name, new=new)


@screen.post("learn")
async def learn(page: Page) -> Response:
    """Learn the stored good images, as a job."""
    fit = (await page.calls.get("/manifest", **page.selection.roi))["fit"]
    fields = {**page.selection.roi, "use_dataset": "true", "mm_per_px": fit["mm_per_px"]}
    return jobs.started(page, await page.calls.post_form("/fit_ok", fields, in_background=True))


def _settings_of(calib: dict[str, Any] | None) -> dict[str, Any]:
    """Return the settings of a calibration, to make it anew from what is stored."""
    if calib is None:
        return {}
    return {
        name: calib[name] for name in (("threshold",) if calib["method"] == "manual" else ("ok_percentile", "margin"))
    }


async def _decision(page: Page, decision: dict[str, Any] | None) -> dict[str, Any]:
    """Return what is to be shown of a decision: what is kept of it, with its image where that is kept as well."""
    if decision is None:
        return {"found": None, "is_gone": True}
    entry_id, regions, params = decision["audit_entry_id"], [], {}
    if entry_id is not None:
        try:
            regions = (await page.calls.get(f"/audit/{entry_id}/regions"))["regions"]
            entries = (await page.calls.get("/audit", before_id=entry_id + 1, limit=1))["entries"]
            params = {"mm_per_px": entries[0]["mm_per_px"]}
        except CallFailed:  # dropped meanwhile, or not for this role
            entry_id = None
    answer = Found.model_validate({**decision, "image_check": None, "regions": regions, "params": params})
    return {**await _shown(page, answer, name=decision["filename"], entry_id=entry_id), "decision": decision}


async def _shown(
    page: Page, answer: Found, *, name: str, entry_id: int | None = None, of_browser: bool = False
) -> dict[str, Any]:
    regions = answer.regions[:_SHOWN_REGIONS]
    hottest = max(regions, key=lambda region: region.peak, default=None)
    has_image = of_browser or entry_id is not None
    views = {view: page.address(f"/audit/{entry_id}/{view}") for view in ("image", "overlay")} if entry_id else {}
    return {
        "found": answer,
        "name": name,
        "regions": regions,
        "hottest": hottest,
        "pair": await _pair(page, hottest) if has_image and hottest is not None else None,
        "views": views,
        "has_image": has_image,
        "decision": None,
        "strange": _strange(answer.image_check),
    }


async def _pair(page: Page, region: Region) -> dict[str, Any] | None:
    """Return the windows of the hottest region and of the good place that it is most like; None without that place."""
    nearest = region.nearest
    if nearest is None or nearest.name is None:
        return None
    image = {"label": "ok", "filename": nearest.name}
    try:
        meta = await page.calls.get("/datasets/meta", **page.selection.roi, **image)
    except CallFailed:  # deleted since
        return None
    edge = ceil(_AROUND * max(region.w, region.h, nearest.w, nearest.h))
    return {
        "hot": _window(region, edge),
        "good": _window(nearest, edge),
        "address": page.call_address("/datasets/preview", **image, edge_px=4096),
        "width": meta["width"],
        "height": meta["height"],
        "name": nearest.name,
    }


def _window(place: Region | Nearest, edge: int) -> str:
    """Return the square around a place as SVG's viewBox."""
    return f"{place.x + place.w / 2 - edge / 2:g} {place.y + place.h / 2 - edge / 2:g} {edge} {edge}"


def _strange(check: Check | None) -> list[tuple[str, Statistic]]:
    """Return the statistics that lie farthest outside the range of the good images, the farthest first."""
    outside = [] if check is None else [item for item in check.statistics.items() if item[1].distance]
    return sorted(outside, key=lambda item: -abs(item[1].distance))[:5]
