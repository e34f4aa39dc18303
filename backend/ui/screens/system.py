"""System: health and disk, jobs, decisions looked up in the audit, verify, and ROIs as archives."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

from starlette.responses import Response

from backend.ui.client import CallFailed
from backend.ui.page import Page
from backend.ui.screen import Screen
from backend.ui.screens import jobs

screen = Screen("system")

_AUDIT_OFF = "audit_off"
_PER_PAGE = 50


@screen.get()
async def show(page: Page) -> Response:
    """Show how the service is."""
    health, storage, listed, _ = await asyncio.gather(
        page.calls.get("/health"), page.calls.get("/storage"), page.calls.get("/jobs", limit=10), page.load_recipes()
    )
    return await page.render(
        "system.html",
        health=health,
        storage=storage,
        jobs=listed["jobs"],
        final=jobs.FINAL,
        **await _decisions(page, {}),
    )


@screen.get("jobs")
async def list_jobs(page: Page) -> Response:
    """Show the newest jobs as they are now."""
    listed = await page.calls.get("/jobs", limit=10)
    return page.fragment("system_jobs.html", jobs=listed["jobs"], final=jobs.FINAL)


@screen.get("audit")
async def find_decisions(page: Page) -> Response:
    """Show the decisions that a search finds."""
    return page.fragment("system_audit.html", **await _decisions(page, page.request.query_params))


@screen.post("verify")
async def verify(page: Page) -> Response:
    """Read all stored files, as a job."""
    return jobs.started(page, await page.calls.post("/verify", None, in_background=True))


async def _decisions(page: Page, asked: Any) -> dict[str, Any]:
    """Return the decisions that fit, newest first; None where none are kept."""
    query = {name: asked.get(name) or None for name in ("serial", "decision", "before_id")}
    query |= {name: _with_zone(asked.get(name)) for name in ("from", "to")}
    role_id, _, roi_id = (asked.get("of") or "").partition("/")
    query |= {"role_id": role_id or None, "roi_id": roi_id or None, "recipe_id": page.selection.recipe}
    try:
        found = await page.calls.get("/audit", limit=_PER_PAGE, **query)
    except CallFailed as error:
        if error.code == _AUDIT_OFF:
            return {"entries": None, "older": None}
        raise
    more = {name: asked.get(name) for name in ("serial", "decision", "from", "to", "of") if asked.get(name)}
    older = found["next_before_id"]
    return {
        "entries": found["entries"],
        "older": page.here("system", "audit", **more, before_id=older) if older else None,
    }


def _with_zone(local: str | None) -> str | None:
    """Return a time of a form, which is that of the place, with its zone; what is no time as it is, to be refused."""
    try:
        return datetime.fromisoformat(local).astimezone().isoformat() if local else None
    except (ValueError, OverflowError):
        return local
