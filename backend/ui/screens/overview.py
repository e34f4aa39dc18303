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
    kinds = [_kind(decision) for decision in roi["last"][-STRIP_LENGTH:]]
    n_image = kinds.count("image")
    return {
        "roi": roi,
        "name": page.selection.of(roi),
        "state": _state(roi),
        "strip": _strip(kinds),
        "counts": {"n": len(kinds), "ng": kinds.count("ng") + n_image, "image": n_image},
    }


def _state(roi: dict[str, Any]) -> str:
    if not roi["fitted"]:
        return "unfitted"
    if roi["calibrated"]:
        return "inspecting"
    return "stale" if roi["calibration_stale"] else "uncalibrated"


def _kind(decision: dict[str, Any]) -> str:
    return "image" if decision["reject_reason"] == "image" else decision["decision"] or "none"


def _strip(kinds: list[str]) -> list[tuple[str, str]]:
    """Return the bars of each kind as one path of SVG, 4 units a bar and at most 24 high."""
    return [
        (kind, "".join(f"M{4 * place} 24v-{height}h3v{height}z" for place, each in enumerate(kinds) if each == kind))
        for kind, height in _HEIGHTS.items()
        if kind in kinds
    ]
