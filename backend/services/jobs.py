"""Long calls in the background: progress, result, cancellation.

A job is a small JSON file below ``models/.jobs``, so that every process of the service can tell of it and a job whose
process is gone is ``lost`` and not forgotten. Its process holds a lock file for as long as it lives; whoever can take
that lock knows that the process is gone. A job has no other life: what it stores, it stores as the same call would.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from backend.artifacts.files import make_folder, read_file, stamp, write_atomic
from backend.errors import InspectionError, JobCancelled, NotFound, QueueFull, ShuttingDown, Unavailable
from backend.memory_bank.coreset import Progress
from backend.utils import sealed_json, unsealed_json

_log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled", "lost"]
FINAL: frozenset[State] = frozenset({"done", "failed", "cancelled", "lost"})

KEPT_JOBS = 200
_WRITE_EVERY_S = 0.5
_JOB_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is known of a job.

    Attributes:
        job_id: 32 hexadecimal digits.
        kind: The call, for example ``fit_ok``.
        state: Where it stands.
        done: Steps done.
        total: Steps in all; 0 while unknown.
        created_s: When it was asked for, seconds since 1970.
        started_s: When it began, or None.
        finished_s: When it ended, or None.
        result: What the call answers, once ``done``.
        error: Code, sentence and details of the error, once ``failed``.
        owner: The process that runs it.
    """

    job_id: str
    kind: str
    owner: str
    state: State = "queued"
    done: int = 0
    total: int = 0
    created_s: float
    started_s: float | None = None
    finished_s: float | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def progress(self) -> float:
        """Share of the steps that are done, 0 … 1."""
        return 1.0 if self.state == "done" else min(1.0, self.done / self.total) if self.total else 0.0

    def eta_s(self, now_s: float) -> float | None:
        """Return the seconds that are left at the pace so far, or None while that is unknown."""
        if self.state != "running" or self.started_s is None or not 0 < self.done <= self.total:
            return None
        return max(0.0, (now_s - self.started_s) * (self.total - self.done) / self.done)


