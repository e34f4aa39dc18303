import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.memory_bank import coreset
from backend.memory_bank.coreset import coreset_size, kcenter_greedy, kcenter_greedy_reference
from backend.utils import generator


def seed_that_draws(first: int, n: int) -> int:
    return next(seed for seed in range(1000) if int(generator(seed).integers(n)) == first)


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("n", "rate", "m"),
    [
        (1, 0.001, 1),
        (100, 0.001, 1),
        (100, 0.02, 2),
        (101, 0.02, 3),
        (100, 0.07, 7),  # 100 · 0.07 is 7.000000000000001 in floating point
        (21_870, 0.02, 438),  # 30 images of 27 × 27: 437.4
        (729, 1.0, 729),
        (3, 0.34, 2),
    ],
)
def test_the_size_of_a_coreset_is_rounded_up_and_at_least_one(n, rate, m):
    assert coreset_size(n, rate) == m


@given(st.integers(1, 200_000), st.integers(1, 1000))
def test_the_size_of_a_coreset_agrees_with_whole_number_arithmetic(n, thousandths):
    assert coreset_size(n, thousandths / 1000) == max(1, -(-n * thousandths // 1000))


@pytest.mark.parametrize(("n", "rate"), [(0, 0.5), (10, 0.0), (10, -0.1), (10, 1.001), (10, float("nan"))])
def test_a_size_that_makes_no_sense_is_refused(n, rate):
    with pytest.raises(ValueError, match=r"must be in|at least one"):
        coreset_size(n, rate)


LINE = np.array([[0.0], [1.0], [4.0], [10.0]], np.float32)


@pytest.mark.parametrize("pick", [kcenter_greedy, kcenter_greedy_reference])
@pytest.mark.parametrize(
    ("first", "picks"),
    [
        (0, [0, 3, 2]),  # farthest from 0 is 10; then 4 is 4 away and 1 only 1
        (1, [1, 3, 2]),  # 10 is 9 away; then 4 is 3 away and 0 is 1
        (2, [2, 3, 0]),  # 10 is 6 away; then 0 is 4 away and 1 is 3
        (3, [3, 0, 2]),  # 0 is 10 away; then 4 is 4 away and 1 is 1
    ],
)
def test_four_points_on_a_line_are_picked_as_by_hand(pick, first, picks):
    assert pick(LINE, 3, seed=seed_that_draws(first, 4)).tolist() == picks


@pytest.mark.parametrize("pick", [kcenter_greedy, kcenter_greedy_reference])
def test_on_a_tie_the_lowest_index_wins(pick):
    square = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
    seed = seed_that_draws(0, 4)
    assert pick(square, 3, seed=seed).tolist() == [0, 3, 1]  # 1 and 2 are both 1 away


def test_the_seed_draws_the_first_centre_and_it_is_kept():
    vectors = unit_rows(500, 8, 0)
    firsts = [int(kcenter_greedy(vectors, 20, seed=seed)[0]) for seed in range(6)]
    assert firsts == [int(generator(seed).integers(500)) for seed in range(6)]
    assert len(set(firsts)) > 1
    assert kcenter_greedy(vectors, 1, seed=3).tolist() == firsts[3:4]


def test_the_same_seed_gives_the_same_picks():
    vectors = unit_rows(2000, 64, 1)
    assert kcenter_greedy(vectors, 100, seed=5).tolist() == kcenter_greedy(vectors.copy(), 100, seed=5).tolist()


def clustered(n: int, d: int, seed: int = 0, scatter: float = 0.3) -> np.ndarray:
    """Unit rows around 30 directions, as the patches of one part are."""
    rows = unit_rows(30, d, seed + 1)[np.random.default_rng(seed).integers(0, 30, n)] + scatter * unit_rows(n, d, seed)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


HARD = {
    "noise": lambda: unit_rows(1500, 32, 0),
    "clusters": lambda: clustered(1500, 32),
    "clusters that products cannot resolve": lambda: clustered(1500, 32, scatter=1e-3),
    "near duplicates": lambda: clustered(1500, 32, scatter=1e-6),
    "each row many times": lambda: unit_rows(60, 16, 0)[np.arange(1500) % 60],
    "all but one the same": lambda: np.eye(1, 1500, 77).T * unit_rows(1, 24, 0),
    "all rows the same": lambda: np.ones((1500, 8)),
    "whole numbers, ties everywhere": lambda: np.random.default_rng(0).integers(0, 3, (1500, 5)),
    "one axis": lambda: np.random.default_rng(0).random((1500, 1)),
    "far from the origin": lambda: unit_rows(1500, 8, 0) + np.float32(1000),
    "squares that underflow": lambda: unit_rows(1500, 8, 0) * np.float32(1e-22),
    "lengths of many sizes": lambda: unit_rows(1500, 16, 0) * np.geomspace(1e-3, 1e3, 1500, dtype=np.float32)[:, None],
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("m", [2, 60, 200])
def test_the_fast_greedy_picks_what_the_definition_picks_where_that_is_hard(kind, m):
    vectors = np.ascontiguousarray(HARD[kind](), dtype=np.float32)
    np.testing.assert_array_equal(kcenter_greedy(vectors, m, seed=1), kcenter_greedy_reference(vectors, m, seed=1))


@pytest.mark.parametrize("kind", HARD)
def test_so_it_does_in_small_rounds_on_several_threads(monkeypatch, kind):
    for name, value in {"_CANDIDATES_MIN": 4, "_CANDIDATES_MAX": 100, "_BLOCK": 64}.items():
        monkeypatch.setattr(coreset, name, value)
    vectors = np.ascontiguousarray(HARD[kind](), dtype=np.float32)
    np.testing.assert_array_equal(kcenter_greedy(vectors, 200, seed=1), kcenter_greedy_reference(vectors, 200, seed=1))


@pytest.mark.parametrize("make", [lambda: unit_rows(9000, 96, 0), lambda: clustered(9000, 96)])
def test_the_sizes_in_use_pick_what_the_definition_picks(make):
    vectors = make()
    assert kcenter_greedy(vectors, 180).tolist() == kcenter_greedy_reference(vectors, 180).tolist()


def test_fits_at_the_same_time_pick_the_same():
    vectors = clustered(4000, 64)
    expected = kcenter_greedy_reference(vectors, 120).tolist()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: kcenter_greedy(vectors, 120).tolist(), range(4)))
    assert found == [expected] * 4


@given(st.integers(2, 60), st.integers(1, 6), st.integers(0, 2**16), st.booleans(), st.data())
def test_every_pick_is_the_farthest_from_all_before_it(n, d, seed, coarse, data):
    vectors = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    if coarse:  # many ties and duplicates
        vectors = np.round(vectors)
    m = data.draw(st.integers(1, n - 1))
    picks = kcenter_greedy(vectors, m, seed=seed)
    exact = vectors.astype(np.float64)
    distances = np.sqrt(((exact[:, None] - exact[None]) ** 2).sum(axis=2))
    for step in range(1, m):
        to_nearest_centre = distances[:, picks[:step]].min(axis=1)
        assert to_nearest_centre[picks[step]] >= to_nearest_centre.max() - 1e-6 * max(1, distances.max())
    assert len(set(picks.tolist())) == m
    assert picks.tolist() == kcenter_greedy_reference(vectors, m, seed=seed).tolist()


def test_a_coreset_of_everything_holds_every_index_once_in_order():
    vectors = unit_rows(40, 5, 0)
    assert kcenter_greedy(vectors, 40, seed=9).tolist() == list(range(40))


@pytest.mark.parametrize("m", [1, 2, 5, 9, 10])
def test_a_vector_is_never_picked_twice_even_when_all_are_equal(m):
    picks = kcenter_greedy(np.full((10, 4), 0.5, np.float32), m, seed=0)
    assert len(set(picks.tolist())) == m
    assert picks.min() >= 0
    assert picks.max() <= 9


def test_duplicates_are_picked_only_when_nothing_else_is_left():
    vectors = np.repeat(unit_rows(5, 8, 2), 4, axis=0)  # five directions, each four times
    picks = kcenter_greedy(vectors, 12, seed=1)
    assert len({int(pick) // 4 for pick in picks[:5]}) == 5
    assert len(set(picks.tolist())) == 12


def test_a_rare_texture_is_kept():
    # One row far from 2,000 near ones: a random 1 % would lose it nearly always, the greedy takes it second.
    vectors = unit_rows(2000, 16, 3) * np.float32(0.05) + np.float32(1)
    vectors[1234] = -1
    assert int(kcenter_greedy(vectors, 20, seed=0)[1]) == 1234


def test_the_covering_radius_never_grows_with_m():
    vectors = unit_rows(300, 6, 4)
    exact = vectors.astype(np.float64)
    picks = kcenter_greedy(vectors, 60, seed=0)
    radii = [np.linalg.norm(exact[:, None] - exact[picks[:m]][None], axis=2).min(axis=1).max() for m in (1, 5, 20, 60)]
    assert radii == sorted(radii, reverse=True)
    assert radii[0] > radii[-1]


@pytest.mark.parametrize("m", [0, 5, -1])
def test_a_number_of_centres_that_cannot_be_had_is_refused(m):
    with pytest.raises(ValueError, match="1 … 4"):
        kcenter_greedy(LINE, m)


def test_a_flat_array_is_refused():
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        kcenter_greedy(np.zeros(4, np.float32), 2)


@pytest.mark.parametrize(("n", "d", "m"), [(400, 4, 200), (6000, 16, 300)])
def test_progress_rises_from_the_first_round_to_the_last_pick(n, d, m):
    reported = []
    kcenter_greedy(unit_rows(n, d, 0), m, progress=lambda done, total: reported.append((done, total)))
    assert reported[-1] == (m, m)
    assert [done for done, _ in reported] == sorted({done for done, _ in reported})


def test_the_vectors_are_left_as_they_are():
    vectors = unit_rows(100, 4, 0)
    vectors.setflags(write=False)
    kcenter_greedy(vectors, 20)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_vectors_without_a_finite_length_are_refused(value):
    vectors = unit_rows(50, 4, 0)
    vectors[7, 2] = value
    with pytest.raises(ValueError, match="finite"):
        kcenter_greedy(vectors, 5)


def test_memory_beside_the_vectors_is_bounded():
    vectors = unit_rows(60_000, 64, 0)  # 15 MiB
    tracemalloc.start()
    kcenter_greedy(vectors, 600)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20  # a [60 000, 600] table alone would be 137 MiB
