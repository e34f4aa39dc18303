"""The jobs that a service knows of."""

from __future__ import annotations

from contextlib import suppress

from backend.artifacts.files import stamp
from backend.artifacts.job_files import Job
from backend.errors import NotFound
from backend.services.jobs import Jobs


def newest_jobs(jobs: Jobs, most: int) -> list[Job]:
    """Return jobs, the newest first, also those of other processes on the same folder."""
    written = [(when, path.stem.rpartition("-")[2]) for path in jobs.folder.glob("*.json") if (when := stamp(path))]
    found = []
    for _, job_id in sorted(written, reverse=True)[:most]:
        with suppress(NotFound):  # deleted since, or damaged
            found.append(jobs.get(job_id))
    return sorted(found, key=lambda job: job.created_s, reverse=True)
