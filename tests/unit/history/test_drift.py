"""Whether a move is found, and a stable line left alone."""

from __future__ import annotations

import numpy as np
import pytest

from backend.history.drift import MIN_BATCHES, find_drift

DAY = 86_400


def periods(n: int, *, level: float = 0.7, deviation: float = 0.02, seed: int = 0) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    return [900.0 * each for each in range(n)], [float(level + deviation * rng.standard_normal()) for _ in range(n)]


def test_a_move_is_found_with_its_time_and_both_levels() -> None:
    times, values = periods(1000)
    moved = values[:600] + [value + 0.1 for value in values[600:]]
    found = find_drift(times, [20] * 1000, moved)
    assert found.state == "moved"
    assert found.since == pytest.approx(times[600], abs=900 * 10)
    assert found.before_median == pytest.approx(0.7, abs=0.01)
    assert found.after_median == pytest.approx(0.8, abs=0.01)
    assert found.p_value is not None
    assert found.p_value < 0.001


@pytest.mark.parametrize("shift", [0.0, 0.03, -0.03])
def test_what_does_not_matter_is_no_move_however_sure_it_is(shift: float) -> None:
    times, values = periods(1000, deviation=0.005)
    assert find_drift(times, [20] * 1000, [*values[:500], *(each + shift for each in values[500:])]).state == "none"


def test_scores_that_have_come_back_have_not_moved() -> None:
    times, values = periods(1200)
    for first, last in ((300, 600), (200, 900), (600, 900)):
        away = [value + (0.2 if first <= n < last else 0) for n, value in enumerate(values)]
        assert find_drift(times, [20] * 1200, away).state == "none", (first, last)


def test_a_few_odd_periods_are_no_move() -> None:
    times, values = periods(1000)
    values[500:510] = [1.4] * 10
    assert find_drift(times, [20] * 1000, values).state == "none"


def test_days_that_differ_a_little_are_no_move() -> None:
    rng = np.random.default_rng(3)
    times, values = periods(30 * 64)
    days = np.repeat(0.02 * rng.standard_normal(30), 64)
    assert find_drift(times, [20] * len(times), list(np.array(values) + days)).state == "none"


def test_too_few_decisions_say_nothing() -> None:
    times, values = periods(MIN_BATCHES - 1)
    assert find_drift(times, [10] * len(times), values).state == "too_few"
    assert find_drift([], [], []).state == "too_few"
    assert find_drift([0.0], [100_000], [0.7]).state == "too_few"
    times, values = periods(MIN_BATCHES)
    assert find_drift(times, [10] * len(times), values).state == "none"


def test_equal_scores_are_no_move() -> None:
    found = find_drift(periods(100)[0], [20] * 100, [0.5] * 100)
    assert (found.state, found.p_value) == ("none", 1.0)
