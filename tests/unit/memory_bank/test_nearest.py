import importlib.util
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from backend.memory_bank.nearest import build_index, faiss_bytes

BACKENDS = ["numpy", "faiss", "sklearn"]


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute(query: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """[N, M] distances in double precision, each row sorted."""
    return np.sort(cdist(query.astype(np.float64), memory.astype(np.float64)), axis=1)


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 4), (5, 50, 8), (300, 40, 64), (729, 437, 384)])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_an_index_is_exact(backend, n, m, d, k):
    query, memory = unit_rows(n, d, 1), unit_rows(m, d, 2)
    k = min(k, m)
    distances, indices = build_index(memory, backend=backend).search(query, k)
    np.testing.assert_allclose(distances, brute(query, memory)[:, :k], atol=1e-6)
    np.testing.assert_allclose(distances, np.linalg.norm(query[:, None] - memory[indices], axis=2), atol=1e-6)
    assert distances.min() >= 0
    assert distances.max() <= 2 + 1e-6


@pytest.mark.parametrize("k", [1, 5])
def test_every_backend_gives_the_same_distances(k):
    query, memory = unit_rows(729, 96, 3), unit_rows(600, 96, 4)
    by_numpy, by_faiss, by_sklearn = (build_index(memory, backend=backend).knn(query, k) for backend in BACKENDS)
    np.testing.assert_allclose(by_faiss, by_sklearn, rtol=0, atol=1e-6)
    np.testing.assert_allclose(by_faiss, by_numpy, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("n", "m", "k"), [(1500, 300, 1), (1025, 20, 3), (40, 9000, 1), (40, 9000, 7), (3, 4097, 4097)]
)
def test_a_search_in_blocks_is_exact(n, m, k):
    query, memory = unit_rows(n, 24, 1), unit_rows(m, 24, 2)
    distances, indices = build_index(memory).search(query, k)
    np.testing.assert_allclose(distances, brute(query, memory)[:, :k], atol=1e-6)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_a_large_memory_is_searched_exactly_also_where_torch_is_loaded():
    pytest.importorskip("torch")  # where it is, and the processor can, matrix units rule out most vectors
    memory = unit_rows(2500, 64, 5)
    query = np.concatenate(
        [unit_rows(100, 64, 6), memory[:100], memory[:100] + unit_rows(100, 64, 7) * np.float32(1e-3)]
    )
    for k in (1, 4):
        distances = build_index(memory).search(query, k)[0]
        np.testing.assert_allclose(distances, brute(query, memory)[:, :k], atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [1, 19, 20, 400])  # FAISS takes another path from 20 queries on
def test_a_stored_vector_is_at_distance_zero(backend, n):
    memory = unit_rows(400, 384, 5)
    assert (build_index(memory, backend=backend).knn(memory[:n]) == 0).all()


@pytest.mark.parametrize(
    ("backend", "apart"),
    [("numpy", 1e-2), ("numpy", 1e-3), ("numpy", 1e-4), ("numpy", 1e-5), ("faiss", 1e-2), ("sklearn", 1e-2)],
)
def test_near_duplicates_do_not_hide_the_nearest(backend, apart):
    # Squares of the smaller distances vanish beside the 1 of a unit vector in single precision.
    base = unit_rows(30, 384, 6)
    noise = unit_rows(90, 384, 7) * np.float32(apart)
    memory = np.concatenate([base, np.repeat(base, 3, axis=0) + noise]).astype(np.float32)
    assert build_index(memory, backend=backend).knn(memory).max() < 1e-6


@pytest.mark.parametrize("copies", [2, 70, 300])
def test_of_vectors_that_coincide_the_lower_index_comes_first(copies):
    memory = np.tile(unit_rows(5, 16, 8), (copies, 1))
    distances, indices = build_index(memory).search(memory[:5], 2)
    assert (distances == 0).all()
    assert indices.tolist() == [[i, i + 5] for i in range(5)]


def test_several_threads_may_search_one_index_at_once():
    query, memory = unit_rows(300, 64, 9), unit_rows(3000, 64, 10)
    index = build_index(memory)
    expected = index.knn(query, 2)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: index.knn(query, 2), range(12)):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    broken = COMPASS.copy()
    broken[1, 1] = value
    with pytest.raises(ValueError, match="finite"):
        build_index(broken)
    with pytest.raises(ValueError, match="finite"):
        build_index(COMPASS).knn(broken)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_vector_that_is_stored_twice_is_two_neighbours(backend):
    memory = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    distances, indices = build_index(memory, backend=backend).search(memory[:1], 2)
    assert distances.tolist() == [[0, 0]]
    assert sorted(indices[0].tolist()) == [0, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_query_gives_no_distance(backend):
    index = build_index(COMPASS, backend=backend)
    assert index.knn(np.empty((0, 2), np.float32), 2).shape == (0,)
    assert [part.shape for part in index.search(np.empty((0, 2), np.float32), 2)] == [(0, 2), (0, 2)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_index_keeps_its_vectors_whatever_becomes_of_the_callers_array(backend):
    memory = COMPASS.copy()
    index = build_index(memory, backend=backend)
    before = index.knn(COMPASS, 2)
    memory.setflags(write=False)
    assert len(index) == 3
    np.testing.assert_array_equal(index.knn(COMPASS, 2), before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("query_d", "k", "word"), [(3, 1, "query"), (2, 0, "k must"), (2, 4, "k must")])
def test_a_question_that_cannot_be_answered_is_refused(backend, query_d, k, word):
    with pytest.raises(ValueError, match=word):
        build_index(COMPASS, backend=backend).knn(np.zeros((1, query_d), np.float32), k)


@pytest.mark.parametrize("memory", [np.zeros((0, 4), np.float32), np.zeros(4, np.float32)], ids=["empty", "flat"])
def test_an_empty_or_flat_memory_is_refused(memory):
    with pytest.raises(ValueError, match="M ≥ 1"):
        build_index(memory)


def test_without_faiss_the_search_works_and_no_index_file_is_made(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faiss" else find_spec(name))
    monkeypatch.setitem(sys.modules, "faiss", None)  # an import of it fails now
    assert build_index(COMPASS).knn(COMPASS).tolist() == [0, 0, 0]
    assert faiss_bytes(COMPASS) is None


def test_the_serialised_index_is_a_flat_l2_index_over_the_memory():
    import faiss

    memory = unit_rows(50, 12, 8)
    data = faiss_bytes(memory)
    index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    assert isinstance(index, faiss.IndexFlatL2)
    assert (index.ntotal, index.d) == (50, 12)
    np.testing.assert_array_equal(index.reconstruct_n(0, 50), memory)
    assert faiss_bytes(memory.copy()) == data
