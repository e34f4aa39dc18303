"""Try: images that are dropped are inspected without being stored, and by another version or recipe to compare."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from backend.ui.page import Page
from backend.ui.screen import Screen
from backend.ui.static_files import static_files

screen = Screen("try")


@screen.get()
async def show(page: Page) -> Response:
    """Show where to drop the images; the browser sends them to the public call, one by one."""
    if not await page.choose_roi():
        return await page.render("no_roi.html")
    manifest, listed = await asyncio.gather(
        page.calls.get("/manifest", **page.selection.roi), page.calls.get("/versions", **page.selection.roi)
    )
    await page.load_recipes()
    now = datetime.now(UTC)
    style = base64.b64encode(static_files()["page.css"].content).decode()
    return await page.render(
        "try.html",
        fit=manifest["fit"] if manifest["memory"] else None,
        others=[*_recipes(page), *_versions(page, listed["versions"])],
        now=now.isoformat(),
        style=f"data:text/css;base64,{style}",  # the report is one file
        file="-".join((page.selection.role_id, page.selection.roi_id, f"{now.astimezone():%Y%m%d-%H%M}")),
    )


def _recipes(page: Page) -> Iterator[tuple[str, str]]:
    """Yield the other recipes that have the ROI: the fields that ask for one, and its name."""
    for recipe in page.recipes or []:
        has_roi = any(page.selection.of(model).roi == page.selection.roi for model in recipe["models"])
        if has_roi and recipe["recipe_id"] != page.selection.recipe:
            name = recipe["recipe_id"]
            yield urlencode({"recipe_id": name}), page.words("try.recipe", name=name)


def _versions(page: Page, versions: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the versions that can be used and are not in force, as ``_recipes``."""
    for version in versions:
        if not version["in_force"] and version["note"] is None:
            number, when = version["version"], page.words.time(version["at"])
            yield urlencode({"version": number}), page.words("try.version", version=number, at=when)
