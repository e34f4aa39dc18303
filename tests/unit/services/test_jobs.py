"""Jobs without HTTP: their states, their end, and what a later process can still tell of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from backend.artifacts import job_files
from backend.artifacts.job_files import FINAL, Job
from backend.errors import MmPerPxMismatch, NotFound, QueueFull, ShuttingDown, StorageFull
from backend.memory_bank.coreset import Progress
from backend.services import jobs as jobs_module
from backend.services.jobs import Jobs
from backend.utils import sealed_json

_DEADLINE_S = 20.0


class Steps:
    """A call of as many steps as it is allowed to make, so that a test holds it where it wants."""

    def __init__(self, total: int = 3) -> None:
        self.total = total
        self.begun = threading.Event()
        self._allowed = threading.Semaphore(0)

    def allow(self, steps: int = 1) -> None:
        self._allowed.release(steps)

    def __call__(self, progress: Progress) -> dict[str, Any]:
        self.begun.set()
        for done in range(1, self.total + 1):
            assert self._allowed.acquire(timeout=_DEADLINE_S)
            progress(done, self.total)
        return {"steps": self.total}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / ".jobs"


@pytest.fixture
def make(folder: Path) -> Iterator[Callable[..., Jobs]]:
    """Return a maker of job runners on one folder; those that are left open are closed after the test."""
    made: list[Jobs] = []

    def make_one(**options: int) -> Jobs:
        made.append(Jobs(folder, **options))
        return made[-1]

    yield make_one
    for jobs in made:
        jobs.close()


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def _ended(jobs: Jobs, job: Job) -> Job:
    _wait(lambda: jobs.get(job.job_id).state in FINAL)
    return jobs.get(job.job_id)


def _leave_behind(folder: Path, **fields: object) -> str:
    """Write the file of a job whose process is gone, and return its id."""
    job_id = "0123456789abcdef" * 2
    known = {"job_id": job_id, "kind": "fit_ok", "owner": "f" * 32, "state": "running", "created_s": 1.0, **fields}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{job_id}.json").write_bytes(sealed_json(known))
    return job_id


# --- from start to end ------------------------------------------------------------------------------------------------


def test_making_a_runner_makes_no_folder(make: Callable[..., Jobs], folder: Path) -> None:
    make()
    assert not folder.parent.exists()


def test_a_job_tells_its_steps_and_then_its_result(make: Callable[..., Jobs]) -> None:
    jobs, steps = make(), Steps(4)
    job = jobs.start("fit_ok", steps)
    assert (job.kind, job.state, job.progress) == ("fit_ok", "queued", 0.0)
    steps.allow()
    _wait(lambda: jobs.get(job.job_id).done == 1)
    running = jobs.get(job.job_id)
    assert (running.state, running.progress, running.result) == ("running", 0.25, None)
    steps.allow(3)
    done = _ended(jobs, job)
    assert (done.state, done.progress, done.result, done.error) == ("done", 1.0, {"steps": 4}, None)
    assert done.finished_s is not None


def test_an_error_of_ours_is_kept_with_its_code_and_facts(make: Callable[..., Jobs]) -> None:
    def fail(_: Progress) -> dict[str, Any]:
        raise MmPerPxMismatch("Send 0.2.", details={"sent": 0.3})

    jobs = make()
    failed = _ended(jobs, jobs.start("fit_ok", fail))
    assert failed.state == "failed"
    assert failed.error == {"error": "Send 0.2.", "code": "mm_per_px_mismatch", "details": {"sent": 0.3}}


@pytest.mark.parametrize("error", [RuntimeError("secret /path"), AssertionError("secret"), KeyError("secret")])
def test_an_unexpected_error_says_nothing_internal(
    make: Callable[..., Jobs], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Progress) -> dict[str, Any]:
        raise error

    jobs = make()
    job = jobs.start("fit_ok", fail)
    failed = _ended(jobs, job)
    assert failed.error is not None
    assert failed.error["code"] == "internal_error"
    assert "secret" not in json.dumps(failed.error)
    assert job.job_id in caplog.text
    assert "secret" in caplog.text


def test_a_job_ends_though_its_state_cannot_be_written(
    make: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, steps = make(), Steps(2)
    job = jobs.start("fit_ok", steps)
    steps.begun.wait(_DEADLINE_S)

    def full(_path: Path, _data: bytes) -> None:
        raise StorageFull("The disk is full.")

    monkeypatch.setattr(jobs_module, "write_atomic", full)
    steps.allow(2)
    assert _ended(jobs, job).result == {"steps": 2}
    assert "could not be written" in caplog.text


def test_only_so_many_run_at_a_time_and_the_rest_wait(make: Callable[..., Jobs]) -> None:
    jobs, calls = make(concurrent=2), [Steps(1) for _ in range(4)]
    started = [jobs.start("fit_ok", call) for call in calls]
    assert calls[0].begun.wait(_DEADLINE_S)
    assert calls[1].begun.wait(_DEADLINE_S)
    assert not calls[2].begun.wait(0.05)
    assert [jobs.get(job.job_id).state for job in started] == ["running", "running", "queued", "queued"]
    for call in calls:
        call.allow()
    assert [_ended(jobs, job).state for job in started] == ["done"] * 4


def test_one_job_too_many_is_refused_until_another_ends(make: Callable[..., Jobs]) -> None:
    jobs, blocker = make(concurrent=1, max_waiting=2), Steps(1)
    jobs.start("fit_ok", blocker)
    blocker.begun.wait(_DEADLINE_S)
    waiting = [jobs.start("fit_ok", Steps(0)) for _ in range(2)]
    with pytest.raises(QueueFull):
        jobs.start("fit_ok", Steps(0))
    jobs.cancel(waiting[0].job_id)
    third = jobs.start("fit_ok", Steps(0))
    blocker.allow()
    assert _ended(jobs, third).state == "done"


# --- cancellation -----------------------------------------------------------------------------------------------------


def test_a_running_job_ends_at_its_next_step(make: Callable[..., Jobs]) -> None:
    jobs, steps = make(), Steps(3)
    job = jobs.start("fit_ok", steps)
    steps.allow()
    _wait(lambda: jobs.get(job.job_id).done == 1)
    assert jobs.cancel(job.job_id).state == "running"
    steps.allow()
    cancelled = _ended(jobs, job)
    assert (cancelled.state, cancelled.done, cancelled.result) == ("cancelled", 1, None)


def test_a_waiting_job_is_cancelled_at_once_and_never_begins(make: Callable[..., Jobs]) -> None:
    jobs, blocker, waiting = make(concurrent=1), Steps(1), Steps(1)
    jobs.start("fit_ok", blocker)
    blocker.begun.wait(_DEADLINE_S)
    job = jobs.start("fit_ok", waiting)
    assert jobs.cancel(job.job_id).state == "cancelled"
    assert jobs.get(job.job_id).state == "cancelled"
    blocker.allow()
    last = jobs.start("fit_ok", Steps(0))
    assert _ended(jobs, last).state == "done"
    assert not waiting.begun.is_set()


def test_what_has_ended_stays_as_it_ended(make: Callable[..., Jobs]) -> None:
    jobs = make()
    job = jobs.start("fit_ok", Steps(0))
    done = _ended(jobs, job)
    assert jobs.cancel(job.job_id) == done
    assert jobs.get(job.job_id) == done


def test_another_process_s_job_can_be_watched_and_cancelled(make: Callable[..., Jobs]) -> None:
    one, two, steps = make(), make(), Steps(3)
    job = one.start("fit_ok", steps)
    steps.begun.wait(_DEADLINE_S)
    assert two.get(job.job_id).state == "running"
    two.cancel(job.job_id)
    steps.allow()
    assert _ended(one, job).state == "cancelled"
    assert two.get(job.job_id).state == "cancelled"


@pytest.mark.parametrize("job_id", ["0" * 32, "", "x", "../../etc/passwd", "0" * 31 + "/", "A" * 32, "0" * 33])
def test_an_unknown_job_is_not_found(make: Callable[..., Jobs], job_id: str) -> None:
    jobs = make()
    for ask in (jobs.get, jobs.cancel):
        with pytest.raises(NotFound):
            ask(job_id)


# --- the end of a process ---------------------------------------------------------------------------------------------


def test_a_job_that_the_end_of_its_process_cuts_short_is_lost(make: Callable[..., Jobs]) -> None:
    jobs, running, waiting = make(concurrent=1), Steps(2), Steps(1)
    started = [jobs.start("fit_ok", running), jobs.start("fit_ok", waiting)]
    running.begun.wait(_DEADLINE_S)
    jobs.stop()
    running.allow(2)
    jobs.close()
    assert not waiting.begun.is_set()
    for teller in (jobs, make()):
        assert [teller.get(job.job_id).state for job in started] == ["lost", "lost"]


def test_a_job_cancelled_before_the_end_of_its_process_is_cancelled(make: Callable[..., Jobs]) -> None:
    jobs, steps = make(), Steps(2)
    job = jobs.start("fit_ok", steps)
    steps.begun.wait(_DEADLINE_S)
    jobs.cancel(job.job_id)
    closing = threading.Thread(target=jobs.close)
    closing.start()
    steps.allow(2)
    closing.join(_DEADLINE_S)
    assert make().get(job.job_id).state == "cancelled"


def test_a_closed_runner_takes_no_job(make: Callable[..., Jobs]) -> None:
    jobs = make()
    jobs.close()
    with pytest.raises(ShuttingDown):
        jobs.start("fit_ok", Steps(0))


def test_a_result_outlives_its_process(make: Callable[..., Jobs]) -> None:
    jobs = make()
    job = jobs.start("fit_ok", lambda _: {"name": "größe", "n": 1, "none": None, "x": 0.1})
    done = _ended(jobs, job)
    jobs.close()
    assert make().get(job.job_id) == done


@pytest.mark.parametrize("state", ["queued", "running"])
@pytest.mark.parametrize("with_lock_file", [False, True])
def test_an_unfinished_job_of_a_dead_process_is_lost_at_once(
    make: Callable[..., Jobs], folder: Path, state: str, with_lock_file: bool
) -> None:
    job_id = _leave_behind(folder, state=state, done=3, total=10)
    if with_lock_file:  # a killed process leaves the file, but not the lock on it
        (folder / f"{'f' * 32}.alive").touch()
    lost = make().get(job_id)
    assert (lost.state, lost.done, lost.total) == ("lost", 3, 10)
    assert json.loads((folder / f"{job_id}.json").read_text())["state"] == "lost"
    assert not (folder / f"{'f' * 32}.alive").exists()


def test_many_who_ask_at_once_hear_the_same(make: Callable[..., Jobs], folder: Path) -> None:
    jobs = make()
    for _ in range(20):
        job_id = _leave_behind(folder)
        (folder / f"{'f' * 32}.alive").touch()
        with ThreadPoolExecutor(8) as pool:
            assert {job.state for job in pool.map(jobs.get, [job_id] * 8)} == {"lost"}


def test_whoever_asks_while_another_looks_whether_the_owner_lives_waits_for_it(
    make: Callable[..., Jobs], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds_the_mark, second_is_here = threading.Event(), threading.Event()

    class Watched(FileLock):
        """Stops the first thread with the owner's lock taken, until the second has tried a lock or waits for one."""

        def acquire(self, *args: Any, **options: Any) -> Any:
            is_mark, is_first = Path(self.lock_file).suffix == ".alive", threading.current_thread().name == "first"
            if not is_first and not is_mark:
                second_is_here.set()
            try:
                return super().acquire(*args, **options)
            finally:
                if is_mark and is_first:
                    holds_the_mark.set()
                    assert second_is_here.wait(_DEADLINE_S)
                elif is_mark:
                    second_is_here.set()

    monkeypatch.setattr(job_files, "FileLock", Watched)
    job_id = _leave_behind(folder)
    (folder / f"{'f' * 32}.alive").touch()
    answers: dict[str, str] = {}

    def ask(jobs: Jobs) -> None:
        answers[threading.current_thread().name] = jobs.get(job_id).state

    threads = [threading.Thread(target=ask, args=[make()], name=name) for name in ("first", "second")]
    threads[0].start()
    assert holds_the_mark.wait(_DEADLINE_S)
    threads[1].start()
    for thread in threads:
        thread.join(_DEADLINE_S)
    assert answers == {"first": "lost", "second": "lost"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"1", b'"x"', b'{"job_id":1}', b"\xff\xfe", b'{"state":"running","owner":"x"}'],
)
def test_a_damaged_job_file_is_no_job(make: Callable[..., Jobs], folder: Path, content: bytes) -> None:
    job_id = _leave_behind(folder)
    (folder / f"{job_id}.json").write_bytes(content)
    with pytest.raises(NotFound):
        make().get(job_id)


