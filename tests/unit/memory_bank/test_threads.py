"""Work on several threads, in place of those of BLAS."""

import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

from backend.memory_bank import threads
from backend.memory_bank.threads import limit_threads, parallel_map, parallel_width, usable_cpus


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(threads, "_width", 2)
    threads._workers.cache_clear()
    yield
    threads._workers.cache_clear()


# --- parallel_map


@pytest.mark.parametrize("parts", [[], [5], [3, 1, 2], range(100)])
def test_results_come_in_the_order_of_the_parts(parts):
    assert parallel_map(lambda part: part * part, parts) == [part * part for part in parts]


def test_two_parts_run_at_the_same_time_and_one_of_them_in_the_caller(two_threads):
    meeting = threading.Barrier(2, timeout=60)
    names = parallel_map(lambda _: meeting.wait() >= 0 and threading.current_thread(), range(2))
    assert len(set(names)) == 2
    assert threading.current_thread() in names


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_error_of_a_part_comes_out_when_no_part_runs_any_more(two_threads, broken):
    running = set()

    def call(part):
        running.add(part)
        try:
            if part == broken:
                raise KeyError(part)
            np.ones(1_000_000).sum()
        finally:
            running.remove(part)

    with pytest.raises(KeyError):
        parallel_map(call, range(3))
    assert running == set()


def test_parts_may_be_computed_in_parallel_themselves(two_threads):
    def nested(part):
        return sum(parallel_map(lambda inner: part * inner, range(4)))

    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda _: parallel_map(nested, range(4)), range(8)))
    assert found == [[0, 6, 12, 18]] * 8


# --- how many threads


def test_until_the_threads_are_limited_blas_has_the_cores_and_parts_run_in_the_caller():
    # In a process of its own: other tests limit the threads of this one.
    program = """
        import threading
        from backend.memory_bank.threads import parallel_map, parallel_width
        assert parallel_width() == 1
        assert set(parallel_map(lambda _: threading.current_thread(), range(3))) == {threading.current_thread()}
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=Path(__file__).parents[3], check=True)


def test_limiting_threads_reaches_the_libraries_that_are_loaded(two_threads):
    import cv2

    torch = pytest.importorskip("torch")
    before = cv2.getNumThreads(), torch.get_num_threads()
    try:
        with threadpoolctl.threadpool_limits(limits=None):  # puts its numbers back
            limit_threads(1)
            assert {pool["num_threads"] for pool in threadpoolctl.threadpool_info()} == {1}
            assert (cv2.getNumThreads(), torch.get_num_threads(), parallel_width()) == (1, 1, 1)
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None), ("6400000 100000", None)],
)
def test_a_containers_quota_counts(tmp_path, quota, expected):
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    granted = usable_cpus(tmp_path / "none")
    assert granted >= 1
    assert usable_cpus(file) == (granted if expected is None else expected)
