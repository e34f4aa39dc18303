"""Writers that wait for a ROI's lock are 503 busy in time, and keep nobody else from his turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from backend.api import own_threads
from backend.artifacts import roi_locks
from tests.testkit.app import Api, answer_of, error_of, running_app
from tests.testkit.client import ROI, ROLE
from tests.testkit.fakes import plates

FORM = {"role_id": ROLE, "roi_id": ROI}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path / "models", queue_length=1) as started:
        answer_of(started.fit(plates(range(3))))
        answer_of(started.fit(plates(range(3)), roi_id="other"))
        yield started


@pytest.fixture
def held(api: Api) -> Iterator[None]:
    """Another writer that has the ROI and does not end."""
    with FileLock(api.roi_folder() / ".lock"):
        yield


def upload(api: Api, seed: int, roi_id: str = ROI) -> object:
    files = {"images": (f"{seed}.png", plates([seed])[0])}
    return api.client.post("/datasets/ok/upload", data={**FORM, "roi_id": roi_id}, files=files)


@pytest.mark.usefixtures("held")
def test_each_kind_of_writer_is_busy_in_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_locks, "LOCK_WAIT_S", 0.1)
    answer_of(api.client.get("/datasets/list", params=FORM))
    for response in (upload(api, 5), api.fit(plates([6])), api.calibrate(threshold=0.5)):
        error_of(response, 503, "busy")
        assert response.headers["Retry-After"] == "5"


@pytest.mark.usefixtures("held")
def test_a_hundred_writers_that_wait_keep_nobody_from_his_turn(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than this test takes: those that got a thread wait to its end.
    monkeypatch.setattr(roi_locks, "LOCK_WAIT_S", 20.0)
    monkeypatch.setattr(own_threads, "WAIT_S", 20.0)
    refused = threading.Event()
    with ThreadPoolExecutor(100) as crowd:
        waiting = [crowd.submit(upload, api, 50) for _ in range(95)]
        waiting[0].add_done_callback(lambda _: refused.set())
        for each in waiting:
            each.add_done_callback(lambda _: refused.set())
        assert refused.wait(60), "those beyond the places for one ROI are refused at once"
        answer_of(api.infer(plates([9])[0]))
        answer_of(api.infer(plates([9])[0], roi_id="other"))
        answer_of(api.client.get("/state", params=FORM))
        answer_of(upload(api, 7, "other"))
        assert not all(each.done() for each in waiting), "while writers of the ROI still wait"
        for each in waiting:
            error_of(each.result(), 503, "busy")
