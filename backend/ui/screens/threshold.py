"""Threshold: the scores of the stored images as a histogram, a threshold to move across them, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from typing import Any

from starlette.responses import Response

from backend.ui.client import CallFailed
from backend.ui.page import Page
from backend.ui.screen import Screen

screen = Screen("threshold")

MODES = ("area", "max", "top_mean", "percentile")
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
    in_force = calib["threshold"] if calib and calib["score_mode"] == mode else None
    good, bad = (_worst(images, label) for label in ("ok", "ng"))
    shown = [chosen["threshold"] if chosen else 0, in_force or 0, *(image["score"] for image in images)]
    highest = max(shown) or 1.0
    data = {
        "images": [
            {
                "label": image["label"],
                "score": image["score"],
                "name": image["filename"],
                "id": image["image_digest"][:12],
            }
            for image in images
        ],
        "good": good,
        "bad": bad,
        "mode": mode,
        "promises": found["promises"],
        "by_rule": chosen and {name: chosen[name] for name in found["promises"][0]},
        "n_ok": found["n_ok"],
        "proposed": chosen["threshold"] if chosen else None,
        "in_force": in_force,
        "from_log2": log2(0.85 * max(min([score for score in shown if score > 0], default=1.0), highest / 500)),
        "to_log2": log2(1.1 * highest),
    }
    return page.fragment("threshold_scores.html", found=found, mode=mode, chosen=chosen, data=data)


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
    given = {name: form[name].strip().replace(",", ".") for name in names if form.get(name, "").strip()}
    asked: dict[str, Any] = {name: _number(text) for name, text in given.items()}
    if form.get("score_mode") not in ("percentile", "top_mean", None):
        asked.pop("score_percentile", None)  # it has no effect
    return asked | ({"score_mode": form["score_mode"]} if form.get("score_mode") in MODES else {})


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _worst(images: list[dict[str, Any]], label: str) -> list[float]:
    """Return the largest score of each part, ascending; the images are in the order of their scores."""
    return sorted({image["part_id"]: image["score"] for image in images if image["label"] == label}.values())
