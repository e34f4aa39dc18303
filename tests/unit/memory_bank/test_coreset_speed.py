"""The fast greedy beside its definition: the same picks in a fraction of the time and in bounded memory."""

import threading
import time
import tracemalloc

import numpy as np
import pytest
import threadpoolctl

from backend.memory_bank import coreset, threads
from backend.memory_bank.coreset import kcenter_greedy, kcenter_greedy_reference
from backend.memory_bank.distances import half_squares, pair_distances, slack
from backend.memory_bank.threads import limit_threads, one_blas_thread, usable_cpus


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clustered(n: int, d: int, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    """Unit rows around 30 directions, as the patches of one part are."""
    rows = unit_rows(30, d, seed + 1)[np.random.default_rng(seed).integers(0, 30, n)] + spread * unit_rows(n, d, seed)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


KINDS = {
    "noise": lambda: unit_rows(1500, 32),
    "clusters": lambda: clustered(1500, 32),
    "clusters that products cannot resolve": lambda: clustered(1500, 32, spread=1e-3),
    "lattice, full of ties": lambda: np.round(2 * unit_rows(1500, 3)).astype(np.float32),
    "each row many times": lambda: unit_rows(60, 16)[np.arange(1500) % 60],
    "all rows the same": lambda: np.ones((1500, 8), np.float32),
    "far from the origin": lambda: unit_rows(1500, 8) + np.float32(1000),
    "squares that underflow": lambda: unit_rows(1500, 8) * np.float32(1e-22),
    "lengths of many sizes": lambda: unit_rows(1500, 16) * np.geomspace(1e-3, 1e3, 1500, dtype=np.float32)[:, None],
}


@pytest.fixture
def small_rounds(monkeypatch):
    """Rounds, blocks and tables so small that a little data goes through every one of them many times."""
    for name, value in {"_ROUND_MIN": 4, "_ROUND_MAX": 100, "_BLOCK": 64, "_AHEAD": 3, "_TABLE": 4000}.items():
        monkeypatch.setattr(coreset, name, value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [2, 40, 200])
def test_rounds_pick_what_the_definition_picks(small_rounds, kind, m):
    vectors = KINDS[kind]()
    assert kcenter_greedy(vectors, m, seed=m).tolist() == kcenter_greedy_reference(vectors, m, seed=m).tolist()


@pytest.mark.parametrize("make", [unit_rows, clustered])
def test_the_sizes_in_use_pick_what_the_definition_picks(make):
    vectors = make(9000, 96)
    assert kcenter_greedy(vectors, 180).tolist() == kcenter_greedy_reference(vectors, 180).tolist()


def test_a_round_that_cannot_tell_its_candidates_from_the_rest_takes_more_of_them():
    vectors = unit_rows(5, 16)[np.arange(4000) % 5]
    greedy = coreset._Greedy(vectors, 0, map)
    assert greedy.round(64, 10) == 0
    assert greedy.round(4000, 10) == 10


def test_the_picks_do_not_depend_on_threads_or_on_what_else_runs(monkeypatch):
    monkeypatch.setattr(coreset, "_WORTH_THREADS", 0)
    vectors = clustered(4000, 64)
    expected = kcenter_greedy_reference(vectors, 120).tolist()
    found = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda out: out.extend(kcenter_greedy(vectors, 120)), args=(o,)) for o in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[int(pick) for pick in picks] for picks in found] == [expected] * 4


def test_products_are_off_by_less_than_the_slack_says():
    # Vectors of one sign are the worst for rounding: every partial sum is as large as it can be.
    vectors = np.abs(unit_rows(400, 768))
    halves = half_squares(vectors)
    by_product = halves[:, None] + halves - vectors @ vectors.T
    row, column = np.divmod(np.arange(400 * 400), 400)
    measured = 0.5 * pair_distances(vectors, row, vectors, column).astype(np.float64) ** 2
    off = np.abs(by_product.ravel() - measured).max()
    assert 0 < off < slack(768, float(halves.max()))


@pytest.mark.parametrize("d", [1, 3, 8, 100, 129, 768, 1000])
def test_the_distance_of_a_pair_has_the_bits_of_the_whole_column(d):
    vectors = unit_rows(700, d)
    column = np.linalg.norm(vectors - vectors[3], axis=1)
    some = np.random.default_rng(0).integers(0, 700, 50)
    for rows in (some, some[:1]):
        measured = pair_distances(vectors, rows, vectors, np.full(len(rows), 3))
        assert measured.tobytes() == column[rows].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_vectors_without_a_finite_length_are_refused(value):
    vectors = unit_rows(50, 4)
    vectors[7, 2] = value
    with pytest.raises(ValueError, match="finite"), np.errstate(over="ignore"):
        kcenter_greedy(vectors, 5)


def test_progress_rises_from_the_first_round_to_the_last():
    told = []
    kcenter_greedy(unit_rows(6000, 16), 300, progress=lambda done, total: told.append((done, total)))
    assert len(told) > 3
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (300, 300)


def test_memory_beside_the_vectors_is_bounded():
    vectors = unit_rows(60_000, 64)  # 15 MiB
    tracemalloc.start()
    kcenter_greedy(vectors, 600)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20  # a [60 000, 600] table alone would be 137 MiB


def test_it_is_many_times_faster_than_the_definition():
    # CPU time on one BLAS thread: what else the machine does hardly shows. Measured: 0.03 to 0.05.
    vectors = clustered(8000, 768)

    def cpu_seconds(pick):
        started = time.process_time()
        pick(vectors, 160)
        return time.process_time() - started

    with one_blas_thread():
        cpu_seconds(kcenter_greedy)
        assert min(cpu_seconds(kcenter_greedy) for _ in range(3)) < 0.2 * cpu_seconds(kcenter_greedy_reference)


def blas_threads() -> set[int]:
    """Those of numpy's BLAS; another one, loaded by another test meanwhile, is nobody's concern here."""
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    return {pool["num_threads"] for pool in pools if "numpy" in pool["filepath"]}


def test_blas_gets_its_threads_back_when_the_last_user_leaves():
    before = blas_threads()
    first, second = one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert blas_threads() == {1}
    second.__exit__(None, None, None)
    assert blas_threads() == before


def test_blas_gets_its_threads_back_after_an_error():
    before = blas_threads()
    with pytest.raises(KeyError), one_blas_thread():
        raise KeyError
    assert blas_threads() == before


def test_limiting_threads_reaches_the_libraries_that_are_loaded():
    import cv2

    torch = pytest.importorskip("torch")
    before = cv2.getNumThreads(), torch.get_num_threads()
    try:
        with threadpoolctl.threadpool_limits(limits=None):  # puts its numbers back
            limit_threads(1)
            assert {pool["num_threads"] for pool in threadpoolctl.threadpool_info()} == {1}
            assert (cv2.getNumThreads(), torch.get_num_threads()) == (1, 1)
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_at_all_are_refused(threads):
    with pytest.raises(ValueError, match="at least 1"):
        limit_threads(threads)


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


def test_a_fit_computes_with_as_many_threads_as_everything_else(monkeypatch):
    asked = []
    pool = coreset.ThreadPoolExecutor
    monkeypatch.setattr(coreset, "ThreadPoolExecutor", lambda width: asked.append(width) or pool(width))
    monkeypatch.setattr(coreset, "_WORTH_THREADS", 0)
    for width in (1, 3):
        monkeypatch.setattr(threads, "_spread_over", width)
        kcenter_greedy(unit_rows(200, 8), 5)
    assert asked == [1, 3]
