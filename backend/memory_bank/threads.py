"""How many threads compute. Several libraries bring pools of their own, and each takes the whole machine by default.

BLAS computes in the thread that calls it, and ``parallel_map`` is how arithmetic here uses more than one: the threads
of a BLAS of its own keep spinning for a while after a product, on the cores that the network wants next (measured: an
extraction right after one small product took 190 ms in place of 140).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")

_blas_lock = threading.Lock()
_blas_users = 0
_blas_limit: Any = None
_width: int | None = None


def usable_cpus(quota_file: Path = _CPU_QUOTA) -> int:
    """Return how many CPUs this process may use at once: what the scheduler and a container's quota grant, at least 1.

    The libraries look at the machine only; in a container that is granted two of 64 CPUs they start 64 threads, which
    then wait for each other.

    Args:
        quota_file: Linux' cgroup v2 quota, "<quota> <period>" in microseconds or "max <period>".
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        cpus = min(cpus, int(quota) // int(period))
    except (OSError, ValueError):  # no quota: not Linux, no such file, or "max"
        pass
    return max(1, cpus)


def limit_threads(threads: int) -> None:
    """Let OpenMP, OpenCV, PyTorch and ``parallel_map`` compute with so many threads each, and BLAS with one.

    Reaches the libraries that are loaded by then; so call it after what needs them was imported. OpenVINO takes its
    number when a network is compiled. OpenMP (FAISS, scikit-learn) keeps a number for each thread that calls it, and
    this reaches only the one that is running.

    Args:
        threads: At least 1.

    Raises:
        ValueError: If ``threads`` is less than 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    import threadpoolctl  # type: ignore[import-untyped]

    global _width
    _width = threads
    _workers.cache_clear()
    threadpoolctl.threadpool_limits(limits={"openmp": threads, "blas": 1})
    if (cv2 := sys.modules.get("cv2")) is not None:
        cv2.setNumThreads(threads)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)


def parallel_map(call: Callable[[S], T], parts: Sequence[S]) -> list[T]:
    """Return what ``call`` returns for each part, in order; threads take the parts one after the other.

    For calls that leave Python's lock alone most of the time: products, and numpy on large arrays. BLAS is held to one
    thread meanwhile.

    Raises:
        Exception: What a part raised; parts that had not begun by then may be left out.
    """
    results: list[Any] = [None] * len(parts)
    numbers = iter(range(len(parts)))  # shared: Python's lock hands each number to one thread

    def work() -> None:
        for number in numbers:
            results[number] = call(parts[number])

    with one_blas_thread():
        helpers = [_workers().submit(work) for _ in range(min(parallel_width(), len(parts)) - 1)]
        try:
            work()  # the caller works as well: waking a thread takes longer than some parts do
        finally:
            # Those that did not begin have nothing left to do; the others use what the caller gave.
            begun = [helper for helper in helpers if not helper.cancel()]
            wait(begun)
        for helper in begun:
            helper.result()
    return results


def parallel_width() -> int:
    """Return over how many threads ``parallel_map`` computes; so many parts of equal work are enough."""
    return _width or usable_cpus()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS compute in the thread that calls it, until the last of those that asked for it has left.

    The threads of a BLAS product hand each other pieces and spin meanwhile; where something else wants the cores too,
    such a product takes several times as long as on one thread. The number belongs to the process, not to a thread, so
    concurrent users must not each restore what they found.
    """
    global _blas_users, _blas_limit

    with _blas_lock:
        if _blas_users == 0:
            _blas_limit = _loaded_libraries().limit(limits=1, user_api="blas")
        _blas_users += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                _blas_limit.restore_original_limits()


@cache
def _loaded_libraries() -> Any:
    import threadpoolctl

    # Looking for them takes a millisecond, and numpy's BLAS, which is the one that counts here, has been loaded.
    return threadpoolctl.ThreadpoolController()


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(parallel_width(), thread_name_prefix="arithmetic")