def test_only_the_newest_jobs_are_kept_and_never_a_running_one_is_dropped(
    make: Callable[..., Jobs], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "KEPT_JOBS", 3)
    jobs, steps = make(concurrent=2), Steps(1)
    running = jobs.start("fit_ok", steps)
    steps.begun.wait(_DEADLINE_S)
    old = [jobs.start("fit_ok", Steps(0)) for _ in range(6)]
    for job in old:
        _wait(lambda job=job: not _is_there(jobs, job) or jobs.get(job.job_id).state in FINAL)
    jobs.start("fit_ok", Steps(0))
    assert jobs.get(running.job_id).state == "running"
    assert not _is_there(jobs, old[0])
    assert _is_there(jobs, old[-1])
    assert len(list(folder.glob("*.json"))) <= 5
    steps.allow()
    assert _ended(jobs, running).state == "done"


def test_two_processes_that_tidy_up_at_once_do_not_stumble(
    make: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "KEPT_JOBS", 2)
    runners = [make(concurrent=4) for _ in range(2)]

    def start(jobs: Jobs, steps: Steps) -> Job:
        while True:
            try:
                return jobs.start("fit_ok", steps)
            except QueueFull:
                time.sleep(0.005)

    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(start, runners * 40, [Steps(0)] * 80))
    assert len({job.job_id for job in jobs}) == 80
    steps = Steps(1)
    last = start(runners[0], steps)
    steps.allow()  # only now: one that ended before jobs of earlier calls would be tidied up by its own call
    assert _ended(runners[0], last).state == "done"


