"""A ROI's own whitening: identity covariance, unit rows, and what happens when there is nothing to learn from."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.memory_bank.whitening import Whitening, fit_whitening


def _correlated_rows(n: int = 4000, d: int = 6, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * 20
    return (rng.normal(size=(n, d)) @ mixing + rng.normal(size=d) * 100).astype(np.float32)


def test_without_shrinkage_whitened_rows_have_zero_mean_and_identity_covariance() -> None:
    rows = _correlated_rows()
    whitened = fit_whitening(rows, shrinkage=0.0).whiten(rows).astype(np.float64)
    np.testing.assert_allclose(whitened.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(whitened.T @ whitened / len(rows), np.eye(6), atol=2e-2)


def test_shrinkage_damps_weak_directions_and_leaves_them_uncorrelated() -> None:
    # Two standardised columns of correlation r have eigenvalues 1 ± r; shrunk by a they come out as e / ((1-a) e + a).
    rng = np.random.default_rng(1)
    common = rng.normal(size=20000)
    rows = 50 * np.column_stack([common, 0.9 * common + np.sqrt(1 - 0.81) * rng.normal(size=20000)])
    whitened = fit_whitening(rows.astype(np.float32), shrinkage=0.5).whiten(rows.astype(np.float32)).astype(np.float64)
    expected = np.diag([1.9 / (0.5 * 1.9 + 0.5), 0.1 / (0.5 * 0.1 + 0.5)])
    np.testing.assert_allclose(whitened.T @ whitened / len(rows), expected, atol=0.02)


def test_the_unit_of_a_column_does_not_matter_when_it_is_well_above_the_noise() -> None:
    rows = _correlated_rows()
    scales = np.array([1, 10, 100, 1, 10, 100], dtype=np.float32)
    plain, scaled = fit_whitening(rows).apply(rows), fit_whitening(rows * scales).apply(rows * scales)
    np.testing.assert_allclose(plain @ plain[:50].T, scaled @ scaled[:50].T, atol=1e-3)


@pytest.mark.parametrize("magnitude", [0.0, 1.0, 1e3, 1e6])
def test_rows_are_unit_rows_however_large_the_response(magnitude: float) -> None:
    whitening = fit_whitening(_correlated_rows())
    unit = whitening.apply(_correlated_rows(50, seed=2) * np.float32(magnitude))
    assert unit.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, atol=1e-5)


def test_the_lift_keeps_the_magnitude_of_a_response_apart() -> None:
    rows = _correlated_rows()
    whitening = fit_whitening(rows)
    direction = rows[0] - whitening.mean
    steps = np.stack([whitening.mean + factor * direction for factor in (0, 1, 3, 10, 100)])
    distances = np.linalg.norm(whitening.apply(steps)[1:] - whitening.apply(steps)[0], axis=1)
    assert (np.diff(distances) > 0.01).all()
    assert distances[1] == pytest.approx(3 * distances[0], rel=0.2)
    assert distances[-1] <= np.sqrt(2)


@pytest.mark.parametrize(
    "rows",
    [
        np.full((1, 4), 7.0, dtype=np.float32),
        np.full((30, 4), 7.0, dtype=np.float32),
        np.column_stack([np.arange(30), np.full(30, 5), np.arange(30), np.zeros(30)]).astype(np.float32),
        _correlated_rows(3, 6),
        np.zeros((5, 1), dtype=np.float32),
    ],
    ids=["one row", "constant rows", "constant and equal columns", "fewer rows than columns", "one column"],
)
@pytest.mark.parametrize("shrinkage", [0.0, 0.25])
def test_degenerate_rows_give_finite_unit_rows(rows: NDArray[np.float32], shrinkage: float) -> None:
    unit = fit_whitening(rows, shrinkage=shrinkage).apply(rows)
    assert np.isfinite(unit).all()
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, atol=1e-5)


def test_a_deviation_in_a_column_that_never_varied_is_seen() -> None:
    whitening = fit_whitening(np.full((30, 4), 7.0, dtype=np.float32))
    same, other = whitening.apply(np.array([[7, 7, 7, 7], [7, 7, 17, 7]], dtype=np.float32))
    assert np.linalg.norm(same - other) > 0.5


def test_the_same_rows_give_the_same_bytes() -> None:
    rows = _correlated_rows()
    first, second = fit_whitening(rows), fit_whitening(rows.copy())
    assert first.mean.tobytes() == second.mean.tobytes()
    assert first.components.tobytes() == second.components.tobytes()
    assert first == second


def test_the_largest_entry_of_each_whitening_direction_is_positive() -> None:
    # A direction is an eigenvector over the column scales; rows of equal scale make the two proportional.
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(5000, 5)) @ np.linalg.qr(rng.normal(size=(5, 5)))[0] * 30
    for flip in (1, -1):
        components = fit_whitening((flip * rows).astype(np.float32)).components
        largest = components[np.abs(components).argmax(axis=0), np.arange(5)]
        assert (largest > 0).all()


def test_many_rows_are_summed_in_pieces_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _correlated_rows(1000)
    whole = fit_whitening(rows)
    monkeypatch.setattr("backend.memory_bank.whitening._CHUNK_ROWS", 7)
    pieces = fit_whitening(rows)
    np.testing.assert_allclose(pieces.mean, whole.mean, rtol=1e-5)
    np.testing.assert_allclose(pieces.components, whole.components, rtol=1e-4, atol=1e-6)


def test_a_round_trip_through_an_npz_changes_no_byte() -> None:
    rows = _correlated_rows()
    whitening = fit_whitening(rows)
    buffer = io.BytesIO()
    np.savez(buffer, **whitening.to_arrays())
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as stored:
        again = Whitening.from_arrays(dict(stored))
    assert again == whitening
    assert again.apply(rows).tobytes() == whitening.apply(rows).tobytes()


def test_arrays_are_read_only() -> None:
    whitening = fit_whitening(_correlated_rows(10))
    for array in (whitening.mean, whitening.components):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2


def test_the_noise_of_unit_rows_is_what_quantisation_makes_of_them():
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((500, 4)) * [20, 5, 1, 0.1]).astype(np.float32)
    whitening = fit_whitening(rows)
    typical = rows.mean(axis=0, keepdims=True).repeat(20_000, axis=0)
    noisy = typical + rng.uniform(-0.5, 0.5, typical.shape).astype(np.float32)
    measured = np.cov(whitening.apply(noisy).T)
    expected = whitening.noise_covariance()
    # 0.3 squared is 0.09, the variance of a uniform error of one grey level is 1/12.
    np.testing.assert_allclose(expected, measured, rtol=0.15, atol=0.03 * measured.max())
