"""Work spread over threads of ours, with BLAS held to the one that calls it."""

import threading

import numpy as np
import pytest
import threadpoolctl

from backend.memory_bank.threads import spread, spread_width


def blas_threads() -> set[int]:
    """Those of numpy's BLAS; another one, loaded by another test meanwhile, is nobody's concern here."""
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    return {pool["num_threads"] for pool in pools if "numpy" in pool["filepath"]}


def test_results_come_in_the_order_of_the_parts_and_the_caller_works_as_well():
    names = {}

    def call(part):
        names[part] = threading.current_thread()
        return part * part

    assert spread(call, [3, 1, 2]) == [9, 1, 4]
    assert names[3] is threading.current_thread()
    assert names[1] is not threading.current_thread()
    assert spread(call, [5]) == [25]


def test_parts_run_at_the_same_time():
    meeting = threading.Barrier(2, timeout=20)
    assert len(spread(lambda _: meeting.wait(), range(2))) == 2


def test_blas_computes_in_the_calling_thread_meanwhile():
    before = blas_threads()
    assert spread(lambda _: blas_threads(), range(3)) == [{1}] * 3
    assert blas_threads() == before


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_error_of_a_part_comes_out_when_the_others_have_ended(broken):
    ended = set()

    def call(part):
        if part == broken:
            raise KeyError(part)
        np.ones(1_000_000).sum()
        ended.add(part)

    with pytest.raises(KeyError):
        spread(call, range(3))
    assert ended == {0, 1, 2} - {broken}


def test_there_is_a_thread_for_something():
    assert spread_width() >= 1
