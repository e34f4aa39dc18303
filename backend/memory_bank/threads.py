"""How many threads compute. Several libraries bring pools of their own, and each takes the whole machine by default.

By itself BLAS computes on all cores. In the service its threads would keep spinning for a while after a product, on the
cores that the network wants next (measured: an extraction right after one small product took 190 ms in place of 140).
So ``limit_threads`` holds BLAS to the thread that calls it and hands the cores to ``parallel_map``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import threadpoolctl  # type: ignore[import-untyped]

S = TypeVar("S")
T = TypeVar("T")

_width = 1


def usable_cpus(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many CPUs this process may use at once: what the scheduler and a container's quota grant, at least 1.

    The libraries look at the machine only; in a container that is granted two of 64 CPUs they start 64 threads, which
    then wait for each other. The file is Linux' cgroup v2 quota, "<quota> <period>" in microseconds or "max <period>".
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no quota: not Linux, no such file, or "max"
        quota, period = quota_file.read_text().split()
        cpus = min(cpus, int(quota) // int(period))
    return max(1, cpus)


def limit_threads(threads: int) -> None:
    """Let OpenMP, OpenCV, PyTorch and ``parallel_map`` compute with so many threads each (≥ 1), and BLAS with one.

    Reaches the libraries that are loaded by then; so call it after what needs them was imported. OpenVINO takes its
    number when a network is compiled. OpenMP (FAISS, scikit-learn) keeps a number for each thread that calls it, and
    this reaches only the one that is running.
    """
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

    For calls that leave Python's lock alone most of the time: products, and numpy on large arrays. Raises what a part
    raised; parts that had not begun by then may be left out.
    """
    results: list[Any] = [None] * len(parts)
    numbers = iter(range(len(parts)))  # shared: Python's lock hands each number to one thread

    def work() -> None:
        for number in numbers:
            results[number] = call(parts[number])

    helpers = [_workers().submit(work) for _ in range(min(_width, len(parts)) - 1)]
    try:
        work()  # the caller works as well: waking a thread takes longer than some parts do
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]  # the others have nothing left to do
        wait(begun)  # they use what the caller gave
    for helper in begun:
        helper.result()
    return results


def parallel_width() -> int:
    """Return over how many threads ``parallel_map`` computes, 1 until ``limit_threads``; so many equal parts do."""
    return _width


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_width, thread_name_prefix="arithmetic")
