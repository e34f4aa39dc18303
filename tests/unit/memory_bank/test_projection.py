import numpy as np
import pytest

from backend.memory_bank.distances import half_squared_norms
from backend.memory_bank.projection import projected


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


@pytest.mark.parametrize("offset", [0, 100])
def test_no_two_vectors_are_farther_apart_in_a_projection_but_for_rounding(offset):
    vectors = rows(3000, 64) * np.geomspace(1, 1e-3, 64, dtype=np.float32) + np.float32(offset)
    space = projected(vectors)
    assert space.vectors.shape == (3000, 16)
    left, right = vectors[:300].astype(np.float64), vectors[300:600].astype(np.float64)
    apart = np.linalg.norm(left - right, axis=1)
    there = space.vectors.astype(np.float64)
    longest = float(np.linalg.norm(vectors, axis=1).max())
    assert (
        np.linalg.norm(there[:300] - there[300:600], axis=1) <= apart * (1 + 1e-6) + 2 * space.rounding(longest)
    ).all()


@pytest.mark.parametrize("offset", [0, 100])
def test_rounding_moves_a_projected_vector_by_no_more_than_is_said(offset):
    vectors = rows(3000, 64) + np.float32(offset)
    space = projected(vectors)
    exact = vectors.astype(np.float64) @ space.basis.astype(np.float64)
    moved = np.linalg.norm(space.project(vectors) - exact, axis=1)
    assert 0 < moved.max() <= space.rounding(float(np.linalg.norm(vectors, axis=1).max()))


def test_the_directions_are_those_that_the_vectors_vary_in():
    vectors = rows(3000, 64) @ np.diag(np.r_[np.ones(10), np.full(54, 1e-3)]).astype(np.float32)
    space = projected(vectors)
    kept = (space.vectors**2).sum() / (vectors**2).sum()
    assert kept > 0.9999
    np.testing.assert_array_equal(space.norms, half_squared_norms(space.vectors))


def test_vectors_that_are_all_the_same_have_a_basis_too():
    space = projected(np.ones((3000, 64), np.float32))
    np.testing.assert_allclose(np.linalg.norm(space.basis.astype(np.float64), 2), 1, atol=1e-6)