# --- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "done", "total", "progress", "eta_s"),
    [
        ("queued", 0, 0, 0.0, None),
        ("running", 0, 0, 0.0, None),
        ("running", 0, 10, 0.0, None),
        ("running", 4, 10, 0.4, 15.0),  # 10 s for 4 steps, 6 steps are left
        ("running", 10, 10, 1.0, 0.0),
        ("running", 11, 10, 1.0, None),
        ("done", 0, 0, 1.0, None),
        ("cancelled", 4, 10, 0.4, None),
    ],
)
def test_progress_and_the_time_left(state: Any, done: int, total: int, progress: float, eta_s: float | None) -> None:
    job = Job(job_id="0" * 32, kind="x", owner="y", state=state, done=done, total=total, created_s=0.0, started_s=100.0)
    assert job.progress == progress
    assert job.eta_s(110.0) == eta_s


def _is_there(jobs: Jobs, job: Job) -> bool:
    try:
        jobs.get(job.job_id)
    except NotFound:
        return False
    return True


# --- two roles --------------------------------------------------------------------------------------------------------


def test_jobs_of_who_may_only_inspect_push_no_job_of_an_administrator_out(
    make: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "KEPT_JOBS", 3)
    jobs = make(concurrent=1)
    kept = [jobs.start("fit_ok", Steps(0)) for _ in range(3)]
    for job in kept:
        _ended(jobs, job)
    others = [_ended(jobs, jobs.start("infer_dataset", Steps(0), role="inspect")) for _ in range(12)]
    assert [jobs.get(job.job_id).state for job in kept] == ["done"] * 3
    assert [_is_there(jobs, job) for job in others].count(True) <= 4
    assert _is_there(jobs, others[-1])
    assert make().get(others[-1].job_id).role == "inspect"
    for _ in range(6):
        _ended(jobs, jobs.start("fit_ok", Steps(0)))
    assert _is_there(jobs, others[-1]), "nor the other way round"


