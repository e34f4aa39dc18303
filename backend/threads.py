"""How many threads compute. Several libraries bring pools of their own, and each takes the whole machine by default."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")

_blas_lock = threading.Lock()
_blas_users = 0
_blas_limit: Any = None


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
    """Let BLAS, OpenMP, OpenCV and PyTorch compute with so many threads each, for the whole process.

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

    threadpoolctl.threadpool_limits(limits=threads)
    if (cv2 := sys.modules.get("cv2")) is not None:
        cv2.setNumThreads(threads)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS compute in the thread that calls it, until the last of those that asked for it has left.

    For who spreads the work over threads himself. The threads of a BLAS product hand each other pieces and spin
    meanwhile; where something else wants the cores too, such a product takes several times as long as on one thread.
    The number belongs to the process, not to a thread, so concurrent users must not each restore what they found.
    """
    global _blas_users, _blas_limit
    import threadpoolctl

    with _blas_lock:
        if _blas_users == 0:
            _blas_limit = threadpoolctl.threadpool_limits(limits=1, user_api="blas")
        _blas_users += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                _blas_limit.restore_original_limits()
