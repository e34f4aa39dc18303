"""Threshold: the scores of the stored images as a histogram, a threshold to move across them, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, log2
from typing import Any

from starlette.responses import Response

from backend.ui.client import CallFailed
from backend.ui.page import Page
from backend.ui.screen import Screen

screen = Screen("threshold")

MODES = ("area", "max", "top_mean", "percentile")
_BINS = 50
_LARGEST_RATIO = 500
"""Of the scores that the axis shows apart; what is lower stands at its left end."""
SETTINGS = ("ok_percentile", "margin", "area_mm2_thr", "score_percentile")


@screen.get()
async def show(page: Page) -> Response:
    """Show the settings; the scores follow, for they may take a while the first time."""
    if not await page.choose_roi():
        return await page.render("no_roi.html")
    manifest = await page.calls.get("/manifest", **page.selection.roi)
    if not manifest["memory"]:
        return await page.render("threshold_none.html")
    calib, rule = manifest["calib"], manifest["calib"] or {}
    return await page.render(
        "threshold.html",
        calib=calib,
        is_stale=manifest["calibration_stale"],
        modes=MODES,
        mode=rule.get("score_mode"),
        settings={name: rule.get(name) for name in SETTINGS} | {"ok_percentile": rule.get("ok_percentile", 99)},
    )


@screen.get("scores")
async def scores(page: Page) -> Response:
    """Show the scores under the settings of the form."""
    asked = settings_of(page.request.query_params)
    named = {name: asked[name] for name in SETTINGS if name in asked}
    found = await page.calls.get("/scores", **page.selection.roi, **named)
    mode = asked.get("score_mode", found["score_mode"])
    images = [{**image, "score": image["scores"][mode]} for image in found["images"] if mode in image["scores"]]
    images.sort(key=lambda image: image["score"])
    calib, chosen = found["calib"], found["thresholds"].get(mode)
    in_force = calib["threshold"] if calib and calib["score_mode"] == mode else 0.0
    shown = [chosen["threshold"] if chosen else 0.0, in_force, *(image["score"] for image in images)]
    highest = max(shown) or 1.0
    lowest = max(min(score for score in (*shown, highest) if score > 0), highest / _LARGEST_RATIO)
    low, high = log2(0.85 * lowest), log2(1.1 * highest)
    return page.fragment(
        "threshold_scores.html",
        found=found,
        chosen=chosen,
        low=low,
        high=high,
        in_force=log2(in_force) if in_force else None,
        by_hand=not chosen or bool(in_force and calib["method"] == "manual"),
        data={
            "mode": mode,
            "proposed": chosen and chosen["threshold"],
            "by_rule": chosen and _promise(page, chosen),
            "bars": _histogram(images, low, high),
            "images": [_shown(page, image, low) for image in images],
            **_worth(page, found, images),
        },
    )


def _histogram(images: list[dict[str, Any]], low: float, high: float) -> list[list[float | None]]:
    """Return the middles of the bins, and the numbers of good and of bad images in them; the bad ones below zero."""
    width = (high - low) / _BINS
    counts: dict[str, list[float | None]] = {"ok": [None] * _BINS, "ng": [None] * _BINS}
    for image in images:
        place = min(_BINS - 1, int((_log2(image["score"], low) - low) / width))
        of_label = counts[image["label"]]
        of_label[place] = (of_label[place] or 0) + (1 if image["label"] == "ok" else -1)
    return [[low + (place + 0.5) * width for place in range(_BINS)], counts["ok"], counts["ng"]]


def _shown(page: Page, image: dict[str, Any], low: float) -> dict[str, Any]:
    name, label = image["filename"], image["label"]
    return {
        "at": _log2(image["score"], low),
        "name": name or image["image_digest"][:12],
        "src": name and page.call_address("/datasets/preview", label=label, filename=name, edge_px=320),
        "said": page.words(
            "threshold.one_suspect" if image["suspect"] else f"threshold.one_{label}",
            value=page.words.number(image["score"], 4),
        ),
    }


def _worth(page: Page, found: dict[str, Any], images: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the parts' scores, and what is said of a threshold by how many of them lie no higher than it."""
    good, bad = (
        sorted({image["part_id"]: image["score"] for image in images if image["label"] == label}.values())
        for label in ("ok", "ng")
    )
    said = {
        name: [page.words("threshold.of", n=len(scores) - n, all=n_all) for n in range(len(scores) + 1)]
        for name, scores, n_all in (("good", good, found["n_ok"]), ("bad", bad, len(bad)))
    }
    return {
        "good": good,
        "bad": bad,
        "worth": {**said, "promises": [_promise(page, each) for each in found["promises"]]},
    }


def _promise(page: Page, bounds: dict[str, Any]) -> dict[str, str]:
    return {
        "expected": page.words.number(1000 * bounds["expected_false_alarm_rate"], 1),
        "bound": page.words.number(1000 * bounds["false_alarm_rate_upper_95"], 1),
    }


def _log2(score: float, low: float) -> float:
    return max(low, log2(score)) if score > 0 else low


@screen.post("try")
async def try_out(page: Page) -> Response:
    """Show what the settings of the form would do, beside what is in force, and how to apply them."""
    asked = settings_of(await page.form())
    new = await page.calls.post("/calibrate_ng", {**page.selection.roi, **asked, "dry_run": True})
    return page.fragment("threshold_tried.html", new=new, old=await in_force(page))


@screen.post("apply")
async def apply(page: Page) -> Response:
    """Set the threshold of the form, with its reason."""
    form = await page.form()
    reason = {"reason": form["reason"].strip()} if form.get("reason", "").strip() else {}
    new = await page.calls.post("/calibrate_ng", {**page.selection.roi, **settings_of(form), **reason})
    return page.notice(page.words("threshold.applied", value=new["threshold"]), event="threshold-applied")


async def in_force(page: Page) -> dict[str, Any] | None:
    """Return the calibration in force; None without one, or where it is damaged and about to be replaced."""
    try:
        calib: dict[str, Any] | None = (await page.calls.get("/manifest", **page.selection.roi))["calib"]
    except CallFailed:
        return None
    return calib


def settings_of(form: Mapping[str, str]) -> dict[str, Any]:
    """Return what ``/calibrate_ng`` is to be asked with; a text that is no number goes along as it is."""
    by_hand = form.get("how") == "hand"
    names = (*SETTINGS[2:], "threshold") if by_hand else SETTINGS
    given = {name: form.get(name, "").strip().replace(",", ".") for name in names}
    asked: dict[str, Any] = {name: _number(text) for name, text in given.items() if text or name == "threshold"}
    if form.get("score_mode") not in ("percentile", "top_mean", None):
        asked.pop("score_percentile", None)  # it has no effect
    return asked | ({"score_mode": form["score_mode"]} if form.get("score_mode") in MODES else {})


def _number(text: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        return text
    return value if isfinite(value) else text