@pytest.mark.parametrize(("role", "other"), [("inspect", "admin"), ("admin", "inspect")])
def test_a_full_queue_of_one_role_is_not_full_for_the_other(make: Callable[..., Jobs], role: Any, other: Any) -> None:
    jobs, blocker = make(concurrent=1, max_waiting=3), Steps(1)
    jobs.start("infer_dataset", blocker, role=role)
    assert blocker.begun.wait(_DEADLINE_S)
    waiting = [jobs.start("infer_dataset", Steps(0), role=role) for _ in range(3)]
    with pytest.raises(QueueFull):
        jobs.start("infer_dataset", Steps(0), role=role)
    mine = [jobs.start("fit_ok", Steps(0), role=other) for _ in range(3)]
    with pytest.raises(QueueFull):
        jobs.start("fit_ok", Steps(0), role=other)
    blocker.allow()
    for job in (*mine, *waiting):
        assert _ended(jobs, job).state == "done"


def test_one_thread_is_left_to_the_administrator(make: Callable[..., Jobs]) -> None:
    jobs, long = make(concurrent=2), [Steps(1) for _ in range(4)]
    for call in long:
        jobs.start("infer_dataset", call, role="inspect")
    assert long[0].begun.wait(_DEADLINE_S)
    assert _ended(jobs, jobs.start("fit_ok", Steps(0))).state == "done"
    assert not long[1].begun.is_set()
    for call in long:
        call.allow()
    for call in long:
        assert call.begun.wait(_DEADLINE_S)


