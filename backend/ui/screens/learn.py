"""learn."""

from __future__ import annotations

from starlette.responses import Response

from backend.ui.page import Page
from backend.ui.screen import Screen

screen = Screen("learn")


@screen.get()
async def show(page: Page) -> Response:
    """Show it."""
    if await page.choose_roi():
        await page.calls.get("/manifest", **page.selection.roi)
    return await page.render("no_roi.html")
