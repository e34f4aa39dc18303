"""Jobs: how far a call in the background is, what it answered, and its end."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from backend.api.dependencies import JobsOf
from backend.api.own_threads import on_readers_threads
from backend.api.routing import Route
from backend.api.store_schemas import JobAnswer, JobsAnswer, JobSummary
from backend.artifacts.job_files import Job
from backend.services.job_list import newest_jobs
from backend.serving.access import ADMIN, INSPECT

router = APIRouter(tags=["jobs"], route_class=Route)

JobId = Annotated[str, Path(min_length=1, max_length=64, description="As answered with 202.", examples=["0" * 32])]


@router.get("/jobs", summary="Jobs, the newest first", **INSPECT)
@on_readers_threads
def list_jobs(
    request: Request,
    jobs: JobsOf,
    limit: Annotated[int, Query(ge=1, le=200, description="Most jobs in the answer.", examples=[20])] = 20,
) -> JobsAnswer:
    """List what runs, waits and has ended in the background; the last 200 jobs are kept."""
    now_s = time.time()
    found = [
        JobSummary(
            job_id=job.job_id,
            kind=job.kind,
            state=job.state,
            progress=job.progress,
            eta_s=job.eta_s(now_s),
            created_at=datetime.fromtimestamp(job.created_s, UTC),
            finished_at=None if job.finished_s is None else datetime.fromtimestamp(job.finished_s, UTC),
            error=job.error,
        )
        for job in newest_jobs(jobs, limit)
    ]
    return JobsAnswer(jobs=found, request_id=request.state.request_id)


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
