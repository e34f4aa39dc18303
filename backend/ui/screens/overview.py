"""overview."""

from __future__ import annotations

from starlette.responses import Response

from backend.ui.page import Page
from backend.ui.screen import Screen

screen = Screen("overview")


@screen.get()
async def show(page: Page) -> Response:
    """Show it."""
    return await page.render("no_roi.html")
