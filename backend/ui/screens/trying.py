"""Try: images that are dropped are inspected without being stored, here and, to compare, by another recipe."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

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
    manifest = await page.calls.get("/manifest", **page.selection.roi)
    await page.load_recipes()
    now = datetime.now(UTC)
    others = [
        recipe["recipe_id"]
        for recipe in page.recipes or []
        if recipe["recipe_id"] != page.selection.recipe
        and any(page.selection.of(model).roi == page.selection.roi for model in recipe["models"])
    ]
    style = base64.b64encode(static_files()["page.css"].content).decode()
    return await page.render(
        "try.html",
        fit=manifest["fit"] if manifest["memory"] else None,
        others=others,
        now=now.isoformat(),
        style=f"data:text/css;base64,{style}",  # the report is one file
        file="-".join((page.selection.role_id, page.selection.roi_id, f"{now.astimezone():%Y%m%d-%H%M}")),
    )
