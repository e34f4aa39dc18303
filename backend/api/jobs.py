"""Jobs: how far a call in the background is, what it answered, and its end."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Path, Request

from backend.api.dependencies import JobsOf
from backend.api.own_threads import on_readers_threads
from backend.api.routing import Route
from backend.api.store_schemas import JobAnswer
from backend.artifacts.job_files import Job
from backend.serving.access import ADMIN, INSPECT

router = APIRouter(tags=["jobs"], route_class=Route)

JobId = Annotated[str, Path(min_length=1, max_length=64, description="As answered with 202.", examples=["0" * 32])]


@router.get("/jobs/{job_id}", summary="How far a job is", **INSPECT)
@on_readers_threads
def get_job(request: Request, jobs: JobsOf, job_id: JobId) -> JobAnswer:
    """Return the progress of a job and, once it is done, its result."""
    return _answer(request, jobs.get(job_id))


@router.delete("/jobs/{job_id}", summary="Cancel a job", **ADMIN)
@on_readers_threads
def cancel_job(request: Request, jobs: JobsOf, job_id: JobId) -> JobAnswer:
    """Ask a job to end at its next step. What it had stored before stays."""
    return _answer(request, jobs.cancel(job_id))


def _answer(request: Request, job: Job) -> JobAnswer:
    return JobAnswer(
        **vars(job), progress=job.progress, eta_s=job.eta_s(time.time()), request_id=request.state.request_id
    )
