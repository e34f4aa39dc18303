from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from backend.errors import QueueFull, ShuttingDown
from backend.extractors.device_queue import DeviceQueue, Priority


class Gate:
    """Holds the device busy until it is opened, so that what queues up behind it is known."""

    def __init__(
        self, queue: DeviceQueue, callers: ThreadPoolExecutor, priority: Priority = Priority.INSPECTION
    ) -> None:
        self._open, self._entered = threading.Event(), threading.Event()
        self.future = callers.submit(queue.run, self._pass, priority)
        assert self._entered.wait(10)

    def _pass(self) -> str:
        self._entered.set()
        assert self._open.wait(10)
        return "passed"

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def queue() -> Iterator[DeviceQueue]:
    made = DeviceQueue(max_waiting=3)
    yield made
    made.close()


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_call_returns_what_it_computes_and_runs_on_the_devices_thread(queue):
    names = {queue.run(lambda: threading.current_thread().name) for _ in range(3)}
    assert names == {"device"}
    assert queue.run(lambda: 6 * 7, Priority.FIT) == 42
    assert queue.waiting == 0


@pytest.mark.parametrize("priority", [Priority.INSPECTION, Priority.FIT])
@pytest.mark.parametrize("error", [KeyError("x"), MemoryError("no memory"), SystemExit(3)])
def test_an_error_goes_to_its_caller_and_the_queue_goes_on(queue, priority, error):
    def fail():
        raise error

    with pytest.raises(type(error)) as raised:
        queue.run(fail, priority)
    assert raised.value is error
    assert queue.run(lambda: "next") == "next"
    assert queue.waiting == 0


def test_one_call_runs_at_a_time(queue, callers):
    running, most = 0, 0

    def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.005)
        running -= 1

    futures = [callers.submit(queue.run, work, Priority.FIT) for _ in range(8)]
    for future in futures:
        future.result(10)
    assert most == 1


def test_inspections_go_before_fits_and_each_kind_in_order(queue, callers):
    gate = Gate(queue, callers, Priority.FIT)
    done, queued = [], []
    for name, priority in [
        ("fit 1", Priority.FIT),
        ("inspection 1", Priority.INSPECTION),
        ("fit 2", Priority.FIT),
        ("inspection 2", Priority.INSPECTION),
        ("inspection 3", Priority.INSPECTION),
    ]:
        before = queue._work.qsize()
        queued.append(callers.submit(queue.run, lambda name=name: done.append(name), priority))
        wait_for(lambda before=before: queue._work.qsize() > before)
    gate.open()
    for future in queued:
        future.result(10)
    assert done == ["inspection 1", "inspection 2", "inspection 3", "fit 1", "fit 2"]


def test_one_inspection_more_than_may_wait_is_refused_at_once(queue, callers):
    gate = Gate(queue, callers)
    waiting = [callers.submit(queue.run, lambda n=n: n) for n in range(3)]
    wait_for(lambda: queue.waiting == 4)  # one runs, three wait
    with pytest.raises(QueueFull) as refused:
        queue.run(lambda: "one too many")
    assert refused.value.retry_after_s == 1
    assert refused.value.details == {"waiting": 4}
    fit = callers.submit(queue.run, lambda: "fit", Priority.FIT)  # a fit is never refused
    gate.open()
    assert [future.result(10) for future in [gate.future, *waiting, fit]] == ["passed", 0, 1, 2, "fit"]
    assert queue.run(lambda: "room again") == "room again"


def test_a_failed_inspection_makes_room_too(queue):
    for _ in range(10):  # more than may wait
        with pytest.raises(ZeroDivisionError):
            queue.run(lambda: 1 / 0)
    assert queue.waiting == 0
    assert queue.run(lambda: 1) == 1


def test_closing_finishes_what_is_queued_and_takes_nothing_new(queue, callers):
    gate = Gate(queue, callers)
    queued = [
        callers.submit(queue.run, lambda: "inspected"),
        callers.submit(queue.run, lambda: "fitted", Priority.FIT),
    ]
    wait_for(lambda: queue._work.qsize() == 2)
    closing = callers.submit(queue.close)
    wait_for(lambda: queue._stopping)
    for priority in (Priority.INSPECTION, Priority.FIT):
        with pytest.raises(ShuttingDown) as refused:
            queue.run(lambda: "late", priority)
        assert refused.value.retry_after_s == 5
    assert not closing.done()
    gate.open()
    closing.result(10)
    assert [future.result(10) for future in [gate.future, *queued]] == ["passed", "inspected", "fitted"]
    assert not queue._thread.is_alive()


def test_closing_twice_does_no_harm(queue):
    queue.close()
    queue.close()
    with pytest.raises(ShuttingDown):
        queue.run(lambda: 1)


def test_closing_does_not_wait_for_ever(callers):
    queue = DeviceQueue(max_waiting=1)
    gate = Gate(queue, callers)
    started = time.monotonic()
    queue.close(timeout_s=0.05)
    assert time.monotonic() - started < 5
    gate.open()
    assert gate.future.result(10) == "passed"
