"""Large uploads: how much of them is held at one time, and until when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from starlette.exceptions import HTTPException

from backend.serving.limits import BodyBudget, HeldBody, RequestLimits
from tests.testkit.app import Api, answer_of, error_of, ready, running_app
from tests.testkit.fakes import FakeExtractor, encoded

LARGE = encoded(np.random.default_rng(0).integers(0, 256, (400, 450, 3), dtype=np.uint8))  # 540 kB
SMALL = encoded(np.full((400, 450, 3), 90, np.uint8))


def test_a_body_takes_what_it_grows_by_and_gives_all_of_it_back_once() -> None:
    budget = BodyBudget(100, small_bytes=10, reserve_bytes=10)
    body = HeldBody(budget)
    assert [body.grow_to(size) for size in (4, 10, 30, 30, 90)] == [True] * 5
    assert budget.held == 90
    assert not HeldBody(budget).grow_to(11)
    small = [HeldBody(budget) for _ in range(3)]
    assert [each.grow_to(10) for each in small] == [True, True, False], "small ones count, and may take the reserve"
    assert not body.grow_to(101)
    assert budget.held == 110
    for each in (*small, body, body):
        each.release()
    assert budget.held == 0
    assert HeldBody(budget).grow_to(100)


class Gated(FakeExtractor):
    """Extracts nothing before it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def extract(self, image_bgr: Any) -> Any:
        assert self.gate.wait(60)
        return super().extract(image_bgr)


@pytest.fixture
def extractor() -> Gated:
    return Gated()


@pytest.fixture
def api(tmp_path: Path, extractor: Gated) -> Iterator[Api]:
    with running_app(tmp_path / "models", loader=ready(extractor), max_body_mb=1) as started:
        app: Any = started.client.app
        app.state.body_budget = BodyBudget(1_000_000, small_bytes=100_000)
        yield started
        extractor.gate.set()


def held(api: Api) -> int:
    app: Any = api.client.app
    return int(app.state.body_budget.held)


def fit_later(api: Api, image: bytes) -> Any:
    return api.fit([image], headers={"Prefer": "respond-async"})


def wait_for_job(api: Api, job: dict[str, Any]) -> str:
    for _ in range(600):
        state = str(answer_of(api.client.get(job["status_url"]))["state"])
        if state not in ("queued", "running"):
            return state
        threading.Event().wait(0.05)
    raise AssertionError("the job does not end")


def test_an_upload_beside_those_that_wait_in_jobs_is_refused_until_a_job_has_ended(api: Api, extractor: Gated) -> None:
    job = answer_of(fit_later(api, LARGE), 202)
    assert 540_000 < held(api) < 1_000_000
    refused = fit_later(api, LARGE)
    assert "BDI_MAX_HELD_MB" in error_of(refused, 503, "queue_full")["error"]
    assert int(refused.headers["Retry-After"]) >= 1
    small = answer_of(fit_later(api, SMALL), 202)  # what is small is never refused for it
    extractor.gate.set()
    assert {wait_for_job(api, job), wait_for_job(api, small)} == {"done"}
    assert held(api) == 0
    answer_of(api.fit([LARGE], mode="replace"))
    assert held(api) == 0


def test_a_job_that_is_cancelled_while_it_waits_gives_its_upload_back(api: Api) -> None:
    jobs = [answer_of(fit_later(api, image), 202) for image in (SMALL, SMALL, LARGE)]  # two run at a time
    assert held(api) > len(LARGE)
    assert answer_of(api.client.delete(jobs[2]["status_url"]))["state"] == "cancelled"
    assert 0 < held(api) < 100_000, "that of the two that run"


def test_a_refused_call_holds_nothing(api: Api, extractor: Gated) -> None:
    extractor.gate.set()
    assert api.fit([LARGE], mm_per_px="-1").status_code == 422
    nonsense = api.client.post("/fit_ok", content=bytes(600_000), headers={"Content-Type": "text/plain"})
    assert nonsense.status_code == 422
    assert held(api) == 0


def test_a_body_of_unknown_length_is_refused_when_the_room_ends(api: Api) -> None:
    answer_of(fit_later(api, LARGE), 202)
    chunks = (bytes(50_000) for _ in range(14))
    refused = api.client.post("/calibrate_ng", content=chunks, headers={"Content-Type": "application/json"})
    error_of(refused, 503, "queue_full")
    assert held(api) < 600_000


def test_an_upload_that_trickles_is_ended_though_it_never_pauses(tmp_path: Path) -> None:
    clock = [0.0]

    def chunks() -> Iterator[bytes]:
        while True:
            yield b"x"

    sent = chunks()

    async def receive() -> dict[str, Any]:
        clock[0] += 1.0
        return {"type": "http.request", "body": next(sent), "more_body": True}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            assert clock[0] < 1000

    settings = SimpleNamespace(request_timeout_s=1e6, body_timeout_s=30.0, max_body_mb=1, min_upload_kb_s=4.0)
    state = SimpleNamespace(settings=settings, body_budget=BodyBudget(10**6))
    scope = {"type": "http", "headers": [], "state": {}, "app": SimpleNamespace(state=state)}
    time = mock.Mock(monotonic=lambda: clock[0])
    with mock.patch("backend.serving.limits.time", time), pytest.raises(HTTPException) as refused:
        asyncio.run(RequestLimits(app)(scope, receive, mock.Mock()))
    assert refused.value.status_code == 408
    assert state.body_budget.held == 0
