"""Versions: what was in force at a ROI, two of them on the same stored images, and the way back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from backend.errors import NotFound
from backend.ui.page import Page
from backend.ui.screen import Screen

screen = Screen("versions")

_SHOWN = 200
"""Most images in one table."""


@screen.get()
async def show(page: Page) -> Response:
    """Show all versions of the ROI that are kept."""
    if not await page.choose_roi():
        return await page.render("no_roi.html")
    return await page.render("versions.html", **await _found(page))


@screen.get("list")
async def show_list(page: Page) -> Response:
    """Show the list alone, after a change."""
    return page.fragment("versions_list.html", **await _found(page))


@screen.get("compare")
async def compare(page: Page) -> Response:
    """Show how two versions judge the stored images."""
    query = page.request.query_params
    return page.fragment("versions_compared.html", **await _compared(page, _number(query, "a"), _number(query, "b")))


@screen.get("change")
async def change(page: Page) -> Response:
    """Show what bringing a version back would change, and ask for it."""
    found = await _found(page)
    then = _version(found["versions"], _number(page.request.query_params, "version"))
    return page.fragment("versions_change.html", now=found["now"], then=then, facts=_facts(page, found["now"], then))


@screen.post("activate")
async def activate(page: Page) -> Response:
    """Bring a version back."""
    form = await page.form()
    reason = form.get("reason", "").strip()
    body = {**page.selection.roi, "version": _number(form, "version"), **({"reason": reason} if reason else {})}
    done = await page.calls.post("/versions/activate", body)
    text = "versions.activated" if done["changed"] else "versions.unchanged"
    sentences = [page.words(text, old=done["activates"], version=done["version"]), *done["warnings"]]
    return page.notice(" ".join(sentences), event="version-activated")


async def _found(page: Page) -> dict[str, Any]:
    """Return the versions as answered, the one in force, and the newest other one that can be brought back."""
    listed = await page.calls.get("/versions", **page.selection.roi)
    versions = listed["versions"]
    now = next((each for each in versions if each["in_force"]), None)
    others = [each for each in versions if not each["in_force"] and each["note"] is None]
    before = [each for each in others if now is None or each["version"] < now["version"]]
    return {
        "versions": versions,
        "keep": listed["keep_versions"],
        "now": now,
        "before": before[0] if before else None,
    }


async def _compared(page: Page, a: int | str, b: int | str) -> dict[str, Any]:
    """Return the answer of a comparison, and its images by how far they moved: those that change sides, the rest."""
    compared = await page.calls.post("/versions/compare", {**page.selection.roi, "a": a, "b": b})
    images = sorted(compared["images"], key=_moved, reverse=True)
    changed, same = ([each for each in images if each["changed"] is wanted] for wanted in (True, False))
    titles = (page.words("versions.changed_title"), page.words("versions.same_title", n=len(same)))
    return {"compared": compared, "groups": list(zip((changed, same), titles, strict=True)), "limit": _SHOWN}


def _moved(image: dict[str, Any]) -> float:
    """Return by how much a score moved, in thresholds, where there are any: those of two versions differ in scale."""
    if image["a"] is None or image["b"] is None:
        return 0.0
    a, b = (float(each["score"]) / (each["threshold"] or 1.0) for each in (image["a"], image["b"]))
    return abs(a - b)


def _facts(page: Page, now: dict[str, Any] | None, then: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return what a version is made of, by name, now and then."""
    t = page.words

    def shown(version: dict[str, Any] | None) -> dict[str, str]:
        if version is None:
            return {}
        mode, n_ok, n_ng = version["score_mode"], version["n_ok"], version["n_ng"]
        return {
            "threshold": t.number(version["threshold"], 4),
            "score_mode": t(f"versions.mode_{mode}") if mode else "–",
            "calibration": t("versions.good_bad", n_ok=n_ok or 0, n_ng=n_ng or 0) if version["calibrated"] else "–",
            "images": t.number(version["n_ok_total"]),
            "memory": version["memory_checksum"][:12],
            "extractor": version["extractor"] if now is None or now["extractor"] != then["extractor"] else _same(then),
        }

    was, will = shown(now), shown(then)
    return [(t(f"versions.{name}"), was.get(name, "–"), text) for name, text in will.items()]


def _same(version: dict[str, Any]) -> str:
    """Return the name of an extractor that stays: nobody needs its settings then."""
    return re.split(r"[|:]", version["extractor"])[0]


def _version(versions: list[dict[str, Any]], number: int | str) -> dict[str, Any]:
    found = next((each for each in versions if each["version"] == number), None)
    if found is None:
        raise NotFound("This version is not kept any more. Load the page again.")
    return found


def _number(values: Mapping[str, str], name: str) -> int | str:
    """Return the number of a version; a text that is none goes along as it is."""
    text = values.get(name, "")
    try:
        return int(text)
    except ValueError:
        return text
