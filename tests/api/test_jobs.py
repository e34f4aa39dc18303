"""Long calls in the background, over real sockets and in real processes that are stopped and killed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.settings import Settings
from tests.testkit.client import DEADLINE_S, Client, Reply, png
from tests.testkit.fakes import FakeExtractor
from tests.testkit.server import Process, running

_ASYNC = {"Prefer": "respond-async"}
_UNUSED_ROI = (f"roi-{n}" for n in itertools.count())


class GatedExtractor(FakeExtractor):
    """Extracts freely, or only as many images as a test lets through."""

    def __init__(self) -> None:
        super().__init__()
        self._gate: threading.Semaphore | None = None

    def close_gate(self) -> None:
        self._gate = threading.Semaphore(0)

    def let_through(self, images: int) -> None:
        assert self._gate is not None
        self._gate.release(images)

    def open_gate(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.release(10_000)

    def extract(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        gate = self._gate
        if gate is not None:
            assert gate.acquire(timeout=DEADLINE_S)
        return super().extract(image_bgr)


@pytest.fixture(scope="module")
def gated() -> GatedExtractor:
    return GatedExtractor()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gated: GatedExtractor) -> Iterator[Client]:
    settings = Settings(models_dir=tmp_path_factory.mktemp("jobs") / "models", concurrent_jobs=1)
    with running(settings, gated) as client:
        yield client


@pytest.fixture
def client(server: Client) -> Client:
    """A client of a ROI that no other test uses."""
    return server.at(next(_UNUSED_ROI))


@pytest.fixture
def gate(gated: GatedExtractor) -> Iterator[GatedExtractor]:
    """The closed gate; it opens after the test."""
    gated.close_gate()
    yield gated
    gated.open_gate()


# --- asking for it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefer", "status"),
    [
        ("respond-async", 202),
        ("Respond-Async", 202),
        ("wait=10, respond-async", 202),
        ("respond-async, wait=10", 202),
        ("respond-async;foo=bar", 202),
        ('handling=lenient, foo="a,b" , respond-async', 202),
        ("", 200),
        ("wait=10", 200),
        ("no-respond-async", 200),
        ("respond-asynchronously", 200),
        ('note="please, respond-async"', 200),
        ("respond", 200),
    ],
)
def test_only_the_preference_respond_async_makes_a_job(client: Client, prefer: str, status: int) -> None:
    reply = client.fit([png(1)], headers={"Prefer": prefer})
    assert reply.status == status
    if status == 202:
        assert client.wait_for_job(reply.json["job_id"])["state"] == "done"


def test_the_preference_counts_wherever_among_several_prefer_headers_it_stands(client: Client) -> None:
    client.fit([png(1), png(2)]).ok()
    for lines in (["wait=5", "respond-async"], ["respond-async", "wait=5"]):
        assert _raw_status(client, lines) == 202


def test_a_job_is_accepted_with_its_address(client: Client) -> None:
    reply = client.fit([png(1)], headers={**_ASYNC, "X-Request-Id": "the-fit"})
    body = reply.ok(202)
    assert body["kind"] == "fit_ok"
    assert body["state"] == "queued"
    assert body["request_id"] == reply.headers["X-Request-Id"] == "the-fit"
    assert body["status_url"] == reply.headers["Location"] == f"/jobs/{body['job_id']}"
    assert reply.headers["Preference-Applied"] == "respond-async"
    client.wait_for_job(body["job_id"])


def test_an_answer_in_the_background_is_the_answer_in_the_foreground(client: Client) -> None:
    images = [png(1), png(2), png(3)]
    other = client.at(roi_id=f"{client.roi_id}-b")
    for each in (client, other):
        each.upload("ng", [png(9)]).ok()
    calls: list[tuple[str, Callable[..., Reply]]] = [
        ("fit_ok", lambda c, headers: c.fit(images, headers=headers)),
        ("calibrate_dataset", lambda c, headers: c.dataset("/calibrate_dataset", headers=headers)),
        ("infer_dataset", lambda c, headers: c.dataset("/infer_dataset", include_heatmap=True, headers=headers)),
    ]
    for kind, call in calls:
        now = call(client, {"X-Request-Id": "one"}).ok()
        job = other.wait_for_job(call(other, {**_ASYNC, "X-Request-Id": "one"}).ok(202)["job_id"])
        assert (job["kind"], job["state"], job["progress"], job["error"]) == (kind, "done", 1.0, None)
        later = job["result"]
        for volatile in ("timings_ms", "roi_id", "model_key"):
            now.pop(volatile, None)
            later.pop(volatile, None)
        assert later == now


def test_what_is_wrong_with_the_form_is_said_at_once(client: Client) -> None:
    assert client.fit([png(1)], mm_per_px=-1, headers=_ASYNC).status == 422
    assert client.fit([png(1)], shape="{", headers=_ASYNC).status == 400
    assert client.dataset("/infer_dataset", labels=["x"], headers=_ASYNC).status == 422
    assert client.at(recipe="last").fit([png(1)], headers=_ASYNC).status == 400


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda c: c.fit([b"no image"], headers=_ASYNC), "undecodable_image"),
        (lambda c: c.fit(use_dataset=True, headers=_ASYNC), "invalid_input"),
        (lambda c: c.dataset("/infer_dataset", headers=_ASYNC), "memory_not_found"),
        (lambda c: c.dataset("/calibrate_dataset", headers=_ASYNC), "memory_not_found"),
    ],
)
def test_what_is_wrong_with_the_work_is_said_by_the_job(
    client: Client, call: Callable[[Client], Reply], code: str
) -> None:
    job = client.wait_for_job(call(client).ok(202)["job_id"])
    assert (job["state"], job["result"]) == ("failed", None)
    assert job["error"]["code"] == code
    assert job["error"]["error"]


@pytest.mark.parametrize("job_id", ["0" * 32, "x", "..", "%2e%2e%2fx", "A" * 64])
def test_an_unknown_job_is_404(server: Client, job_id: str) -> None:
    for method in ("GET", "DELETE"):
        assert server.send(method, f"/jobs/{job_id}").ok(404)["code"] == "not_found"


# --- watching and ending it -------------------------------------------------------------------------------------------


def test_progress_and_the_time_left_are_visible(client: Client, gate: GatedExtractor) -> None:
    job_id = client.fit([png(seed) for seed in range(4)], headers=_ASYNC).ok(202)["job_id"]
    client.wait_for_job(job_id, until={"running"})
    gate.let_through(2)
    job = _wait_for(client, job_id, lambda job: job["done"] == 2)
    assert (job["total"], job["progress"], job["state"]) == (5, 0.4, "running")
    assert job["eta_s"] > 0
    assert client.get("/health").ok()["status"] == "ok"
    assert client.about("/state").ok()["memory_fitted"] is False
    gate.open_gate()
    job = client.wait_for_job(job_id)
    assert (job["state"], job["progress"], job["eta_s"]) == ("done", 1.0, None)
    assert job["result"]["n_ok_total"] == 4


@pytest.mark.parametrize("path", ["/infer_dataset", "/calibrate_dataset"])
def test_the_progress_of_a_data_set_run_is_visible_too(client: Client, gated: GatedExtractor, path: str) -> None:
    client.fit([png(1), png(2), png(3)]).ok()
    gated.close_gate()
    try:
        job_id = client.dataset(path, headers=_ASYNC).ok(202)["job_id"]
        gated.let_through(1)
        job = _wait_for(client, job_id, lambda job: job["done"] == 1)
        assert (job["total"], job["kind"]) == (3, path.strip("/"))
        assert job["eta_s"] is not None
    finally:
        gated.open_gate()
    assert client.wait_for_job(job_id)["state"] == "done"


def test_the_progress_of_a_fit_from_the_data_set_is_visible_too(client: Client, gate: GatedExtractor) -> None:
    client.upload("ok", [png(1), png(2), png(3)]).ok()
    job_id = client.fit(use_dataset=True, headers=_ASYNC).ok(202)["job_id"]
    gate.let_through(1)
    assert _wait_for(client, job_id, lambda job: job["done"] == 1)["total"] == 4
    gate.open_gate()
    assert client.wait_for_job(job_id)["result"]["n_ok_total"] == 3


def test_a_cancelled_fit_ends_and_leaves_the_memory_as_it_was(client: Client, gated: GatedExtractor) -> None:
    client.fit([png(1), png(2)]).ok()
    before = client.about("/manifest").ok()["fit"]
    gated.close_gate()
    try:
        job_id = client.fit([png(seed) for seed in range(3, 9)], headers=_ASYNC).ok(202)["job_id"]
        gated.let_through(1)
        _wait_for(client, job_id, lambda job: job["done"] == 1)
        assert client.send("DELETE", f"/jobs/{job_id}").ok()["state"] in ("running", "cancelled")
        gated.let_through(1)
        job = client.wait_for_job(job_id)
    finally:
        gated.open_gate()
    assert (job["state"], job["result"]) == ("cancelled", None)
    assert client.about("/manifest").ok()["fit"] == before
    assert len(client.files("ok")) == 2


def test_a_waiting_job_is_cancelled_at_once_and_the_next_one_runs(client: Client, gate: GatedExtractor) -> None:
    first = client.fit([png(1)], headers=_ASYNC).ok(202)["job_id"]
    client.wait_for_job(first, until={"running"})
    second = client.fit([png(2)], headers=_ASYNC).ok(202)["job_id"]
    third = client.fit([png(3)], headers=_ASYNC).ok(202)["job_id"]
    assert client.get(f"/jobs/{second}").ok()["state"] == "queued"
    assert client.send("DELETE", f"/jobs/{second}").ok()["state"] == "cancelled"
    assert client.get(f"/jobs/{second}").ok()["state"] == "cancelled"
    gate.open_gate()
    assert client.wait_for_job(first)["state"] == "done"
    assert client.wait_for_job(third)["result"]["n_ok_total"] == 2


def test_cancelling_what_is_done_changes_nothing(client: Client) -> None:
    job_id = client.fit([png(1)], headers=_ASYNC).ok(202)["job_id"]
    done = client.wait_for_job(job_id)
    answer = client.send("DELETE", f"/jobs/{job_id}").ok()
    assert (answer["state"], answer["result"]) == ("done", done["result"])
    assert client.about("/state").ok()["memory_fitted"] is True


def test_inspections_go_on_while_a_job_waits_for_its_turn(client: Client, gated: GatedExtractor) -> None:
    client.fit([png(1), png(2)]).ok()
    gated.close_gate()
    try:
        job_id = client.fit([png(seed) for seed in range(3, 203)], headers=_ASYNC).ok(202)["job_id"]
        client.wait_for_job(job_id, until={"running"})
        inspected: list[int] = []
        inspector = threading.Thread(target=lambda: inspected.append(client.infer(png(300)).status))
        inspector.start()
        for _ in range(200):  # the whole fit, image by image: an inspection that waited for its end came too late
            gated.let_through(1)
            inspector.join(0.05)
            if inspected:
                break
        assert inspected == [200]
        assert client.get(f"/jobs/{job_id}").ok()["state"] == "running"
        client.send("DELETE", f"/jobs/{job_id}").ok()
    finally:
        gated.open_gate()
    assert client.wait_for_job(job_id)["state"] == "cancelled"


# --- the end of the process -------------------------------------------------------------------------------------------


def test_after_a_restart_an_unfinished_job_is_lost_and_what_was_stored_is_intact(tmp_path: Path) -> None:
    with Process(tmp_path / "models", input_size=336, concurrent_jobs=1) as process:
        client = process.start()
        client.fit([png(1), png(2), png(3)]).ok()
        client.calibrate().ok()
        before = client.infer(png(50)).ok()
        finished = client.wait_for_job(client.dataset("/infer_dataset", headers=_ASYNC).ok(202)["job_id"])
        for ending in (process.kill, process.stop):
            running = client.fit([png(seed) for seed in range(10, 130)], headers=_ASYNC).ok(202)["job_id"]
            waiting = client.fit([png(8)], headers=_ASYNC).ok(202)["job_id"]
            job = _wait_for(client, running, lambda job: job["done"] >= 1)
            assert job["state"] == "running", "the fit must be longer than this test looks"
            ending()
            client = process.start()
            for job_id in (running, waiting):
                assert client.get(f"/jobs/{job_id}").ok()["state"] == "lost", ending
            assert client.send("DELETE", f"/jobs/{running}").ok()["state"] == "lost"
            assert client.get(f"/jobs/{finished['job_id']}").ok()["result"] == finished["result"]
            assert len(client.files("ok")) == 3
            after = client.infer(png(50)).ok()
            for field in ("score", "threshold", "decision", "regions", "heatmap_png_base64", "params"):
                assert after[field] == before[field], (field, ending)
        assert client.fit([png(4)]).ok()["n_ok_total"] == 4  # and no lock is left behind


def _wait_for(client: Client, job_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    for _ in range(int(DEADLINE_S / 0.01)):
        job: dict[str, Any] = client.get(f"/jobs/{job_id}").ok()
        if condition(job):
            return job
        assert job["state"] in ("queued", "running"), job
        threading.Event().wait(0.01)
    raise AssertionError(f"waited too long for {job}")


def _raw_status(client: Client, prefer_lines: list[str]) -> int:
    """POST /infer_dataset with several Prefer lines, which http.client's dictionary of headers cannot hold."""
    import http.client
    import json

    connection = http.client.HTTPConnection(client.host, client.port, timeout=DEADLINE_S)
    body = json.dumps(client.roi).encode()
    connection.putrequest("POST", "/infer_dataset")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    for line in prefer_lines:
        connection.putheader("Prefer", line)
    connection.endheaders(body)
    status = connection.getresponse().status
    connection.close()
    return status
