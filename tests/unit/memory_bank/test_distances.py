import numpy as np
import pytest

from backend.memory_bank.distances import half_squared_norms, pair_distances, rounding_bound


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("d", [2, 40, 768])
def test_distances_by_products_are_off_by_less_than_the_bound(d):
    # Vectors of one sign are the worst for rounding: every partial sum is as large as it can be.
    vectors = np.abs(unit_rows(400, d))
    norms = half_squared_norms(vectors)
    by_product = norms[:, None] + norms - vectors @ vectors.T
    row, column = np.divmod(np.arange(400 * 400), 400)
    measured = 0.5 * pair_distances(vectors, row, vectors, column).astype(np.float64) ** 2
    off = np.abs(by_product.ravel() - measured).max()
    assert 0 < off < rounding_bound(d, float(norms.max()))


@pytest.mark.parametrize("d", [1, 3, 8, 100, 129, 768, 1000])
def test_the_distance_of_a_pair_has_the_bits_of_the_whole_column(d):
    vectors = unit_rows(700, d)
    column = np.linalg.norm(vectors - vectors[3], axis=1)
    some = np.random.default_rng(0).integers(0, 700, 50)
    for rows in (some, some[:1]):
        measured = pair_distances(vectors, rows, vectors, np.full(len(rows), 3))
        assert measured.tobytes() == column[rows].tobytes()


def test_half_squared_norms_are_summed_in_double_precision():
    vectors = np.full((2, 10_000), 0.1, np.float32)
    exact = 0.5 * 10_000 * float(np.float32(0.1)) ** 2
    assert half_squared_norms(vectors).tolist() == [np.float32(exact)] * 2


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5e19])  # 1.5e19² fits into float32, four times that does not
def test_vectors_without_a_finite_distance_are_refused(value):
    with pytest.raises(ValueError, match="finite"):
        half_squared_norms(np.array([[1.0], [value]], np.float32))