def test_the_roles_take_turns_where_there_is_one_thread(make: Callable[..., Jobs]) -> None:
    jobs, blocker, order = make(concurrent=1), Steps(1), list[str]()
    first = jobs.start("infer_dataset", blocker, role="inspect")
    assert blocker.begun.wait(_DEADLINE_S)

    def noting(name: str) -> Callable[[Progress], dict[str, Any]]:
        return lambda _: order.append(name) or {}  # type: ignore[func-returns-value]

    started = [jobs.start("infer_dataset", noting(f"inspect-{n}"), role="inspect") for n in range(3)]
    started += [jobs.start("fit_ok", noting(f"admin-{n}")) for n in range(3)]
    blocker.allow()
    for job in (first, *started):
        _ended(jobs, job)
    assert order == ["admin-0", "inspect-0", "admin-1", "inspect-1", "admin-2", "inspect-2"]


def test_whatever_becomes_of_a_job_its_end_is_said_once(make: Callable[..., Jobs]) -> None:
    jobs, blocker, ended = make(concurrent=1), Steps(1), list[str]()
    jobs.start("fit_ok", blocker, ended=lambda: ended.append("ran"))
    assert blocker.begun.wait(_DEADLINE_S)
    cancelled = jobs.start("fit_ok", Steps(0), ended=lambda: ended.append("cancelled"))
    jobs.start("fit_ok", Steps(0), role="inspect", ended=lambda: ended.append("never begun"))
    assert jobs.cancel(cancelled.job_id).state == "cancelled"
    assert ended == ["cancelled"]
    jobs.stop()
    blocker.allow()
    jobs.close()
    assert sorted(ended) == ["cancelled", "never begun", "ran"]
