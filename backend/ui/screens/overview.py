"""Overview: a card per ROI of the recipe, with its last decisions, and how the service is in one line."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from backend.ui.page import Page
from backend.ui.screen import Screen

screen = Screen("overview")

STRIP_LENGTH = 50
_HEIGHTS = {"ok": 10, "ng": 24, "image": 24, "none": 4}


@screen.get()
async def show(page: Page) -> Response:
    """Show all ROIs of the recipe."""
    await page.load_recipes()
    found = await _found(page)
    return await page.render("overview.html" if found["cards"] else "no_roi.html", **found)


@screen.get("cards")
async def cards(page: Page) -> Response:
    """Show the cards alone, as they are now."""
    return page.fragment("overview_cards.html", **await _found(page))


async def _found(page: Page) -> dict[str, Any]:
    overview, health = await asyncio.gather(page.calls.get("/overview"), page.calls.get("/health"))
    return {"cards": [_card(page, roi) for roi in overview["rois"]], "health": health}


def _card(page: Page, roi: dict[str, Any]) -> dict[str, Any]:
    """Return what a card shows: the ROI as answered, its state, its strip, and where it leads."""
    bars = [_bar(decision, place) for place, decision in enumerate(roi["last"][-STRIP_LENGTH:])]
    counts = {kind: sum(bar["kind"] == kind for bar in bars) for kind in _HEIGHTS}
    return {
        "roi": roi,
        "name": page.selection.of(roi),
        "state": _state(roi),
        "bars": bars,
        "counts": counts | {"n": len(bars), "ng": counts["ng"] + counts["image"]},
    }


def _state(roi: dict[str, Any]) -> str:
    if not roi["fitted"]:
        return "unfitted"
    if roi["calibrated"]:
        return "inspecting"
    return "stale" if roi["calibration_stale"] else "uncalibrated"


def _bar(decision: dict[str, Any], place: int) -> dict[str, Any]:
    kind = "image" if decision.get("reject_reason") == "image" else decision["decision"] or "none"
    height = _HEIGHTS[kind]
    return {"kind": kind, "x": 4 * place, "y": 24 - height, "height": height}
