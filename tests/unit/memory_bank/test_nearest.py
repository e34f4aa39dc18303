"""The search beside the definition: distances from differences, of equal ones the lower index first."""

import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from backend.memory_bank import nearest
from backend.memory_bank.distances import half_squared_norms
from backend.memory_bank.index import build_index
from backend.memory_bank.projection import Space

BACKENDS = ["numpy", "faiss", "sklearn"]


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def near(rows: np.ndarray, n: int, apart: float, seed: int = 5) -> np.ndarray:
    """Rows at a small distance from some of ``rows``."""
    some = rows[np.random.default_rng(seed).integers(0, len(rows), n)]
    return some + np.float32(apart) * unit_rows(n, rows.shape[1], seed)


def reference(query: np.ndarray, memory: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices [N, k] as the definition reads."""
    distances = np.stack([np.linalg.norm(memory - row, axis=1) for row in query])
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, axis=1), indices


def assert_as_defined(query: np.ndarray, memory: np.ndarray, k: int) -> None:
    distances, indices = build_index(memory).search(query, k)
    expected, nearest_indices = reference(query, memory, k)
    assert distances.tobytes() == expected.tobytes()
    assert indices.tolist() == nearest_indices.tolist()


# --- by hand

COMPASS = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("k", "distance"), [(1, 0.0), (2, math.sqrt(2) / 2), (3, (math.sqrt(2) + 2) / 3)], ids=["k=1", "k=2", "k=3"]
)
def test_a_distance_is_the_mean_of_the_k_nearest_as_by_hand(backend, k, distance):
    # From east to east, north and west: 0, √2 and 2.
    index = build_index(COMPASS, backend=backend)
    assert index.knn(np.array([[1, 0]], np.float32), k).tolist() == pytest.approx([distance], abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbours_are_named_nearest_first_with_plain_distances(backend):
    distances, indices = build_index(COMPASS, backend=backend).search(np.array([[0.6, 0.8]], np.float32), 3)
    assert indices.tolist() == [[1, 0, 2]]
    # |(0.6, -0.2)| = √0.4, |(-0.4, 0.8)| = √0.8, |(1.6, 0.8)| = √3.2; squares would be 0.4, 0.8 and 3.2.
    assert distances.tolist() == [pytest.approx([math.sqrt(0.4), math.sqrt(0.8), math.sqrt(3.2)], abs=1e-6)]
    assert distances.dtype == np.float32
    assert indices.dtype == np.int64


# --- exact

NOISE = unit_rows(700, 96)
HARD = {
    "noise": (unit_rows(60, 96, 1), NOISE),
    "near the memory": (near(NOISE, 60, 0.05), NOISE),
    "in the memory": (NOISE[100:160], NOISE),
    "a tight cluster": (near(NOISE[:1], 60, 1e-3), near(NOISE[:1], 700, 1e-3, seed=6)),
    "nearly equal vectors": (near(NOISE[:1], 60, 1e-6), near(NOISE[:1], 700, 1e-6, seed=6)),
    "each vector many times": (near(NOISE[:7], 60, 0.1), NOISE[np.arange(700) % 7]),
    "all vectors the same": (near(NOISE[:7], 60, 0.1), NOISE[np.zeros(700, int)]),
    "a lattice, full of ties": (np.round(2 * unit_rows(60, 3, 1)), np.round(2 * unit_rows(700, 3))),
    "far from the origin": (unit_rows(60, 96, 1) + np.float32(100), NOISE + np.float32(100)),
    "one axis": (unit_rows(60, 1, 1), np.sort(unit_rows(700, 1) * np.linspace(0, 1, 700, dtype=np.float32)[:, None])),
    "long and short": (unit_rows(60, 96, 1), NOISE * np.geomspace(1e-3, 1e3, 700, dtype=np.float32)[:, None]),
    "squares that underflow": (np.float32(1e-22) * unit_rows(60, 96, 1), np.float32(1e-22) * NOISE),
    "squares that nearly overflow": (np.float32(6e18) * unit_rows(60, 96, 1), np.float32(6e18) * NOISE),
    "a long query": (np.float32(1e6) * unit_rows(60, 96, 1), NOISE),
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("k", [1, 2, 9, 300, 700])
def test_distances_and_indices_are_those_of_the_definition_to_the_last_bit(kind, k):
    assert_as_defined(*HARD[kind], k)


@pytest.mark.parametrize("kind", HARD)
def test_so_they_are_in_parts_on_several_threads(monkeypatch, kind):
    monkeypatch.setattr(nearest, "_PRODUCTS_AT_ONCE", 1 << 12)
    monkeypatch.setattr(nearest, "_WORTH_THREADS", 0)
    assert_as_defined(*HARD[kind], 3)


@pytest.mark.parametrize("kind", [kind for kind, (_, memory) in HARD.items() if memory.shape[1] >= 96])
@pytest.mark.parametrize("k", [1, 2, 9, 300])
def test_so_they_are_where_a_projection_rules_out_first(monkeypatch, kind, k):
    monkeypatch.setattr(nearest, "_LARGE_M", 1)
    monkeypatch.setattr(nearest, "_LARGE_D", 1)
    assert_as_defined(*HARD[kind], k)
    monkeypatch.setattr(nearest, "_FEW", 10**9)  # whatever the projection leaves is measured
    assert_as_defined(*HARD[kind], k)


@pytest.mark.parametrize(("m", "d"), [(438, 768), (438, 39), (2500, 64), (4500, 256)])
@pytest.mark.parametrize("k", [1, 3])
def test_so_they_are_at_the_sizes_in_use(m, d, k):
    memory = near(unit_rows(100, d, 1), m, 0.5)
    assert_as_defined(np.concatenate([near(unit_rows(100, d, 1), 150, 0.5, seed=7), memory[:30]]), memory, k)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**16), st.booleans(), st.floats(-10, 10), st.data())
def test_any_memory_is_searched_exactly(m, d, seed, coarse, offset, data):
    rng = np.random.default_rng(seed)
    memory, query = (rng.standard_normal((n, d)) + offset for n in (m, 5))
    if coarse:  # many ties and duplicates
        memory, query = np.round(memory), np.round(query)
    assert_as_defined(query.astype(np.float32), memory.astype(np.float32), data.draw(st.integers(1, m)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 4), (5, 50, 8), (300, 40, 64), (729, 437, 384)])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_every_backend_is_exact(backend, n, m, d, k):
    query, memory = unit_rows(n, d, 1), unit_rows(m, d, 2)
    k = min(k, m)
    distances, indices = build_index(memory, backend=backend).search(query, k)
    in_double = np.sort(cdist(query.astype(np.float64), memory.astype(np.float64)), axis=1)
    np.testing.assert_allclose(distances, in_double[:, :k], atol=1e-6)
    np.testing.assert_allclose(distances, np.linalg.norm(query[:, None] - memory[indices], axis=2), atol=1e-6)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [1, 19, 20, 400])  # FAISS takes another path from 20 queries on
def test_a_stored_vector_is_at_distance_zero(backend, n):
    memory = unit_rows(400, 384, 5)
    assert (build_index(memory, backend=backend).knn(memory[:n]) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_vector_that_is_stored_twice_is_two_neighbours(backend):
    memory = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    distances, indices = build_index(memory, backend=backend).search(memory[:1], 2)
    assert distances.tolist() == [[0, 0]]
    assert sorted(indices[0].tolist()) == [0, 1]


def test_few_vectors_are_measured(monkeypatch):
    measured = []
    plainly = nearest.pair_distances
    monkeypatch.setattr(nearest, "pair_distances", lambda *a: measured.append(len(a[1])) or plainly(*a))
    memory, query = near(unit_rows(100, 96), 2000, 0.5), near(unit_rows(100, 96), 300, 0.5, seed=7)
    for k in (1, 3, 64):
        measured.clear()
        build_index(memory).search(query, k)
        assert k * len(query) <= sum(measured) < 2.5 * k * len(query)


def patches(n: int, seed: int = 0) -> np.ndarray:
    """Unit rows as a network gives them for one part: 256 dimensions that vary in 20, and a little in all."""
    rng = np.random.default_rng(7)
    basis, centre = rng.standard_normal((20, 256)), rng.standard_normal(256)
    rng = np.random.default_rng(seed)
    rows = centre + rng.standard_normal((n, 20)) @ basis / 4 + 0.02 * rng.standard_normal((n, 256))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3])
def test_a_large_memory_of_patches_is_searched_in_a_quarter_of_the_dimensions(monkeypatch, k):
    products, measured = [], []
    likely, plainly = nearest._likely, nearest.pair_distances
    monkeypatch.setattr(nearest, "_likely", lambda values, k: products.append(values.size) or likely(values, k))
    monkeypatch.setattr(nearest, "pair_distances", lambda *a: measured.append(len(a[1])) or plainly(*a))
    memory, query = patches(4500), patches(200, seed=1)
    index = build_index(memory)
    assert [space.vectors.shape for space in index._spaces] == [(4500, 64), (4500, 256)]
    index.search(query, k)
    assert sum(products) == 4500 * 200  # once each: in the projection
    assert sum(measured) < 6 * k * len(query)
    assert_as_defined(query, memory, k)


def test_the_nearest_in_a_projection_is_not_taken_for_the_nearest(monkeypatch):
    # Along the one direction that is kept the second vector coincides with the query; across it, it is far away.
    memory = np.zeros((400, 4), np.float32)
    memory[:, 0] = np.linspace(-1, 1, 400)
    memory[200, 1] = 0.5
    query = memory[200:201] * np.float32([1, 0, 0, 0])
    basis = np.eye(4, 1, dtype=np.float32)
    index = build_index(memory)
    index.__dict__["_spaces"] = [Space(memory @ basis, half_squared_norms(memory @ basis), basis), index._whole]
    assert index.search(query)[1].tolist() == reference(query, memory, 1)[1].tolist()
    assert index.search(query)[1][0, 0] in (199, 201)


# --- the index as an object


def test_several_threads_may_search_one_index_at_once():
    query, memory = unit_rows(300, 64, 9), unit_rows(3000, 64, 10)
    index = build_index(memory)
    expected = index.knn(query, 2)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: index.knn(query, 2), range(12)):
            np.testing.assert_array_equal(found, expected)


def test_an_index_keeps_no_second_copy_of_the_vectors():
    memory = unit_rows(4000, 256)  # 4 MiB
    tracemalloc.start()
    index = build_index(memory)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < memory.nbytes // 50
    assert len(index) == 4000


@pytest.mark.parametrize("k", [1, 5])
def test_a_search_needs_bounded_memory_however_many_the_queries(k):
    index, query = build_index(unit_rows(9000, 16)), unit_rows(6000, 16, 1)
    tracemalloc.start()
    index.search(query, k)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 << 20  # all products would be 206 MiB


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_query_gives_no_distance(backend):
    index = build_index(COMPASS, backend=backend)
    assert index.knn(np.empty((0, 2), np.float32), 2).shape == (0,)
    assert [part.shape for part in index.search(np.empty((0, 2), np.float32), 2)] == [(0, 2), (0, 2)]


# --- what is refused


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_numbers_without_a_finite_distance_are_refused(value):
    broken = COMPASS.copy()
    broken[1, 1] = value
    with pytest.raises(ValueError, match="finite"):
        build_index(broken)
    with pytest.raises(ValueError, match="finite"), np.errstate(over="ignore"):
        build_index(COMPASS).knn(broken)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("query_d", "k", "word"), [(3, 1, "query"), (2, 0, "k must"), (2, 4, "k must")])
def test_a_question_that_cannot_be_answered_is_refused(backend, query_d, k, word):
    with pytest.raises(ValueError, match=word):
        build_index(COMPASS, backend=backend).knn(np.zeros((1, query_d), np.float32), k)


@pytest.mark.parametrize("memory", [np.zeros((0, 4), np.float32), np.zeros(4, np.float32)], ids=["empty", "flat"])
def test_an_empty_or_flat_memory_is_refused(memory):
    with pytest.raises(ValueError, match="M ≥ 1"):
        build_index(memory)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="faiss"):
        build_index(COMPASS, backend="annoy")