class Jobs:
    """Runs jobs on a few threads of their own, and tells of those of other processes on the same folder."""

    def __init__(self, folder: Path, *, concurrent: int = 2, max_waiting: int = 32) -> None:
        self._folder = folder
        self._max_waiting = max_waiting
        self._owner = uuid.uuid4().hex
        self._alive: FileLock | None = None
        self._threads = ThreadPoolExecutor(concurrent, thread_name_prefix="job")
        self._lock = threading.Lock()
        self._probing = threading.Lock()
        self._own: dict[str, Job] = {}  # those that wait or run; of the others the file tells
        self._futures: dict[str, Future[None]] = {}
        self._stopping = threading.Event()

    def start(
        self, kind: str, call: Callable[[Progress], dict[str, Any]], *, ended: Callable[[], None] = lambda: None
    ) -> Job:
        """Queue a call and return its job.

        Args:
            kind: What the call is.
            call: Does the work and returns a JSON object; the progress callback it is given raises JobCancelled to end
                it.
            ended: Called when the job has ended in whatever way, or will never begin.

        Raises:
            QueueFull: If too many jobs wait.
            ShuttingDown: If the service is stopping.
        """
        if self._stopping.is_set():
            raise ShuttingDown("The service is stopping. Send the request again to the one that follows.")
        with self._lock:
            if sum(job.state == "queued" for job in self._own.values()) >= self._max_waiting:
                raise QueueFull(f"{self._max_waiting} jobs are waiting. Start this one when some have ended.")
            if self._alive is None:
                make_folder(self._folder)
                self._alive = FileLock(self._alive_path(self._owner), thread_local=False)
                self._alive.acquire(timeout=0)
            job = Job(job_id=uuid.uuid4().hex, kind=kind, owner=self._owner, created_s=time.time())
            self._save(job)
            try:
                future = self._futures[job.job_id] = self._threads.submit(self._run, job, call)
            except RuntimeError as error:  # closed since we looked
                self._save(replace(job, state="lost", finished_s=time.time()))
                raise ShuttingDown(
                    "The service is stopping. Send the request again to the one that follows."
                ) from error
        future.add_done_callback(lambda _: ended())
        self._prune()
        return job

    def get(self, job_id: str) -> Job:
        """Return what is known of a job.

        Raises:
            NotFound: If there is no such job.
        """
        with self._lock:
            own = self._own.get(job_id)
        if own is not None:
            return own
        job = self._read(self._path(job_id))
        if job is None:
            raise NotFound(f"There is no job {job_id[:40]!r}.")
        if job.state not in FINAL and not self._is_alive(job.owner):
            # What it wrote last, now that it can write no more.
            job = self._read(self._path(job_id)) or job
            if job.state not in FINAL:
                job = replace(job, state="lost", finished_s=time.time())
                self._write(job)
        return job

    def cancel(self, job_id: str) -> Job:
        """End a job that waits, ask one that runs to end at its next step, and return it as it is now.

        Raises:
            NotFound: If there is no such job.
        """
        job = self.get(job_id)
        with self._lock:
            future = self._futures.get(job_id)
            if future is not None and future.cancel():
                job = replace(job, state="cancelled", finished_s=time.time())
                self._save(job)
                return job
        if job.state not in FINAL:
            write_atomic(self._cancel_path(job_id), b"")
        return job

    def stop(self) -> None:
        """Let what runs end at its next step, and take nothing new; those jobs are ``lost``. Waits for nothing."""
        self._stopping.set()

    def close(self) -> None:
        """End what runs and what waits, and wait for the end of the current steps: those jobs are ``lost``."""
        self._stopping.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for job in list(self._own.values()):
                if job.state not in FINAL:
                    self._save(replace(job, state="lost", finished_s=time.time()))
            if self._alive is not None:
                self._alive.release()
                self._alive_path(self._owner).unlink(missing_ok=True)

    def _run(self, job: Job, call: Callable[[Progress], dict[str, Any]]) -> None:
        state = replace(job, state="running", started_s=time.time())
        written_s = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal state, written_s
            if self._stopping.is_set() or self._cancel_path(job.job_id).exists():
                raise JobCancelled("The job was cancelled.")
            state = replace(state, done=done, total=total)
            on_disk = time.time() - written_s >= _WRITE_EVERY_S
            written_s = time.time() if on_disk else written_s
            with self._lock:
                self._save(state, on_disk=on_disk)

        try:
            progress(0, 0)
            result = call(progress)
            state = replace(state, state="done", result=result)
        except JobCancelled:
            asked_for = self._cancel_path(job.job_id).exists()
            state = replace(state, state="cancelled" if asked_for else "lost")
        except InspectionError as error:
            details = {"error": error.sentence, "code": error.code, "details": error.details}
            state = replace(state, state="failed", error=details)
        except Exception:
            _log.exception("job %s failed", job.job_id)
            sentence = "The service failed on this job. Its log has the reason under the job's id."
            state = replace(state, state="failed", error={"error": sentence, "code": "internal_error"})
        with self._lock:
            self._save(replace(state, finished_s=time.time()))
        with suppress(OSError):
            self._cancel_path(job.job_id).unlink(missing_ok=True)

    def _save(self, job: Job, *, on_disk: bool = True) -> None:
        """Keep what is known of an own job; call it under the lock. A result is not held in memory beside its file."""
        written = on_disk and self._write(job)
        if job.state not in FINAL:
            self._own[job.job_id] = job
            return
        self._futures.pop(job.job_id, None)
        if written:
            self._own.pop(job.job_id, None)
        else:
            self._own[job.job_id] = job

    def _write(self, job: Job) -> bool:
        try:
            write_atomic(self._path(job.job_id), _job_bytes(job))
        except Unavailable:
            # The work itself decides whether a full disk matters; its own writes will say so.
            _log.exception("job %s: its state could not be written", job.job_id)
            return False
        return True

    def _prune(self) -> None:
        written = [(when, path) for path in self._folder.glob("*.json") if (when := stamp(path)) is not None]
        for _, path in sorted(written)[:-KEPT_JOBS]:
            job = self._read(path)
            if job is None or job.state in FINAL or not self._is_alive(job.owner):
                with suppress(OSError):  # the next job tidies up as well
                    path.unlink(missing_ok=True)
                    path.with_suffix(".cancel").unlink(missing_ok=True)

    def _is_alive(self, owner: str) -> bool:
        if owner == self._owner:
            return True
        path = self._alive_path(owner)
        if not path.exists():
            return False
        try:
            with self._probing, FileLock(path, timeout=0, thread_local=False):
                pass
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        return False

    def _read(self, path: Path) -> Job | None:
        """Return the job of a file, or None where there is none, or a damaged one."""
        data = read_file(path)
        try:
            return None if data is None else job_from_bytes(data)
        except ValueError as error:
            _log.warning("the job file %s is damaged: %s", path.name, error)
            return None

    def _path(self, job_id: str) -> Path:
        if not _JOB_ID.fullmatch(job_id):
            raise NotFound(f"There is no job {job_id[:40]!r}.")
        return self._folder / f"{job_id}.json"

    def _cancel_path(self, job_id: str) -> Path:
        return self._path(job_id).with_suffix(".cancel")

    def _alive_path(self, owner: str) -> Path:
        return self._folder / f"{owner}.alive"


def job_from_bytes(data: bytes) -> Job:
    """Return the job of a stored file.

    Raises:
        ValueError: If a byte of it has changed, or it is of no state that a job can have.
    """
    try:
        job = Job(**unsealed_json(data))
    except TypeError as error:
        raise ValueError("not a job") from error
    if job.state not in get_args(State):
        raise ValueError("a job of an unknown state")
    return job


def _job_bytes(job: Job) -> bytes:
    return sealed_json(asdict(job))
