"""The ladder of precisions beside plain differences: every rung keeps the nearest, and the whole is exact."""

import sys
import time
import tracemalloc
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from backend.memory_bank import ladder, projection
from backend.memory_bank.distances import classes, fold, half_squares, slack
from backend.memory_bank.ladder import Ladder
from backend.memory_bank.nearest import build_index
from backend.memory_bank.projection import ProjectedCandidates
from backend.memory_bank.threads import one_blas_thread


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def near(rows: np.ndarray, n: int, apart: float, seed: int = 5) -> np.ndarray:
    """Rows at a small distance from some of ``rows``."""
    some = rows[np.random.default_rng(seed).integers(0, len(rows), n)]
    return some + np.float32(apart) * unit_rows(n, rows.shape[1], seed)


def plain(query: np.ndarray, memory: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices [N, k] as the definition reads; of equal distances the lower index first."""
    distances = np.stack([np.linalg.norm(memory - row, axis=1) for row in query])
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, axis=1), indices


NOISE = unit_rows(700, 96)
KINDS = {
    "noise": (unit_rows(60, 96, 1), NOISE),
    "near the memory": (near(NOISE, 60, 0.05), NOISE),
    "in the memory": (NOISE[100:160], NOISE),
    "a tight cluster": (near(NOISE[:1], 60, 1e-3), near(NOISE[:1], 700, 1e-3, seed=6)),
    "each vector many times": (near(NOISE[:7], 60, 0.1), NOISE[np.arange(700) % 7]),
    "far from the origin": (unit_rows(60, 96, 1) + np.float32(100), NOISE + np.float32(100)),
    "one axis": (unit_rows(60, 1, 1), np.sort(unit_rows(700, 1) * np.linspace(0, 1, 700, dtype=np.float32)[:, None])),
    "long and short": (unit_rows(60, 96, 1), NOISE * np.geomspace(1e-3, 1e3, 700, dtype=np.float32)[:, None]),
}


def at_once(call):
    """``_in_background``, in the foreground."""
    future = Future()
    future.set_result(call())
    return future


@pytest.fixture
def coarse_at_once(monkeypatch):
    """A rung below float32 from the first query on."""
    monkeypatch.setattr(ladder, "_in_background", at_once)
    monkeypatch.setattr(ladder, "_LARGE", 1)
    monkeypatch.setattr(ladder, "_PAYS_AFTER", 0)


@pytest.fixture
def bf16(monkeypatch, coarse_at_once):
    """The bf16 rung from the first query on, also where it is emulated."""
    pytest.importorskip("torch")
    rung = pytest.importorskip("backend.memory_bank.bf16")
    monkeypatch.setattr(rung, "has_bf16_units", lambda: True)
    monkeypatch.setattr(ladder, "_PROJECTED_FROM", 1 << 30)
    return rung


@pytest.fixture
def projected(monkeypatch, coarse_at_once):
    """The projection from the first query on, also where it keeps less than it should; onto 31 of 96 dimensions."""
    monkeypatch.setattr(ladder, "_PROJECTED_FROM", 1)
    monkeypatch.setattr(projection, "_KEPT", 0.01)
    monkeypatch.setattr(projection, "_BLOCK", 64)


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def check(kind: str, k: int) -> None:
    query, memory = KINDS[kind]
    distances, indices = build_index(memory).search(query, k)
    expected, nearest = plain(query, memory, k)
    assert distances.tobytes() == expected.tobytes()
    assert indices.tolist() == nearest.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 9, 300])
def test_the_distances_are_those_of_the_definition_to_the_last_bit(no_torch, monkeypatch, kind, k):
    monkeypatch.setattr(ladder, "_BLOCK", 150)
    check(kind, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 9, 300])
def test_so_they_are_with_bf16_below(bf16, monkeypatch, kind, k):
    monkeypatch.setattr(bf16, "_ROWS_AT_ONCE", 64)
    monkeypatch.setattr(bf16, "_RESULTS_AT_ONCE", 9000)
    check(kind, k)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "one axis"])
@pytest.mark.parametrize("k", [1, 2, 9, 300])
def test_so_they_are_with_a_projection_below(projected, kind, k):
    query, memory = KINDS[kind]
    index = build_index(memory)
    distances, indices = index.search(query, k)
    expected, nearest = plain(query, memory, k)
    assert isinstance(index._candidates._coarse.result(), ProjectedCandidates)
    assert distances.tobytes() == expected.tobytes()
    assert indices.tolist() == nearest.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("rung", ["bf16", "float32", "float64"])
def test_every_rung_by_itself_keeps_the_nearest(bf16, kind, k, rung):
    query, memory = KINDS[kind]
    full = Ladder(memory)
    off = slack(memory.shape[1], float(max(half_squares(memory).max(), half_squares(query).max())))
    if rung == "bf16":
        rows, columns = bf16.Bf16Candidates(memory)(query, k)
    else:
        rows, columns = (full._float32 if rung == "float32" else full._float64)(query, k, off)
    expected, _ = plain(query, memory, k)
    kept = np.full((len(query), len(memory)), np.inf, dtype=np.float32)
    kept[rows, columns] = np.linalg.norm(query[rows] - memory[columns], axis=1)
    kept.sort(axis=1)
    # Double precision decides ties that single precision calls different by a bit.
    np.testing.assert_allclose(kept[:, :k], expected, rtol=3e-6 if rung == "float64" else 0, atol=0)


def test_bf16_alone_would_be_wrong_and_its_margin_is_not_all_of_the_memory(bf16):
    import torch

    query, memory = unit_rows(400, 96, 1), NOISE
    rounded = torch.from_numpy(query).bfloat16() @ torch.from_numpy(memory).bfloat16().T
    nearest = plain(query, memory, 1)[1][:, 0]
    assert (rounded.float().numpy().argmax(axis=1) != nearest).any()
    rows, _ = bf16.Bf16Candidates(memory)(query, 1)
    assert len(query) <= len(rows) < 12 * len(query)


def test_a_neighbour_that_rounding_to_bf16_moves_away_behind_another_is_kept(bf16):
    # bf16 numbers from 1 on are 1/128 apart. Seen from the origin in such steps beyond 1: the first vector is at 0.51
    # and rounds to 1; the second has 0.49 in most places and 1.49 in some, 0.54 on average, and rounds to 0.05.
    step = 1 / 128
    first = np.full(760, 1 + 0.51 * step, dtype=np.float32)
    second = np.full(760, 1 + 0.49 * step, dtype=np.float32)
    second[:38] += np.float32(step)
    memory = np.stack([second, first, -second, -first])  # centred already
    origin = np.zeros((1, 760), np.float32)
    assert plain(origin, memory, 1)[1].tolist() == [[1]]
    assert 1 in bf16.Bf16Candidates(memory)(origin, 1)[1]
    assert build_index(memory).search(origin)[1].tolist() == [[1]]


def test_queries_that_a_rung_cannot_settle_are_passed_up(monkeypatch):
    asked = []
    for name in ("_float32", "_float64"):
        plainly = getattr(Ladder, name)
        monkeypatch.setattr(
            Ladder,
            name,
            lambda self, query, *a, f=plainly, n=name, **k: asked.append((n, len(query))) or f(self, query, *a, **k),
        )
    memory = np.concatenate([np.repeat(NOISE[:1], 200, axis=0), NOISE])
    build_index(memory).search(np.concatenate([NOISE[:3], NOISE[50:60]]))
    assert asked == [("_float32", 13), ("_float64", 1)]


def patches(n: int, seed: int = 0) -> np.ndarray:
    """Unit rows as a network gives them for one part: 256 dimensions that vary in 20, and a little in all."""
    rng = np.random.default_rng(7)
    basis, centre = rng.standard_normal((20, 256)), rng.standard_normal(256)
    rng = np.random.default_rng(seed)
    rows = centre + rng.standard_normal((n, 20)) @ basis / 4 + 0.02 * rng.standard_normal((n, 256))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_projection_leaves_few_candidates_and_the_nearest_among_them():
    memory, query = patches(3000), patches(200, seed=1)
    projected = ProjectedCandidates.of(memory)
    rows, columns = projected(query, 1)
    assert projected._basis.shape[1] <= 63
    assert len(rows) < 3 * len(query)
    assert set(zip(range(200), plain(query, memory, 1)[1][:, 0], strict=True)) <= set(zip(rows, columns, strict=True))


def test_the_nearest_in_the_projection_is_not_taken_for_the_nearest():
    # Along the one direction that is kept the second vector coincides with the query; across it, it is far away.
    memory = np.zeros((400, 96), np.float32)
    memory[:, 0] = np.linspace(-1, 1, 400)
    memory[200, 1] = 0.5
    query = memory[200:201] * np.float32([1, *[0] * 95])
    basis = np.eye(96, 31, dtype=np.float32)
    basis[1] = 0
    rows, columns = ProjectedCandidates(memory, np.zeros(96, np.float32), basis)(query, 1)
    nearest = plain(query, memory, 1)[1][0, 0]
    assert nearest in (199, 201)
    assert nearest in columns[rows == 0]


@pytest.mark.parametrize("offset", [0, 100])
def test_rounding_moves_a_projected_row_by_no_more_than_the_projection_allows_for(offset):
    memory = patches(3000) + np.float32(offset)
    projected = ProjectedCandidates(memory, memory.mean(axis=0), ProjectedCandidates.of(patches(3000))._basis)
    found, moves = projected._project(memory)
    exact = (memory.astype(np.float64) - projected._mean) @ projected._basis.astype(np.float64)
    moved = np.linalg.norm(found - exact, axis=1)
    assert moved.max() > 0
    assert (moved <= moves).all()


def test_vectors_that_vary_in_all_directions_are_not_projected():
    assert ProjectedCandidates.of(unit_rows(3000, 256)) is None


def test_a_coarse_rung_is_made_only_when_it_pays(monkeypatch):
    monkeypatch.setattr(ladder, "_in_background", at_once)
    small, large = Ladder(patches(600)), Ladder(patches(2500))
    for _ in range(2):
        small(patches(600, 1), 1)
        large(patches(500, 1), 1)
    assert small._coarse is None
    assert large._coarse is None
    large(patches(500, 1), 1)
    assert isinstance(large._coarse.result(), ProjectedCandidates)


def test_a_search_does_not_wait_for_the_coarse_rung(monkeypatch):
    asked = []
    monkeypatch.setattr(ladder, "_in_background", lambda call: asked.append(call) or Future())  # never done
    memory, query = patches(2500), patches(1200, 1)
    index = build_index(memory)
    for _ in range(3):
        assert index.search(query)[1].tolist() == plain(query, memory, 1)[1].tolist()
    assert len(asked) == 1


def test_a_projection_that_settles_too_little_gives_way_to_bf16(monkeypatch, projected):
    pytest.importorskip("torch")
    rung = pytest.importorskip("backend.memory_bank.bf16")
    monkeypatch.setattr(rung, "has_bf16_units", lambda: True)
    monkeypatch.setattr(ladder, "_TRIED_WITH", 100)
    memory, query = unit_rows(1500, 96), unit_rows(120, 96, 1)
    index = build_index(memory)
    for _ in range(2):
        assert index.search(query)[1].tolist() == plain(query, memory, 1)[1].tolist()
    assert isinstance(index._candidates._coarse.result(), rung.Bf16Candidates)


def test_without_torch_no_torch_is_imported(no_torch, monkeypatch):
    monkeypatch.setattr(ladder, "_in_background", at_once)
    found = Ladder(unit_rows(2500, 8))
    found(unit_rows(1500, 8, 1), 1)
    assert found._coarse.result() is None
    assert "torch" not in sys.modules


def test_the_fold_bounds_the_kth_best_from_the_right_side():
    results = np.random.default_rng(0).standard_normal((50, 1003)).astype(np.float32)
    for k in (1, 4, 40):
        best = np.full((50, classes(1003, k)), -np.inf, dtype=np.float32)
        for start in range(0, 1003, 400):
            fold(np.maximum, results[:, start : start + 400], best)
        kth = np.sort(best, axis=1)[:, -k]
        assert (kth <= np.sort(results, axis=1)[:, -k]).all()
        assert ((results >= kth[:, None]).sum(axis=1) < 2 * k + 3).all()


def test_an_index_keeps_no_second_copy_of_the_vectors(no_torch):
    memory = unit_rows(4000, 256)  # 4 MiB
    tracemalloc.start()
    index = build_index(memory)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < memory.nbytes // 50
    assert np.shares_memory(index._vectors, memory)


def test_a_search_needs_bounded_memory_however_many_the_queries(no_torch):
    index, query = build_index(unit_rows(9000, 16)), unit_rows(6000, 16, 1)
    tracemalloc.start()
    index.search(query)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 << 20  # all products would be 206 MiB


def test_threads_that_make_the_projection_at_once_all_get_the_same_answer():
    query, memory = patches(700, 1), patches(2500)
    expected = plain(query, memory, 3)[0]
    index = build_index(memory)
    with ThreadPoolExecutor(6) as threads:
        for distances, _ in threads.map(lambda _: index.search(query, 3), range(18)):
            assert distances.tobytes() == expected.tobytes()


def test_threads_that_make_the_bf16_copy_at_once_all_get_the_same_answer(bf16):
    query, memory = near(NOISE, 200, 0.5), NOISE
    expected = plain(query, memory, 3)[0]
    index = build_index(memory)
    with ThreadPoolExecutor(6) as threads:
        for distances, _ in threads.map(lambda _: index.search(query, 3), range(18)):
            assert distances.tobytes() == expected.tobytes()


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="faiss"):
        build_index(NOISE, backend="annoy")


def test_bf16_units_take_much_less_time_than_single_precision():
    # CPU time on one thread: what else the machine does hardly shows. Measured: 0.5.
    torch = pytest.importorskip("torch")
    from backend.memory_bank.bf16 import Bf16Candidates, has_bf16_units

    if not has_bf16_units():
        pytest.skip("this processor multiplies no bf16 matrices")
    memory, query = unit_rows(4096, 768), unit_rows(729, 768, 1)
    float32, coarse, off = Ladder(memory), Bf16Candidates(memory), slack(768, 0.5)

    def cpu_seconds(call):
        started = time.process_time()
        call()
        return time.process_time() - started

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with one_blas_thread():
            took = {
                name: min(cpu_seconds(call) for _ in range(7))
                for name, call in {
                    "bf16": lambda: coarse(query, 1),
                    "float32": lambda: float32._float32(query, 1, off),
                }.items()
            }
    finally:
        torch.set_num_threads(before)
    assert took["bf16"] < 0.85 * took["float32"]


def test_a_projection_takes_much_less_time_than_all_dimensions():
    # CPU time on one thread, as above. Measured: 0.3.
    memory, query = np.tile(patches(8192), (1, 3)), np.tile(patches(729, 1), (1, 3))
    float32, projected, off = Ladder(memory), ProjectedCandidates.of(memory), slack(768, 1.5)

    def cpu_seconds(call):
        started = time.process_time()
        call()
        return time.process_time() - started

    with one_blas_thread():
        took = [
            min(cpu_seconds(call) for _ in range(5))
            for call in (lambda: projected(query, 1), lambda: float32._float32(query, 1, off))
        ]
    assert took[0] < 0.6 * took[1]
