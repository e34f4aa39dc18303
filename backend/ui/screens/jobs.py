"""A job under way: a bar that asks for itself until the job has ended, and the way to cancel it."""

from __future__ import annotations

from starlette.responses import Response

from backend.ui.page import Page
from backend.ui.screen import Screen

screen = Screen("jobs")
FINAL = frozenset({"done", "failed", "cancelled", "lost"})


@screen.get("{job_id}")
async def show(page: Page) -> Response:
    """Show how far a job is; once it has ended, elements that wait for the event ``job-ended`` load anew."""
    job = await page.calls.get(f"/jobs/{page.request.path_params['job_id']}")
    return started(page, job)


@screen.post("{job_id}/cancel")
async def cancel(page: Page) -> Response:
    """Ask a job to end at its next step."""
    job = await page.calls.delete(f"/jobs/{page.request.path_params['job_id']}")
    return started(page, job)


def started(page: Page, job: dict[str, object]) -> Response:
    """Return the fragment of a job, as answered by the call that started it or by ``/jobs/{job_id}``."""
    job = {"progress": 0.0, "eta_s": None, "result": None, "error": None} | job
    answer = page.fragment("job.html", job=job, is_final=job["state"] in FINAL)
    if job["state"] in FINAL:
        answer.headers["HX-Trigger"] = "job-ended"
    return answer
