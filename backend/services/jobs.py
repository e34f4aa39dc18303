"""Long calls in the background: progress, result, cancellation.

A job is a small JSON file below ``models/.jobs``, so that every process of the service can answer for it. The process
that runs it holds a lock on a mark of its own for as long as it lives: an unfinished job whose process is gone is
``lost``. What a job stores, it stores as the same call would.

Whoever may only inspect has places of his own, for jobs that wait and for those that have ended, and all threads but
one: he cannot keep an administrator's jobs from beginning, or push them out.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock

from backend.artifacts.files import identity, make_folder, read_file, stamp, write_atomic, writing
from backend.artifacts.job_files import FINAL, Job, JobRole, is_abandoned, job_from_bytes
from backend.artifacts.models_folder import ModelsFolder
from backend.errors import InspectionError, JobCancelled, NotFound, QueueFull, ShuttingDown, Unavailable
from backend.machine_errors import of_machine
from backend.memory_bank.coreset import Progress
from backend.utils import sealed_json

_log = logging.getLogger(__name__)

KEPT_JOBS = 200
"""Of each role."""

_WRITE_EVERY_S = 0.5
_JOB_ID = re.compile(r"[0-9a-f]{32}")
_ROLES: tuple[JobRole, ...] = get_args(JobRole)


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    job: Job
    call: Callable[[Progress], dict[str, Any]]
    ended: Callable[[], None]


class Jobs:
    """Runs jobs on a few threads of their own, and answers for those of other processes on the same folder."""

    def __init__(
        self, folder: Path, *, concurrent: int = 2, max_waiting: int = 32, models: ModelsFolder | None = None
    ) -> None:
        self.folder = folder
        self._models = models or ModelsFolder(folder.parent)
        self._concurrent, self._max_waiting = concurrent, max_waiting
        self._owner = uuid.uuid4().hex
        self._mark: FileLock | None = None
        self._mark_identity: tuple[int, int] | None = None
        self._threads = ThreadPoolExecutor(concurrent, thread_name_prefix="job")
        self._lock = threading.Lock()
        self._own: dict[str, Job] = {}  # those whose last state is not in a file
        self._waiting: dict[JobRole, deque[_Waiting]] = {role: deque() for role in _ROLES}  # whose turn is next: first
        self._running: dict[JobRole, int] = dict.fromkeys(_ROLES, 0)
        self._stopping = threading.Event()

    def start(
        self,
        kind: str,
        call: Callable[[Progress], dict[str, Any]],
        *,
        role: JobRole = "admin",
        ended: Callable[[], None] = lambda: None,
    ) -> Job:
        """Queue a call and return its job.

        Args:
            kind: What the call is.
            call: Does the work and returns a JSON object; the progress callback it is given raises JobCancelled to end
                it.
            role: Of whoever starts it.
            ended: Called when the job has ended in whatever way, or will never begin.

        Raises:
            QueueFull: If too many jobs of the role wait.
            ShuttingDown: If the service is stopping.
        """
        with self._lock:
            if self._stopping.is_set():
                raise ShuttingDown("The service is stopping. Send the request again to the one that follows.")
            if len(self._waiting[role]) >= self._max_waiting:
                raise QueueFull(f"{self._max_waiting} jobs are waiting. Start this one when some have ended.")
            self._models.ensure()
            self._hold_mark()
            job = Job(job_id=uuid.uuid4().hex, kind=kind, owner=self._owner, role=role, created_s=time.time())
            self._save(job)
            self._waiting[role].append(_Waiting(job=job, call=call, ended=ended))
            self._threads.submit(self._work)
        self._prune(role)
        return job

    def get(self, job_id: str) -> Job:
        """Return what is known of a job.

        Raises:
            NotFound: If there is no such job.
        """
        with self._lock:
            own = self._own.get(job_id)
        if own is None:
            self._models.check()
        job = own or self._find(job_id)
        if job is None:
            raise NotFound(f"There is no job {job_id[:40]!r}.")
        if not self._is_over(job):
            return job
        # What its process wrote last, now that it can write no more.
        job = self._find(job_id) or job
        if job.state not in FINAL:
            job = job.ended("lost")
            self._write(job)
        return job

    def cancel(self, job_id: str) -> Job:
        """End a job that waits, ask one that runs to end at its next step, and return it as it is now.

        Raises:
            NotFound: If there is no such job.
        """
        job = self.get(job_id)
        with self._lock:
            waiting = next((each for each in self._waiting[job.role] if each.job.job_id == job_id), None)
            if waiting is not None:
                self._waiting[job.role].remove(waiting)
                job = waiting.job.ended("cancelled")
                self._save(job)
        if waiting is not None:
            waiting.ended()
            return job
        if job.state not in FINAL:
            write_atomic(self._cancel_path(job_id), b"")
        return job

    def stop(self) -> None:
        """Let what runs end at its next step, and take nothing new; those jobs are ``lost``. Waits for nothing."""
        self._stopping.set()

    def close(self) -> None:
        """End what runs and what waits, and wait for the end of the current steps: those jobs are ``lost``."""
        with self._lock:  # whoever starts a job has looked at this flag under the lock
            self._stopping.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for job in list(self._own.values()):
                if job.state not in FINAL:
                    self._save(job.ended("lost"))
            if self._mark is not None:
                self._mark.release()
                self._mark_path(self._owner).unlink(missing_ok=True)
            never_begun = [waiting for each in self._waiting.values() for waiting in each]
            self._waiting = {role: deque() for role in _ROLES}
        for waiting in never_begun:
            waiting.ended()

    def _work(self) -> None:
        """Run what waits, as long as there is something that may begin."""
        while (taken := self._next()) is not None:
            try:
                self._run(taken.job, taken.call)
            finally:
                with self._lock:
                    self._running[taken.job.role] -= 1
                taken.ended()

    def _next(self) -> _Waiting | None:
        """Return the job that begins now: the roles take turns, and only an administrator may have every thread."""
        with self._lock:
            if self._stopping.is_set():
                return None
            for role, waiting in self._waiting.items():
                at_most = self._concurrent if role == "admin" else max(1, self._concurrent - 1)
                if waiting and self._running[role] < at_most:
                    self._waiting[role] = self._waiting.pop(role)  # the other one's turn is next
                    self._running[role] += 1
                    return waiting.popleft()
            return None

    def _hold_mark(self) -> None:
        """Hold the mark of this process where the others look for it, also if the folder was moved or replaced."""
        path = self._mark_path(self._owner)
        if self._mark is not None:
            if identity(path) == self._mark_identity:
                return
            self._mark.release()
        make_folder(self.folder)
        with writing():
            self._mark = FileLock(path, thread_local=False)
            self._mark.acquire(timeout=0)
        self._mark_identity = identity(path)

    def _run(self, job: Job, call: Callable[[Progress], dict[str, Any]]) -> None:
        cancel_path = self._cancel_path(job.job_id)
        job = replace(job, state="running", started_s=time.time())
        written_s = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal job, written_s
            if self._stopping.is_set() or cancel_path.exists():
                raise JobCancelled("The job was cancelled.")
            job = replace(job, done=done, total=total)
            on_disk = time.time() - written_s >= _WRITE_EVERY_S
            written_s = time.time() if on_disk else written_s
            with self._lock:
                self._save(job, on_disk=on_disk)

        try:
            progress(0, 0)
            result = call(progress)
            job = job.ended("done", result=result)
        except JobCancelled:
            job = job.ended("cancelled" if cancel_path.exists() else "lost")
        except InspectionError as error:
            facts: dict[str, Any] = {"error": error.sentence, "code": error.code, "details": error.details}
            job = job.ended("failed", error=facts)
        except Exception as error:
            _log.exception("job %s failed", job.job_id)
            refusal = of_machine(error)
            message = "The service failed on this job. Its log has the reason under the job's id."
            facts = {"error": message, "code": "internal_error"}
            if refusal is not None:
                facts = {"error": refusal.sentence, "code": refusal.code}
            job = job.ended("failed", error=facts)
        with self._lock:
            self._save(job)
        with suppress(OSError):
            cancel_path.unlink(missing_ok=True)

    def _save(self, job: Job, *, on_disk: bool = True) -> None:
        """Keep what is known of an own job; call it under the lock. A result is not held in memory beside its file."""
        is_written = on_disk and self._write(job)
        self._own[job.job_id] = job
        if job.state in FINAL and is_written:
            del self._own[job.job_id]

    def _write(self, job: Job) -> bool:
        try:
            self._models.ensure()
            if job.owner == self._owner:
                self._hold_mark()
            write_atomic(self._path(job.job_id, job.role), sealed_json(asdict(job)))
        except Unavailable:
            # The work itself decides whether a full disk matters; its own writes will say so.
            _log.exception("job %s: its state could not be written", job.job_id)
            return False
        return True

    def _prune(self, role: JobRole) -> None:
        pattern = "inspect-*.json" if role == "inspect" else "[!i]*.json"
        written = [(when, path) for path in self.folder.glob(pattern) if (when := stamp(path)) is not None]
        for _, path in sorted(written)[:-KEPT_JOBS]:
            job = self._read(path)
            if job is None or job.state in FINAL or self._is_over(job):
                with suppress(OSError):  # the next job tidies up as well
                    path.unlink(missing_ok=True)
                    path.with_name(f"{path.stem.removeprefix('inspect-')}.cancel").unlink(missing_ok=True)

    def _is_over(self, job: Job) -> bool:
        """Return whether nobody works on an unfinished job any more."""
        return job.state not in FINAL and job.owner != self._owner and is_abandoned(self._mark_path(job.owner))

    def _read(self, path: Path) -> Job | None:
        """Return the job of a file, or None where there is none, or a damaged one."""
        data = read_file(path)
        try:
            return None if data is None else job_from_bytes(data)
        except ValueError as error:
            _log.warning("the job file %s is damaged: %s", path.name, error)
            return None

    def _find(self, job_id: str) -> Job | None:
        found = (self._read(self._path(job_id, role)) for role in _ROLES)
        return next((job for job in found if job is not None), None)

    def _path(self, job_id: str, role: JobRole) -> Path:
        if not _JOB_ID.fullmatch(job_id):
            raise NotFound(f"There is no job {job_id[:40]!r}.")
        return self.folder / f"{'inspect-' if role == 'inspect' else ''}{job_id}.json"

    def _cancel_path(self, job_id: str) -> Path:
        return self._path(job_id, "admin").with_suffix(".cancel")

    def _mark_path(self, owner: str) -> Path:
        return self.folder / f"{owner}.alive"
